"""The executor: what triggers it, what it reads, and what it knows of attempts."""

import re
from collections.abc import Sequence
from datetime import timedelta

import pytest

from cml_contracts.events import (
    InstanceStateObserved,
    StopRequested,
    TagsUpdated,
    TagsUpdateRequested,
    WorkerEvent,
    WorkerTerminated,
)
from cml_contracts.instance import InstanceState
from cml_workers.bus.port import Ack, DeadLetter, Message, Retry
from cml_workers.domain.messages import AttemptDelayed, AttemptRefused, OperationFailed, OperationSucceeded
from cml_workers.ec2_adapter.errors import EC2QuotaExceededException, EC2ThrottledException, Remedy
from cml_workers.ec2_adapter.next_action import Act, Watch, next_actions
from cml_workers.ec2_adapter.retry_policy import look_again_in, pause, rules
from cml_workers.eventstore.worker_streams import UNSEEN_ATTEMPTS
from support import given as decided
from support.given import instance
from support.given_adapter import Given
from support.histories import (
    PENDING,
    REQUESTED,
    RUNNING,
    START,
    STOP,
    STOPPED,
    TAG,
    TERMINATE,
    UNKNOWN,
    WAITS,
)

NO_QUOTA = EC2QuotaExceededException("no vCPU")
A_TAG = TAG.model_copy(update={"operation_id": "tag"})

# -- what is pending --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "due"),
    [
        ((), []),
        (REQUESTED, ["create"]),
        ((*REQUESTED, TERMINATE), ["create"]),
        (RUNNING, []),
        ((*RUNNING, STOP), ["the-operation"]),
        ((*RUNNING, A_TAG, STOP), ["tag", "the-operation"]),
        ((*RUNNING, A_TAG, TERMINATE), ["the-operation"]),
        (PENDING, ["watch"]),
        ((*PENDING, STOP), ["the-operation"]),
        ((*RUNNING, TERMINATE, WorkerTerminated(operation_id="the-operation")), []),
    ],
)
def test_the_stream_says_what_is_due(history: Sequence[WorkerEvent], due: Sequence[str]):
    actions = next_actions(decided.given(*history).worker)
    assert [a.operation.command_id if isinstance(a, Act) else "watch" for a in actions] == due
    assert all(isinstance(a, Act | Watch) for a in actions)


# -- triggers and reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"\xff", b'{"subject": 1}', b"[" * 100_000, b"1" * 10_000, b'"%s"' % (b"x" * 2**20)],
)
async def test_a_broken_trigger_is_a_dead_letter(given: Given, body: bytes):
    assert isinstance(await given().handles(Message(body=body, type="any")), DeadLetter)


async def test_a_trigger_from_a_store_that_lags_waits_but_not_without_end(given: Given):
    adapter = given(*REQUESTED)
    await adapter._begun()
    ahead = (await adapter.trigger()).body.replace(b'"streamrevision": 1', b'"streamrevision": 7')
    assert await adapter.handles(Message(body=ahead, type="any")) == Retry(1)
    late = Message(body=ahead, type="any", attempt=UNSEEN_ATTEMPTS)
    assert isinstance(await adapter.handles(late), DeadLetter)


async def test_an_event_that_asks_for_nothing_is_not_looked_up_in_the_store(given: Given):
    adapter = given(*RUNNING, TAG).observed(instance())
    await adapter.triggered()
    await adapter.happened(
        TagsUpdated(operation_id="the-operation", tags={"a": "1"}),
        InstanceStateObserved(instance_state=InstanceState.RUNNING, public_ip="1.2.3.4"),
    )
    triggers = [await adapter.trigger(revision) for revision in (4, 5, 4)]
    adapter.store.reads = 0
    assert [await adapter.handles(each) for each in triggers] == [Ack()] * 3
    assert adapter.store.reads == 0
    await adapter.happened(TagsUpdateRequested(operation_id="next", tags={"a": "2"}))
    request = await adapter.trigger()
    adapter.store.reads = 0
    await adapter.handles(request)
    assert adapter.store.reads == 1


async def test_nothing_is_done_because_of_a_message_alone(given: Given):
    """An event that the store does not have, published by somebody else."""
    adapter = given(*RUNNING, TAG).observed(instance())
    await adapter.triggered()
    await adapter.happened(TagsUpdated(operation_id="the-operation", tags={"a": "1"}))
    await adapter.triggered()
    await adapter.happened(StopRequested(operation_id="the-operation"))
    forged = (await adapter.trigger()).body.replace(b"stop_requested", b"termination_requested")
    assert b"termination_requested" in forged
    adapter.ec2.calls.clear()
    await adapter.handles(Message(body=forged, type="any"))
    assert adapter.ec2.calls == ["stop", "describe_many"]  # as it is stored


async def test_a_published_event_that_is_not_stored_is_forgotten(given: Given):
    adapter = given(*RUNNING, TAG).observed(instance())
    await adapter.triggered()
    tagged = TagsUpdated(operation_id="the-operation", tags={"a": "1"})
    await adapter.happened(tagged)
    real = await adapter.trigger()
    forged = re.sub(rb'"id": "[^"]*"', b'"id": "ffffffff-ffff-4fff-bfff-ffffffffffff"', real.body)
    assert forged != real.body
    assert await adapter.handles(Message(body=forged, type=real.type)) == Ack()
    await adapter.happened(TagsUpdateRequested(operation_id="next", tags={"a": "2"}))
    await adapter.triggered()
    assert adapter.reports(OperationSucceeded)[-1].operation_id == "next"


async def test_a_reminder_finds_the_operation_whose_trigger_was_lost(given: Given):
    adapter = given(*REQUESTED)
    assert await adapter.reminded() == Ack()
    assert len(adapter.reports(OperationSucceeded)) == 1


async def test_a_reminder_is_acknowledged_though_it_waits_as_the_next_one_comes_by_itself(given: Given):
    adapter = given(*REQUESTED).refusing("launch", UNKNOWN)
    assert await adapter.reminded() == Ack()
    assert [each.type for each in adapter.outbox.sent] == [AttemptDelayed.TYPE]


# -- reports ----------------------------------------------------------------------------------------------


async def test_reports_of_one_outcome_have_one_id(given: Given):
    adapter = given(*REQUESTED)
    await adapter.triggered()
    await adapter.triggered()  # it was confirmed, and is on its way
    (first,) = adapter.outbox.sent
    await adapter.reminded()  # it has been on its way for long
    assert [each.message_id for each in adapter.outbox.sent] == [first.message_id] * 2


async def test_a_report_that_was_not_confirmed_is_sent_by_the_next_trigger(given: Given):
    adapter = given(*REQUESTED)
    adapter.outbox.broken = 1
    with pytest.raises(ConnectionError):
        await adapter.triggered()
    await adapter.triggered()
    assert len(adapter.reports(OperationSucceeded)) == 1
    assert adapter.called("launch") == 1


async def test_what_waited_in_memory_and_was_not_confirmed_is_reported_without_a_message(given: Given):
    adapter = given(*REQUESTED).refusing("launch", UNKNOWN)
    await adapter.triggered()
    adapter.outbox.broken = 3
    await adapter.passes(30)
    assert len(adapter.reports(OperationSucceeded)) == 1
    assert adapter.called("launch") == 2


async def test_what_was_reported_is_not_done_again_before_the_stream_shows_it(given: Given):
    adapter = given(*REQUESTED).refusing("launch", NO_QUOTA)
    for _ in range(2):
        assert await adapter.reminded() == Ack()
    assert len(adapter.reports(AttemptRefused)) == 2
    assert adapter.called("launch") == 1
    assert not adapter.ec2.instances


# -- attempts ---------------------------------------------------------------------------------------------


async def test_operations_that_others_settle_leave_nothing_behind(given: Given):
    adapter = given(*RUNNING).observed(instance())
    await adapter._begun()
    for number in range(200):
        name = f"operation-{number}"
        await adapter.happened(TagsUpdateRequested(operation_id=name, tags={"a": name}))
        adapter.refusing("add_tags", UNKNOWN)
        assert await adapter.triggered(redelivered=True) == WAITS
        assert len(adapter.executor._attempts._of) == 1
        await adapter.happened(TagsUpdated(operation_id=name, tags={"a": name}))
        assert await adapter.triggered() == Ack()
    assert adapter.executor._attempts._of == {}
    assert adapter.executor._agenda.keys == []
    assert adapter.executor._agenda._tried == {}


def test_pauses_grow_and_what_is_watched_is_looked_at_as_often():
    assert [pause(tried, 0.5) for tried in (0, 4, 5, 14, 15, 1000)] == [1, 1, 5, 5, 15, 15]
    assert [look_again_in(age, 0.5) for age in (0, 4.9, 5, 54.9, 55, 10_000)] == [1, 1, 5, 5, 15, 15]


def test_there_is_a_rule_for_each_remedy():
    assert rules(timedelta()).keys() == set(Remedy)


async def test_a_throttled_start_is_tried_again_by_itself(given: Given):
    throttled = EC2ThrottledException("slow down", remedy=Remedy.RETRY)
    adapter = given(*STOPPED, START).observed(instance(InstanceState.STOPPED))
    adapter.refusing("start", throttled, times=3)
    assert await adapter.triggered() == WAITS
    await adapter.passes(30)
    assert len(adapter.reports(OperationSucceeded)) == 1
    assert adapter.reports(OperationFailed) == []
