"""A connection to each broker with a channel, and each event store."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from cml_workers.eventstore.port import (
    EventStore,
)
from support.event_stores import KINDS, Place
from support.queues import Connection


@pytest.fixture
async def connection(amqp_url: str) -> AsyncIterator[Connection]:
    async with await aio_pika.connect(amqp_url) as connection:
        yield connection


@pytest.fixture
async def channel(connection: Connection) -> AbstractChannel:
    return await connection.channel(on_return_raises=True)


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    """The kind of store, and the address of a server for it."""
    return request.param, request.getfixturevalue("kurrentdb_uri") if request.param == "kurrentdb" else None


@pytest.fixture
async def place(server: tuple[str, str | None], tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as resources:
        yield Place(server[0], tmp_path, resources, server[1])


@pytest.fixture
async def store(place: Place) -> EventStore:
    return await place.opened()


@pytest.fixture
def ours() -> str:
    """What all names in a test begin with: a server may hold the streams of others."""
    return f"test-{uuid4().hex}-"
