"""A stand-in for KurrentDB, the store on it, and a client beside the store."""

import pytest
from kurrentdbclient import AsyncKurrentDBClient

from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from support.kurrentdb_standin import KurrentDbStandIn


@pytest.fixture
async def node():
    node = KurrentDbStandIn()
    await node.start()
    yield node
    await node.stop()


@pytest.fixture
async def store(node):
    store = KurrentDbEventStore(node.uri)
    yield store
    await store.close()


@pytest.fixture
async def client(node):
    client = AsyncKurrentDBClient(node.uri)
    await client.connect()
    yield client
    await client.close()
