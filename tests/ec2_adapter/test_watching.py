"""Watching unsettled instances: in bulk, without messages, until they have settled."""

from uuid import uuid5

import pytest

from cml_contracts.events import (
    InstanceLaunched,
    InstanceStateObserved,
    InstanceStopping,
    StopFailed,
    TagsUpdated,
    WorkerEvent,
)
from cml_contracts.instance import InstanceState
from cml_workers.bus.port import Ack
from cml_workers.domain.messages import InstanceObserved, OperationFailed, OperationSucceeded
from cml_workers.ec2_adapter.errors import EC2InstanceOperationException, EC2StatusCheckException
from cml_workers.ec2_adapter.port import MOST_DESCRIBED
from cml_workers.eventstore.worker_streams import load
from support import given_adapter
from support.given import WORKER, instance
from support.given_adapter import Adapter, Given
from support.histories import LAUNCH, PENDING, STOP, TAG

IS_PENDING = instance(InstanceState.PENDING)
NOW_RUNNING = InstanceStateObserved(instance_state=InstanceState.RUNNING)


async def test_an_unsettled_instance_is_watched_until_it_moves(given: Given):
    adapter = given(*PENDING).observed(IS_PENDING)
    assert await adapter.triggered() == Ack()
    await adapter.passes(30)
    assert adapter.all_reports == []
    adapter.ec2.settle()
    await adapter.passes(6)
    (seen,) = adapter.reports(InstanceObserved)
    assert seen.instance
    assert (seen.instance.state, seen.seen_revision) == (InstanceState.RUNNING, 2)


async def test_a_watch_reads_and_publishes_nothing_and_looks_less_and_less_often(given: Given):
    adapter = given(*PENDING).observed(IS_PENDING)
    await adapter.triggered()
    reads = adapter.store.reads
    looks = []
    for _ in range(4):
        adapter.ec2.calls.clear()
        await adapter.passes(30)
        looks.append(adapter.called("describe_many"))
        assert set(adapter.ec2.calls) == {"describe_many"}
    assert looks == [10, 5, 2, 2]
    assert (adapter.store.reads, adapter.outbox.sent) == (reads, [])


async def test_the_event_that_shows_it_settled_ends_the_watch_without_a_read(given: Given):
    adapter = given(*PENDING).observed(IS_PENDING)
    await adapter.triggered()
    adapter.ec2.settle()
    await adapter.passes(2)
    await adapter.happened(NOW_RUNNING)
    message = await adapter.trigger()
    adapter.store.reads = 0
    assert await adapter.handles(message) == Ack()
    adapter.ec2.calls.clear()
    await adapter.passes(60)
    assert (adapter.store.reads, adapter.ec2.calls) == (0, [])


async def test_what_has_moved_is_reported_once(given: Given):
    adapter = given(*PENDING).observed(IS_PENDING)
    await adapter.triggered()
    adapter.observed(instance(InstanceState.PENDING, private_ip="10.0.0.1"))
    await adapter.passes(30)
    assert len(adapter.reports(InstanceObserved)) == 1
    adapter.ec2.settle()
    await adapter.passes(30)
    assert len(adapter.reports(InstanceObserved)) == 2


async def test_what_was_seen_before_an_operation_is_not_reported_after_it(given: Given):
    """The answer of EC2 waits while a stop is carried out, and says of an instance that stops that it runs."""
    adapter = given(*PENDING, STOP).observed(instance())
    await adapter.triggered()
    (stopping,) = adapter.reports(OperationSucceeded)
    assert stopping.instance
    before = await load(adapter.store, WORKER)
    await adapter.happened(InstanceStopping(operation_id="the-operation", instance=stopping.instance))
    await adapter.triggered()
    adapter.executor._moved(before, instance())
    await adapter.passes(2)
    assert [each.seen_revision for each in adapter.reports(InstanceObserved)] == [2]  # before the stop


async def test_a_report_that_is_not_confirmed_is_sent_again(given: Given):
    adapter = given(*PENDING).observed(IS_PENDING)
    await adapter.triggered()
    adapter.ec2.settle()
    adapter.outbox.broken = 3
    await adapter.passes(30)
    assert len(adapter.reports(InstanceObserved)) == 1


async def test_an_older_event_begins_no_watch_when_a_later_one_showed_the_instance(given: Given):
    adapter = given(*PENDING, NOW_RUNNING)
    assert await adapter.triggered(revision=2) == Ack()
    await adapter.passes(60)
    assert adapter.ec2.calls == []


async def test_an_instance_whose_stop_was_refused_is_still_watched(given: Given):
    """The stop takes the place of the watch; its outcome resumes it."""
    adapter = given(*PENDING, STOP).observed(instance())
    adapter.refusing("stop", EC2InstanceOperationException("protected"))
    await adapter.triggered(revision=2)
    await adapter.triggered(revision=3)
    (failed,) = adapter.outcomes(OperationFailed)
    await adapter.happened(StopFailed(operation_id=failed.operation_id, problem=failed.problem))
    await adapter.triggered()
    await adapter.passes(2)
    *_, seen = adapter.reports(InstanceObserved)
    assert seen.instance
    assert (seen.instance.state, seen.seen_revision) == (InstanceState.RUNNING, 2)
    assert "describe_many" in adapter.ec2.calls[-1:]


async def test_a_describe_failure_changes_nothing_and_is_tried_again(given: Given):
    adapter = given(*PENDING).observed(instance())
    adapter.refusing("describe_many", EC2StatusCheckException("no"), times=3)
    await adapter.triggered()
    await adapter.passes(3.5)
    assert adapter.outbox.sent == []
    await adapter.passes(2)
    assert len(adapter.reports(InstanceObserved)) == 1


async def test_a_watched_instance_that_is_gone_ends_the_worker(given: Given):
    adapter = given(*PENDING)
    await adapter.triggered()
    await adapter.passes(4.5 * 60)
    assert adapter.outbox.sent == []
    await adapter.passes(90)
    (gone,) = adapter.reports(InstanceObserved)
    assert gone.instance is None
    adapter.ec2.calls.clear()
    await adapter.passes(60)
    assert adapter.ec2.calls == []


async def test_a_reminder_finds_what_was_watched_by_a_process_that_died(given: Given):
    adapter = given(*PENDING, TAG, TagsUpdated(operation_id="the-operation", tags={})).observed(instance())
    assert await adapter.reminded() == Ack()
    await adapter.passes(2)
    assert len(adapter.reports(InstanceObserved)) == 1


async def test_nothing_is_watched_any_more_when_the_connection_is_lost(given: Given):
    adapter = given(*PENDING).observed(IS_PENDING)
    await adapter.triggered()
    adapter.executor.disconnected()
    await adapter.passes(60)
    assert adapter.ec2.calls == []


STARTING = 200


async def starting(adapter: Adapter, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose instance is pending, and whose launch's outcome triggers."""
    worker = uuid5(WORKER, str(number))
    shown = instance(InstanceState.PENDING, instance_id=f"i-{number:017x}")
    events: tuple[WorkerEvent, ...] = (
        *PENDING[:1],
        LAUNCH,
        InstanceLaunched(operation_id="create", instance=shown),
    )
    monkeypatch.setattr(given_adapter, "WORKER", worker)
    await adapter.happened(*events)
    adapter.observed(shown)
    assert await adapter.triggered() == Ack()


@pytest.mark.parametrize("count", [STARTING, STARTING + 1])
async def test_all_that_start_are_watched_by_one_call_a_round_and_no_message(
    given: Given, monkeypatch: pytest.MonkeyPatch, count: int
):
    adapter = given()
    for number in range(count):
        await starting(adapter, number, monkeypatch)
    await adapter.passes(12)
    adapter.ec2.calls.clear()
    reads = adapter.store.reads
    await adapter.passes(15)  # a round every five seconds
    assert adapter.ec2.calls == ["describe_many"] * 3 * -(-count // MOST_DESCRIBED)
    assert (adapter.store.reads, adapter.outbox.sent) == (reads, [])
