"""Each known hazard of the client and of the server, on the stand-in."""

import asyncio
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc  # type: ignore[import-untyped]
import pytest
from kurrentdbclient import AsyncKurrentDBClient, StreamState

from cml_workers.eventstore.following import Following, follow_from
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    Checkpoint,
    NewEvent,
    StoreConfigurationError,
    StoredEvent,
    StoreUnavailableError,
    StreamDeletedError,
    WrongExpectedVersionError,
)
from support.kurrentdb_standin import KurrentDbStandIn
from support.tcp_proxy import TcpProxy


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


def events(number=1):
    return [NewEvent(uuid4(), "T", b"{}", b"{}") for _ in range(number)]


def stored_in(node, stream):
    return [record.event_id for record in node.log.streams.get(stream, [])]


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


class Tail:
    """A follower for as long as the test lasts."""

    def __init__(self, store, prefix=""):
        self.following = Following()
        self.positions = []
        self.saved = None
        self.task = asyncio.create_task(
            follow_from(
                store,
                self._saved,
                self._handle,
                prefix=prefix,
                following=self.following,
                backoff=lambda _: 0.01,
            )
        )

    async def _saved(self):
        return self.saved

    async def _handle(self, items):
        for item in items:
            if isinstance(item, StoredEvent):
                self.positions.append(item.position)
            if not isinstance(item, CaughtUp):
                self.saved = item.position

    async def stop(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


# Replies that are lost


async def test_a_reply_lost_after_the_commit_is_one_event(node, store):
    node.faults.lose_replies = 1
    happened = events(2)
    assert await store.append("a", happened, expected=NO_STREAM) == 1
    assert node.appends == 2
    assert stored_in(node, "a") == [str(event.event_id) for event in happened]


async def test_a_caller_repeats_what_the_client_gave_up(node, store):
    node.faults.lose_replies = 100
    happened = events()
    with pytest.raises(StoreUnavailableError):
        await store.append("a", happened, expected=NO_STREAM)
    node.faults.lose_replies = 0
    assert await store.append("a", happened, expected=NO_STREAM) == 0
    assert stored_in(node, "a") == [str(happened[0].event_id)]


async def test_a_conflict_with_our_own_success_is_a_success(node, store):
    node.faults.lose_replies = 1
    node.faults.forget_ids = True
    assert await store.append("a", events(2), expected=NO_STREAM) == 1
    with pytest.raises(WrongExpectedVersionError, match="at revision 1, expected was -1"):
        await store.append("a", events(2), expected=NO_STREAM)


@pytest.mark.parametrize("steps", range(6))
async def test_a_cancelled_append_does_not_hold_up_closing(node, steps):
    store = KurrentDbEventStore(node.uri)
    task = asyncio.create_task(store.append("a", events(), expected=NO_STREAM))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(60):
        await store.close()


# A server that is away for a while


async def test_a_short_absence_is_not_noticed(node, store):
    node.faults.unavailable = 1
    assert await store.append("a", events(), expected=NO_STREAM) == 0
    node.faults.unavailable = 1
    assert len(await store.read("a")) == 1


async def test_a_longer_absence_is_unavailable(node, store):
    node.faults.unavailable = 1000
    for call in (store.append("a", events(), expected=NO_STREAM), store.read("a"), store.ping()):
        with pytest.raises(StoreUnavailableError, match="Not Ready"):
            await call
    node.faults.unavailable = 0
    assert await store.append("a", events(), expected=NO_STREAM) == 0


async def test_a_server_that_does_not_answer_is_unavailable(node):
    node.faults.hang = True
    store = KurrentDbEventStore(f"{node.uri}&DefaultDeadline=1")
    same = events()
    async with asyncio.timeout(60):
        with pytest.raises(StoreUnavailableError):
            await store.append("a", same, expected=NO_STREAM)
    node.faults.hang = False
    assert await store.append("a", same, expected=NO_STREAM) == 0
    await store.close()


async def test_no_server_is_unavailable():
    store = KurrentDbEventStore("esdb://127.0.0.1:1?tls=false")
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1"):
        await store.ping()
    with pytest.raises(StoreUnavailableError):
        await anext(store.follow(after=None))
    await store.close()


async def test_a_channel_closed_under_an_append_does_not_look_like_a_cancellation(node, store):
    await store.ping()
    node.faults.hang = True
    task = asyncio.create_task(store.append("a", events(), expected=NO_STREAM))
    await until(lambda: node.appends == 1)
    await store._client.connection._grpc_channel.close(grace=0)
    with pytest.raises(StoreUnavailableError):
        await task


async def test_what_was_stored_survives_a_restart_and_followers_go_on(node, store):
    tail = Tail(store)
    await store.append("a", events(), expected=NO_STREAM)
    await until(lambda: len(tail.positions) == 1)
    await node.restart()
    assert await store.append("a", events(), expected=0) == 1
    await until(lambda: len(tail.positions) == 2)
    assert tail.positions == [event.position for event in await store.read("a")]
    await tail.stop()


async def test_a_server_of_its_own_process_can_be_used_and_stopped(node):
    await node.stop()  # leaves a port that is free
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "support.kurrentdb_standin", "--port", str(node.port)),
        env={"PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    store = KurrentDbEventStore(node.uri)
    async with asyncio.timeout(60):
        while True:
            try:
                await store.append("a", same := events(), expected=NO_STREAM)
                break
            except StoreUnavailableError:
                continue
    assert [event.event_id for event in await store.read("a")] == [same[0].event_id]
    await store.close()
    process.terminate()
    output, _ = await process.communicate()
    assert (process.returncode, output) == (0, b"")


# The leader is another node


async def test_a_node_that_is_not_the_leader_is_unavailable_with_a_hint(node, store):
    node.faults.leader = ("127.0.0.1", 1)
    with pytest.raises(StoreUnavailableError, match=r"\+discover"):
        await store.append("a", events(), expected=NO_STREAM)


async def test_in_a_cluster_the_append_goes_to_the_leader(node):
    leader = KurrentDbStandIn()
    await leader.start()
    node.faults.leader = ("127.0.0.1", leader.port)
    store = KurrentDbEventStore(f"esdb+discover://127.0.0.1:{node.port}?tls=false")
    assert await store.append("a", events(), expected=NO_STREAM) == 0
    assert len(stored_in(leader, "a")) == 1
    await store.close()
    await leader.stop()


async def test_a_cluster_that_cannot_be_found_is_unavailable():
    store = KurrentDbEventStore("esdb+discover://127.0.0.1:1?tls=false&MaxDiscoverAttempts=1")
    with pytest.raises(StoreUnavailableError, match="connect"):
        await store.ping()
    await store.close()


# Subscriptions


async def test_an_append_that_reconnects_does_not_end_a_follower(node, store):
    async with aclosing(store.follow(after=None)) as items:
        assert await anext(items) == CaughtUp()
        node.faults.unavailable = 1
        await store.append("a", events(), expected=NO_STREAM)
        item = await anext(items)
        assert isinstance(item, StoredEvent)
        assert item.stream == "a"


@pytest.mark.parametrize("how", ["drop_subscriptions", "end_subscriptions", "consumer_too_slow", "restart"])
async def test_a_subscription_that_breaks_says_so(node, store, how):
    async with aclosing(store.follow(after=None)) as items:
        assert await anext(items) == CaughtUp()
        if how == "restart":
            await node.restart()
        else:
            getattr(node, how)()
        with pytest.raises(StoreUnavailableError):
            async with asyncio.timeout(60):
                await anext(items)


@pytest.mark.parametrize("how", ["drop_subscriptions", "end_subscriptions", "consumer_too_slow"])
async def test_following_goes_on_without_skipping(node, store, how):
    tail = Tail(store, prefix="a")
    for n in range(60):
        await store.append("a", events(), expected=n - 1)
        if n % 15 == 7:
            await until(lambda: node.subscriptions == 1)
            getattr(node, how)()
    expected = [event.position for event in await store.read("a")]
    await until(lambda: tail.positions[-1:] == expected[-1:])
    await until(lambda: tail.following.caught_up)
    assert list(dict.fromkeys(tail.positions)) == expected
    assert tail.following.attempts == 0
    await tail.stop()


async def test_leaving_a_follower_leaves_no_subscription(node, store):
    for _ in range(3):
        async with aclosing(store.follow(after=None)) as items:
            await anext(items)
            assert node.subscriptions == 1
        await until(lambda: node.subscriptions == 0)


async def test_the_systems_own_events_are_not_followed(node, store, client):
    await store.append("a", events(), expected=NO_STREAM)
    await client.set_stream_metadata("a", metadata={"purpose": "test"})
    await store.append("b", events(), expected=NO_STREAM)
    seen = []
    async with aclosing(store.follow(after=None)) as items:
        async for item in items:
            if item == CaughtUp():
                break
            seen.append(item.stream)
    assert seen == ["a", "b"]


# Streams that somebody deleted


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


# Addresses, credentials, certificates


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("esdb://host:2113", "Username and password are required"),
        ("esdb://me:secret@host:2113?TlsVerifiCert=false", "Unknown field"),
        ("esdb://me:secret@host:2113?tls=maybe", "not one of: true, false"),
        ("esdb://me:secret@host:2113?DefaultDeadline=soon", "invalid literal"),
        ("esdb://me:secret@host:2113?TlsCaFile=/nowhere/ca.pem", "No such file"),
        ("esdb://", "No targets"),
        ("esdb+discover://me:secret@a,b", "More than one target"),
        ("http://host", "Invalid URI scheme"),
    ],
)
def test_a_wrong_address_is_refused_without_telling_the_password(uri, reason):
    with pytest.raises(StoreConfigurationError, match=reason) as refused:
        KurrentDbEventStore(uri)
    assert "secret" not in str(refused.value)


async def test_a_refused_user_is_a_matter_of_configuration(node, store):
    node.faults.unauthenticated = True
    for call in (
        store.append("a", events(), expected=NO_STREAM),
        store.read("a"),
        store.ping(),
        anext(store.follow(after=None)),
    ):
        with pytest.raises(StoreConfigurationError, match="user name and password"):
            await call


async def test_a_read_during_which_the_client_reconnects_is_never_cut_short(node):
    """As it is when another call on the same client fails: what was read by then looks like a whole stream."""
    async with TcpProxy(node.port) as network:
        store = KurrentDbEventStore(f"esdb://127.0.0.1:{network.port}?tls=false")
        await store.append("s", events(200), expected=NO_STREAM)
        for _ in range(20):
            network.delay = 0.01
            reading = asyncio.create_task(store.read("s"))
            while store._client._connection is None or not list(store._client.connection._grpc_streamers):
                await asyncio.sleep(0)
            response: Any = next(iter(store._client.connection._grpc_streamers))
            while response._read_resp_queue.empty() and not reading.done():
                await asyncio.sleep(0)
            await store._client.reconnect()
            assert len(await reading) == 200
        await store.close()


@pytest.fixture
async def secure_node(certificates):
    tls = certificates.key.read_bytes(), certificates.certificate.read_bytes()
    node = KurrentDbStandIn(users={"me": "secret"}, tls=tls)
    await node.start()
    yield node
    await node.stop()


@pytest.mark.parametrize(
    ("user", "authority", "reason"),
    [
        ("me:secret", "authority", None),
        ("me:wrong", "authority", "refuses our user name and password"),
        ("me:secret", "stranger", "TlsCaFile must name"),
        ("me:secret", None, "TlsCaFile must name"),
    ],
)
async def test_a_secure_server(secure_node, certificates, user, authority, reason):
    file = f"?TlsCaFile={getattr(certificates, authority)}" if authority else ""
    store = KurrentDbEventStore(f"esdb://{user}@127.0.0.1:{secure_node.port}{file}")
    if reason is None:
        assert await store.append("a", events(), expected=NO_STREAM) == 0
        async with aclosing(store.follow(after=None)) as items:
            assert isinstance(await anext(items), StoredEvent)
    else:
        with pytest.raises(StoreConfigurationError, match=reason):
            await store.ping()
        with pytest.raises(StoreConfigurationError, match=reason):
            await anext(store.follow(after=None))
    await store.close()


async def test_a_secure_client_of_an_insecure_server_is_told(node):
    store = KurrentDbEventStore(f"esdb://me:secret@127.0.0.1:{node.port}")
    with pytest.raises(StoreConfigurationError, match="tls=false"):
        await store.ping()
    await store.close()


async def test_a_position_the_server_refuses_is_a_matter_of_configuration(node, store, monkeypatch):
    async def refuse(context):
        await context.abort(grpc.StatusCode.UNKNOWN, "Unexpected FilteredReadAllResult: InvalidPosition")

    monkeypatch.setattr(node, "admit", refuse)
    with pytest.raises(StoreConfigurationError, match="position"):
        await anext(store.follow(after="C:17/P:17"))
