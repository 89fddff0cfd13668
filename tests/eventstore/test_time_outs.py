"""After a time-out, what is there is read before an append counts as failed; and nothing is appended twice for it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cml_workers.bus.port import Ack
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.kurrentdb import store as kurrentdb_store
from cml_workers.eventstore.port import NO_STREAM, StoreUnavailableError, WrongExpectedVersionError
from support.kurrentdb_followers import events, until
from support.kurrentdb_standin import KurrentDbStandIn
from support.service import CREATE, Service


@pytest.fixture
async def impatient(node: KurrentDbStandIn) -> AsyncIterator[KurrentDbEventStore]:
    """Waits a second and a half for an append."""
    store = KurrentDbEventStore(f"{node.uri}&DefaultDeadline=1")
    yield store
    await store.close()


async def test_an_append_that_timed_out_and_was_committed_is_a_success(
    node: KurrentDbStandIn, store: KurrentDbEventStore
):
    await store.append("a", events(), expected=NO_STREAM)
    node.faults.time_out = 1
    assert await store.append("a", events(2), expected=0) == 2
    assert node.appends == 2


async def test_an_append_that_timed_out_where_others_have_appended_is_a_conflict(
    node: KurrentDbStandIn, store: KurrentDbEventStore
):
    await store.append("a", events(), expected=NO_STREAM)
    node.faults.time_out = 1
    with pytest.raises(WrongExpectedVersionError, match="others"):
        await store.append("a", events(), expected=NO_STREAM)


async def test_of_an_append_that_timed_out_and_does_not_show_nothing_is_known(
    node: KurrentDbStandIn, store: KurrentDbEventStore
):
    node.faults.commit_seconds, node.faults.hold_seconds = 0.5, 0.05
    same = events()
    first, second = await asyncio.gather(
        *(store.append("a", same, expected=NO_STREAM) for _ in range(2)), return_exceptions=True
    )
    assert {type(first), type(second)} == {int, StoreUnavailableError}
    assert await store.append("a", same, expected=NO_STREAM) == 0


async def test_a_server_that_does_not_answer_is_not_asked_for_long(
    node: KurrentDbStandIn, impatient: KurrentDbEventStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kurrentdb_store, "READ_BACK_SECONDS", 0.1)
    node.faults.hang = True
    async with asyncio.timeout(2.5):
        with pytest.raises(StoreUnavailableError):
            await impatient.append("a", events(), expected=NO_STREAM)


async def test_a_command_that_comes_to_two_processes_at_once_is_not_held(
    node: KurrentDbStandIn, store: KurrentDbEventStore
):
    """Each attempt has event ids of its own."""
    node.faults.commit_seconds, node.faults.hold_seconds = 0.05, 60
    one, other = Service(store), Service(store)
    async with asyncio.timeout(10):
        verdicts = await asyncio.gather(*(each.command(CREATE, "create") for each in (one, other)))
    assert verdicts == [Ack(), Ack()]
    assert await one.types() == ["worker.created", "worker.launch_requested"]


@pytest.mark.parametrize("before", [True, False])
async def test_what_a_frozen_server_commits_late_is_not_done_twice(
    node: KurrentDbStandIn, impatient: KurrentDbEventStore, before: bool
):
    """The message comes again ``before`` the events of its first delivery are committed, or after that."""
    service = Service(impatient)

    async def times_out() -> asyncio.Future[list[object]]:
        node.faults.commit_seconds = 2.5
        with pytest.raises(StoreUnavailableError):
            await service.command(CREATE, "create")
        node.faults.commit_seconds = 0.001
        return asyncio.gather(*node.appending)

    await (await times_out())  # its idempotency record
    late = await times_out()
    if before:
        assert await service.command(CREATE, "create") == Ack()
    await late
    assert await service.command(CREATE, "create") == Ack()
    assert await service.types() == ["worker.created", "worker.launch_requested"]


async def test_what_is_under_way_when_the_server_stops_is_unavailable(
    node: KurrentDbStandIn, impatient: KurrentDbEventStore
):
    node.faults.commit_seconds = 60
    appending = asyncio.create_task(impatient.append("a", same := events(), expected=NO_STREAM))
    await until(lambda: node.appending)
    await node.stop()
    with pytest.raises(StoreUnavailableError):
        await appending
    node.faults.commit_seconds = 0.001
    await node.start()
    assert await impatient.append("a", same, expected=NO_STREAM) == 0
