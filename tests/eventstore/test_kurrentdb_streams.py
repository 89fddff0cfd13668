"""Streams of KurrentDB that were deleted or truncated, and reads that are cut off."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from kurrentdbclient import StreamState

from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    Checkpoint,
    StoredEvent,
    StreamDeletedError,
)
from support.kurrentdb_followers import events
from support.tcp_proxy import TcpProxy


async def test_a_soft_deleted_stream_is_not_a_missing_one(store, client):
    await store.append("a", events(3), expected=NO_STREAM)
    await client.delete_stream("a", current_version=StreamState.ANY)
    with pytest.raises(StreamDeletedError, match="was deleted"):
        await store.read("a")
    await store.append("a", events(), expected=NO_STREAM)  # the server goes on at revision 3
    with pytest.raises(StreamDeletedError, match="truncated"):
        await store.read("a")


async def test_a_tombstone_is_final(store, client):
    await store.append("a", events(3), expected=NO_STREAM)
    await client.tombstone_stream("a", current_version=StreamState.ANY)
    with pytest.raises(StreamDeletedError, match="tombstone"):
        await store.read("a")
    with pytest.raises(StreamDeletedError, match="tombstone"):
        await store.append("a", events(), expected=2)


async def test_a_followed_tombstone_is_a_mere_position(store, client):
    await store.append("a", events(), expected=NO_STREAM)
    await client.tombstone_stream("a", current_version=StreamState.ANY)
    async with aclosing(store.follow(after=None, prefix="a")) as items:
        kinds = [type(await anext(items)) for _ in range(3)]
    assert kinds == [StoredEvent, Checkpoint, CaughtUp]


async def test_a_truncated_stream_is_not_read_as_if_it_were_whole(store, client):
    await store.append("a", events(5), expected=NO_STREAM)
    await client.set_stream_metadata("a", metadata={"$tb": 2})
    with pytest.raises(StreamDeletedError, match="truncated"):
        await store.read("a")
    assert [event.revision for event in await store.read("a", after=1)] == [2, 3, 4]


async def test_a_stream_all_of_whose_events_are_gone_is_not_a_new_one(store, client):
    await store.append("a", events(2), expected=NO_STREAM)
    await client.set_stream_metadata("a", metadata={"$tb": 2})
    with pytest.raises(StreamDeletedError, match="truncated"):
        await store.read("a")


async def test_a_read_during_which_the_client_reconnects_is_never_cut_short(node):
    """As it is when another call on the same client fails: what was read by then looks like a whole stream."""
    async with TcpProxy(node.port) as network:
        store = KurrentDbEventStore(f"esdb://127.0.0.1:{network.port}?tls=false")
        await store.append("s", events(200), expected=NO_STREAM)
        for _ in range(20):
            network.delay = 0.01
            reading = asyncio.create_task(store.read("s"))
            while store._calls.client._connection is None or not list(
                store._calls.client.connection._grpc_streamers
            ):
                await asyncio.sleep(0)
            response: Any = next(iter(store._calls.client.connection._grpc_streamers))
            while response._read_resp_queue.empty() and not reading.done():
                await asyncio.sleep(0)
            await store._calls.client.reconnect()
            assert len(await reading) == 200
        await store.close()
