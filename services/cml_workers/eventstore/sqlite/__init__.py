"""The embedded event store, in one SQLite file."""

from cml_workers.eventstore.sqlite.store import SqliteEventStore

__all__ = ["SqliteEventStore"]
