"""A real KurrentDB for the tests: an address that was given, or a container."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import EventStore, StoreUnavailableError
from cml_workers.relay.checkpoint import RelayCheckpoint
from support.containers import container, docker_answers

GIVEN = "KURRENTDB_URI"
IMAGE = os.environ.get("KURRENTDB_IMAGE", "kurrentplatform/kurrentdb:26.1.1")


def may_be_had() -> bool:
    """Whether it is worth trying."""
    return bool(os.environ.get(GIVEN)) or docker_answers()


@contextmanager
def any_kurrentdb() -> Iterator[tuple[str, str]]:
    """The connection string of a server, and how it was had. Raises NoContainerError."""
    given = os.environ.get(GIVEN)
    if given:
        yield given, f"given by {GIVEN}"
    else:
        with container(IMAGE, 2113, _answers, KURRENTDB_INSECURE="true") as (host, port):
            yield _uri(host, port), f"in a container of {IMAGE}"


async def relay_may_begin(store: EventStore) -> None:
    """Where others have streams of workers, and nobody has published yet, the relay would ask where to begin: at the end."""
    await RelayCheckpoint(store, new_id=uuid4, begins="end").load()


def _uri(host: str, port: int) -> str:
    return f"esdb://{host}:{port}?tls=false"


def _answers(host: str, port: int) -> bool:
    async def ping() -> bool:
        store = KurrentDbEventStore(_uri(host, port))
        try:
            await store.ping()
        except StoreUnavailableError:
            return False
        else:
            return True
        finally:
            await store.close()

    return asyncio.run(ping())
