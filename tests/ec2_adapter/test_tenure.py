"""Which EC2 adapter may act: who was paused, cut off or takes over, and who leaves."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytest

from cml_contracts.events import WorkerEvent
from cml_contracts.instance import Ec2Instance, InstanceState
from cml_workers.bus.port import Ack, Retry
from cml_workers.domain.messages import AttemptDelayed, OperationFailed
from cml_workers.ec2_adapter.errors import EC2QuotaExceededException
from cml_workers.ec2_adapter.handover import AGAIN
from cml_workers.ec2_adapter.tenure import FRESH
from support.buses import delivered
from support.given import instance
from support.given_adapter import Given
from support.histories import (
    PENDING,
    REQUESTED,
    RUNNING,
    SECOND,
    STOP,
    TAG,
    TERMINATE,
    UNKNOWN,
    WAITS,
)

NO_QUOTA = EC2QuotaExceededException("no vCPU")
A_TAG = TAG.model_copy(update={"operation_id": "tag"})


@pytest.mark.parametrize(("fresh", "still"), [(FRESH, timedelta(minutes=3)), (SECOND, 2 * SECOND)])
async def test_who_was_paused_reads_the_stream_again_before_acting(
    given: Given, monkeypatch: pytest.MonkeyPatch, fresh: timedelta, still: timedelta
):
    adapter = given(*PENDING, STOP).observed(instance())
    await adapter.restarted(fresh=fresh)
    describe = adapter.ec2.describe_many

    async def slow(region: str, instance_ids: Sequence[str]) -> Mapping[str, Ec2Instance]:
        if not adapter.called("describe_many"):
            adapter.clock.at += still
            await adapter.happened(TERMINATE.model_copy(update={"operation_id": "end"}))
        return await describe(region, instance_ids)

    monkeypatch.setattr(adapter.ec2, "describe_many", slow)
    assert await adapter.triggered() == WAITS
    assert adapter.called("stop") == 0
    await adapter.passes(3)
    assert adapter.called("stop") == 0
    assert adapter.called("terminate") == 1


async def test_who_takes_over_leaves_older_operations_alone_for_a_moment(given: Given):
    adapter = given()
    await adapter.happened(*REQUESTED)
    adapter.takeover = timedelta(seconds=2.5)
    await adapter.passes(1)
    await adapter.restarted()
    assert await adapter.triggered() == WAITS
    await adapter.passes(2.4)
    assert adapter.called("launch") == 0
    await adapter.passes(0.2)
    assert adapter.called("launch") == 1


async def test_who_lost_the_broker_meanwhile_does_not_trust_what_it_knew(given: Given):
    adapter = given().refusing("launch", NO_QUOTA)
    await adapter.happened(*REQUESTED)
    adapter.executor.disconnected()
    await adapter.passes(1)
    adapter.executor.connected()
    assert await adapter.triggered() == WAITS
    assert adapter.reports(OperationFailed) == []


async def test_who_lost_the_broker_while_reading_the_stream_does_not_trust_it_either(
    given: Given, monkeypatch: pytest.MonkeyPatch
):
    adapter = given().refusing("launch", NO_QUOTA)
    await adapter.happened(*REQUESTED)
    message = await adapter.trigger()
    read = adapter.store.read

    async def interrupted(stream: str, *, after: int = -1, limit: int | None = None) -> object:
        adapter.executor.disconnected()
        adapter.executor.connected()
        return await read(stream, after=after, limit=limit)

    monkeypatch.setattr(adapter.store, "read", interrupted)
    assert await adapter.handles(message) == Retry(1)
    assert adapter.reports(OperationFailed) == []


async def test_a_trigger_that_comes_before_the_connection_is_wholly_there_comes_again_soon(given: Given):
    """What is not remembered here must not wait for as long as what is."""
    adapter = given()
    await adapter.happened(*REQUESTED)
    adapter.executor.disconnected()
    assert await adapter.triggered() == Retry(1)
    assert adapter.ec2.calls == []
    adapter.executor.connected()
    await adapter.triggered()
    assert adapter.called("launch") == 1


async def test_what_waits_in_memory_ends_with_the_connection(given: Given):
    adapter = given(*REQUESTED).refusing("launch", UNKNOWN)
    await adapter.triggered()
    adapter.executor.disconnected()
    await adapter.passes(60)
    assert adapter.called("launch") == 1


IN_MEMORY = pytest.mark.parametrize(
    "history", [(*REQUESTED,), PENDING], ids=["an operation that waits", "a watch"]
)


@IN_MEMORY
async def test_who_is_connected_again_reminds_the_leader_of_what_it_forgot(
    given: Given, history: Sequence[WorkerEvent]
):
    adapter = given(*history).observed(instance(InstanceState.PENDING)).refusing("launch", UNKNOWN)
    await adapter.triggered()
    before = len(adapter.outbox.sent)
    adapter.outbox.broken = 2
    for _ in range(2):
        adapter.executor.disconnected()
        adapter.executor.connected()
    await adapter.passes(2 * AGAIN)
    (reminder,) = adapter.outbox.sent[before:]
    adapter.ec2.settle()
    await adapter.handles(delivered(reminder))
    await adapter.passes(2)
    assert len([each for each in adapter.all_reports if not isinstance(each, AttemptDelayed)]) == 1


@IN_MEMORY
async def test_who_leaves_hands_over_what_is_in_memory(given: Given, history: Sequence[WorkerEvent]):
    adapter = given(*history).observed(instance(InstanceState.PENDING)).refusing("launch", UNKNOWN)
    message = await adapter.triggered()
    assert message in (WAITS, Ack())
    await adapter.executor.hand_over()
    reminder = adapter.outbox.sent[-1]
    assert await adapter.handles(delivered(reminder)) == Retry(1)  # for the next leader
    await adapter.restarted()
    adapter.ec2.settle()
    await adapter.handles(delivered(reminder))
    await adapter.passes(2)
    assert len([each for each in adapter.all_reports if not isinstance(each, AttemptDelayed)]) == 1


async def test_who_is_no_leader_or_has_nothing_to_do_hands_over_nothing(given: Given):
    adapter = given(*RUNNING)
    await adapter.executor.hand_over()
    assert adapter.outbox.sent == []


async def test_an_announcement_that_does_not_arrive_ends_nobody(given: Given):
    adapter = given()
    adapter.outbox.broken = 1
    await adapter.executor.announce()
    assert adapter.outbox.sent == []
    await adapter.executor.announce()
    assert await adapter.handles(delivered(adapter.outbox.sent[-1])) == Ack()
