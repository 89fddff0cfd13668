"""Which event store an address means."""

from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import EventStore, StoreConfigurationError
from cml_workers.eventstore.sqlite import SqliteEventStore

KURRENTDB_SCHEMES = ("esdb", "esdb+discover", "kurrentdb", "kurrentdb+discover")


def open_event_store(uri: str) -> EventStore:
    """The store at ``uri``; nothing is connected before its first use.

    ``sqlite:///folder/file`` is relative to the working directory and ``sqlite:////folder/file`` absolute, as
    in database URLs; the others are KurrentDB's connection strings.

    Raises:
        StoreConfigurationError: ``uri`` is none of these, or names an option or file that is none.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and rest not in {"/", "/:memory:"}:
        return SqliteEventStore(rest.removeprefix("/"))
    if scheme in KURRENTDB_SCHEMES:
        return KurrentDbEventStore(uri)
    raise StoreConfigurationError(
        "the event store's address is not one: give sqlite:///file, or a KurrentDB connection string that begins with "
        + ", ".join(f"{each}://" for each in KURRENTDB_SCHEMES)
    )
