"""Each known hazard of the client and of the server, on the stand-in."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import (
    NO_STREAM,
    StoreUnavailableError,
    WrongExpectedVersionError,
)
from support.kurrentdb_followers import Tail, events, stored_in, until
from support.kurrentdb_standin import KurrentDbStandIn


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
    await store._calls.client.connection._grpc_channel.close(grace=0)
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


async def test_a_node_that_is_not_the_leader_is_unavailable_with_a_hint(node, store):
    node.faults.leader = 1
    with pytest.raises(StoreUnavailableError, match=r"\+discover"):
        await store.append("a", events(), expected=NO_STREAM)


async def test_in_a_cluster_the_append_goes_to_the_leader(node):
    leader = KurrentDbStandIn()
    await leader.start()
    node.faults.leader = leader.port
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
