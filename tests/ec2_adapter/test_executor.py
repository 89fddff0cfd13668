"""The executor: one effect for each intent, whatever EC2 answers and whoever dies."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from cml_contracts.commands import UpdateCMLWorkerStatus
from cml_contracts.envelope import MAX_BODY, EventEnvelope
from cml_contracts.events import (
    InstanceLaunched,
    InstanceStateObserved,
    InstanceStopping,
    LaunchRequested,
    OperationRefused,
    StartRequested,
    StopFailed,
    StopRequested,
    TagsUpdated,
    TagsUpdateRequested,
    TerminationRequested,
    WorkerCreated,
    WorkerEvent,
    WorkerTerminated,
)
from cml_contracts.instance import DEPLOYMENT_TAG, WORKER_TAG, InstanceState
from cml_contracts.results import ProblemCode
from cml_workers.bus.port import Ack, DeadLetter, Message, Retry, Verdict
from cml_workers.bus.topology import EC2_TRIGGERS, INTERNAL_EXCHANGE
from cml_workers.domain.messages import (
    REPORTS,
    AttemptRefused,
    CommandMessage,
    ImageLookup,
    InstanceLookup,
    InstanceObserved,
    LookupAnswered,
    LookupRequested,
    LookupResult,
    OperationFailed,
    OperationSucceeded,
    Reminder,
    Report,
)
from cml_workers.ec2_adapter.errors import (
    EC2AuthenticationException,
    EC2CapacityException,
    EC2Exception,
    EC2InstanceOperationException,
    EC2InvalidParameterException,
    EC2QuotaExceededException,
    EC2StatusCheckException,
    EC2TagOperationException,
    EC2ThrottledException,
    OutcomeUnknownError,
    Remedy,
)
from cml_workers.ec2_adapter.executor import FRESH, LOOKUP_ATTEMPTS, SETTLING, UNSEEN_ATTEMPTS, Executor
from cml_workers.ec2_adapter.next_action import Act, Watch, next_actions
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import append, load
from support.buses import Outbox, delivered
from support.fake_ec2 import FakeEc2
from support.given import NOW, WORKER, given, instance, launch, recorded

TRIGGERS = {binding.routing_key for binding in EC2_TRIGGERS.bindings}
SECOND = timedelta(seconds=1)
CREATED = WorkerCreated(
    name="lab", aws_region="us-east-1", instance_type="m5.large", ami_id="ami-11111111", created_by="ann"
)
LAUNCH = LaunchRequested(operation_id="create", launch=launch())
RUNNING = InstanceLaunched(operation_id="create", instance=instance())
PENDING = InstanceLaunched(operation_id="create", instance=instance(InstanceState.PENDING))
STOPPED = (
    StopRequested(operation_id="stop"),
    InstanceStopping(operation_id="stop", instance=instance(InstanceState.STOPPED)),
)
START = StartRequested(operation_id="the-operation")
STOP = StopRequested(operation_id="the-operation")
TERMINATE = TerminationRequested(operation_id="the-operation")
TAG = TagsUpdateRequested(operation_id="the-operation", tags={"a": "1"})
R = TypeVar("R", bound=Report)
UNKNOWN = OutcomeUnknownError("no answer")


class Service:
    """The executor with a real store, EC2 in memory and a clock that a test moves."""

    def __init__(self, store: SqliteEventStore) -> None:
        self.store = store
        self.ec2 = FakeEc2()
        self.outbox = Outbox()
        self.takeover = timedelta()
        self.now = NOW - timedelta(minutes=1)
        self.restarted()
        self.now = NOW

    def restarted(self, **settings: timedelta) -> None:
        """The process died; another one starts now."""

        async def sleep(seconds: float) -> None:
            self.now += timedelta(seconds=seconds)

        self.executor = Executor(
            store=self.store,
            ec2=self.ec2,
            publish=self.outbox,
            now=lambda: self.now,
            sleep=sleep,
            takeover=self.takeover,
            **settings,
        )

    async def happened(self, *events: WorkerEvent) -> None:
        for event in events:
            worker = await load(self.store, WORKER)
            await append(self.store, worker, [(event, recorded(worker, event, self.now, "cause").metadata)])

    async def wake(
        self, *, redelivered: bool = False, revision: int | None = None, attempt: int = 0
    ) -> Verdict:
        """The message of the newest event that triggers, unless another one is named."""
        triggering = [each for each in await self.store.read(f"cml_worker-{WORKER}") if each.type in TRIGGERS]
        envelope = EventEnvelope(
            id=WORKER,
            source="/test",
            type=triggering[-1].type,
            worker_id=WORKER,
            revision=triggering[-1].revision if revision is None else revision,
            time=NOW,
            data={},
        )
        body = json.dumps(envelope.to_cloudevent()).encode()
        verdict = await self.executor.on_wake(
            Message(body=body, type=envelope.type, redelivered=redelivered, attempt=attempt)
        )
        for refused in self.reports(AttemptRefused):
            if (await load(self.store, WORKER)).operations[refused.operation_id].refusal is None:
                await self.happened(
                    OperationRefused(operation_id=refused.operation_id, problem=refused.problem)
                )
                if OperationRefused.TYPE in TRIGGERS:  # as the broker would, and nobody else
                    verdict = await self.wake(redelivered=redelivered)
        return verdict

    async def remind(self) -> Verdict:
        reminder = Reminder(worker_id=WORKER)
        return await self.executor.on_wake(
            Message(body=reminder.model_dump_json().encode(), type=reminder.TYPE)
        )

    def reports(self, kind: type[R]) -> list[R]:
        return [
            report
            for message in self.outbox.on(INTERNAL_EXCHANGE.name)
            if message.type in REPORTS
            for report in [REPORTS[message.type].model_validate_json(message.body)]
            if isinstance(report, kind)
        ]

    def outcomes(self, kind: type[R]) -> list[R]:
        """The reports of this kind, each once: the same one is sent again until the stream shows it."""
        return list({report.model_dump_json(): report for report in self.reports(kind)}.values())

    def called(self, operation: str) -> int:
        return self.ec2.calls.count(operation)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    yield Service(store)
    await store.close()


# -- what is owed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "owed"),
    [
        ((), []),
        ((CREATED, LAUNCH), ["create"]),
        ((CREATED, LAUNCH, TERMINATE), ["create"]),
        ((CREATED, LAUNCH, RUNNING), []),
        ((CREATED, LAUNCH, RUNNING, STOP), ["the-operation"]),
        (
            (CREATED, LAUNCH, RUNNING, TAG.model_copy(update={"operation_id": "tag"}), STOP),
            ["tag", "the-operation"],
        ),
        (
            (CREATED, LAUNCH, RUNNING, TAG.model_copy(update={"operation_id": "tag"}), TERMINATE),
            ["the-operation"],
        ),
        ((CREATED, LAUNCH, PENDING), ["watch"]),
        ((CREATED, LAUNCH, PENDING, STOP), ["the-operation"]),
        ((CREATED, LAUNCH, RUNNING, TERMINATE, WorkerTerminated(operation_id="the-operation")), []),
    ],
)
def test_the_stream_says_what_is_owed(history, owed):
    actions = next_actions(given(*history).worker)
    assert [a.operation.command_id if isinstance(a, Act) else "watch" for a in actions] == owed
    assert all(isinstance(a, Act | Watch) for a in actions)


# -- launch -----------------------------------------------------------------------------------------------


async def test_a_launch_is_reported_with_its_instance(service: Service):
    await service.happened(CREATED, LAUNCH)
    assert await service.wake() == Ack()
    (report,) = service.reports(OperationSucceeded)
    assert report.operation_id == "create"
    assert report.instance
    assert report.instance.state is InstanceState.PENDING


async def test_repeated_and_stale_wakes_launch_once(service: Service):
    await service.happened(CREATED, LAUNCH)
    await asyncio.gather(*(service.wake() for _ in range(5)))
    assert len(service.ec2.instances) == 1
    await service.happened(RUNNING)
    before = len(service.ec2.calls)
    assert await service.wake(revision=1) == Ack()
    assert len(service.ec2.calls) == before


async def test_reports_of_one_outcome_bear_one_id(service: Service):
    await service.happened(CREATED, LAUNCH)
    await service.wake()
    await service.wake()  # it was confirmed, and is on its way
    (first,) = service.outbox.sent
    await service.remind()  # it has been on its way for long
    assert [each.message_id for each in service.outbox.sent] == [first.message_id] * 2


async def test_a_report_that_was_not_confirmed_is_sent_by_the_next_trigger(service: Service):
    await service.happened(CREATED, LAUNCH)
    service.outbox.broken = 1
    with pytest.raises(ConnectionError):
        await service.wake()
    await service.wake()
    assert len(service.reports(OperationSucceeded)) == 1
    assert service.called("launch") == 1


async def test_a_wake_from_a_store_that_lags_waits(service: Service):
    await service.happened(CREATED, LAUNCH)
    assert await service.wake(revision=5) == Retry(1)


async def test_an_event_that_never_was_is_not_awaited_for_ever(service: Service):
    await service.happened(CREATED, LAUNCH)
    assert isinstance(await service.wake(revision=2**70, attempt=UNSEEN_ATTEMPTS), DeadLetter)


async def test_an_unknown_launch_is_repeated_under_its_token_until_it_is_known(service: Service):
    await service.happened(CREATED, LAUNCH)
    service.ec2.fail("launch", UNKNOWN, after=True, times=4)
    service.ec2.hidden.add("i-00000000000000000")
    for _ in range(3):
        assert await service.wake() == Retry()
    service.ec2.hidden.clear()
    assert await service.wake() == Ack()
    assert len(service.ec2.instances) == 1
    assert service.reports(OperationFailed) == []


DEFINITE = [
    EC2InvalidParameterException("bad type"),
    EC2QuotaExceededException("no vCPU"),
    EC2CapacityException("no capacity", retryable=True),
    EC2AuthenticationException("not allowed"),
]


@pytest.mark.parametrize("error", DEFINITE)
async def test_a_definite_error_fails_the_launch_at_once(service: Service, error: EC2Exception):
    await service.happened(CREATED, LAUNCH)
    service.ec2.fail("launch", error)
    assert await service.wake() == Ack()
    (report,) = service.reports(OperationFailed)
    assert report.problem == error.problem


async def test_a_definite_error_after_an_unknown_one_is_no_failure_if_the_launch_got_through(
    service: Service,
):
    await service.happened(CREATED, LAUNCH)
    service.ec2.fail("launch", UNKNOWN, after=True)
    assert await service.wake() == Retry()
    service.ec2.fail("launch", EC2AuthenticationException("not allowed any more"))
    assert await service.wake() == Ack()
    assert len(service.reports(OperationSucceeded)) == 1


async def test_a_definite_error_after_an_unknown_one_waits_while_the_launch_may_show(service: Service):
    await service.happened(CREATED, LAUNCH)
    service.ec2.fail("launch", UNKNOWN)
    await service.wake()
    service.ec2.fail("launch", EC2QuotaExceededException("no vCPU"), times=2)
    assert await service.wake() == Retry()
    service.now += timedelta(minutes=6)
    assert await service.wake() == Ack()
    assert len(service.reports(OperationFailed)) == 1


@pytest.mark.parametrize("how", ["redelivered", "restarted"])
async def test_what_a_dead_process_may_have_launched_is_not_declared_failed(service: Service, how: str):
    await service.happened(CREATED, LAUNCH)
    if how == "restarted":
        service.now += timedelta(seconds=1)
        service.restarted()
    service.ec2.fail("launch", EC2QuotaExceededException("no vCPU"))
    assert await service.wake(redelivered=how == "redelivered") == Retry()
    assert service.reports(OperationFailed) == []


async def test_a_mismatch_adopts_what_was_launched_under_the_token(service: Service):
    await service.ec2.launch(launch(instance_type="m5.xlarge"))
    await service.happened(CREATED, LAUNCH)
    assert await service.wake() == Ack()
    (report,) = service.reports(OperationSucceeded)
    assert report.instance
    assert report.instance.instance_type == "m5.xlarge"


@pytest.mark.parametrize("tag", [DEPLOYMENT_TAG, WORKER_TAG])
async def test_what_another_deployment_or_worker_launched_is_not_adopted(service: Service, tag: str):
    await service.ec2.launch(launch(tags={**launch().tags, tag: "another's"}))
    await service.happened(CREATED, LAUNCH)
    assert await service.wake() == Retry()
    (refused,) = service.reports(AttemptRefused)
    await service.happened(OperationRefused(operation_id="create", problem=refused.problem))
    service.now += timedelta(hours=1)
    assert await service.wake() == Ack()
    assert len(service.reports(OperationFailed)) == 1
    assert service.reports(OperationSucceeded) == []


async def test_a_launch_that_was_terminated_meanwhile_is_reported_so(service: Service):
    launched = await service.ec2.launch(launch())
    service.ec2.put(launched.model_copy(update={"state": InstanceState.TERMINATED}))
    await service.happened(CREATED, LAUNCH)
    assert await service.wake() == Ack()
    (report,) = service.reports(OperationSucceeded)
    assert report.instance
    assert report.instance.state is InstanceState.TERMINATED


async def test_throttling_never_fails_an_operation(service: Service):
    await service.happened(CREATED, LAUNCH)
    service.now += timedelta(days=1)
    service.ec2.fail("launch", EC2ThrottledException("slow down", remedy=Remedy.RETRY))
    assert await service.wake() == Retry()
    assert service.outbox.sent == []


@pytest.mark.parametrize(
    ("remedy", "patience"),
    [
        (Remedy.RETRY_BRIEFLY, timedelta(minutes=2)),
        (Remedy.REFRESH, timedelta(minutes=1)),
        (Remedy.DESCRIBE, timedelta(minutes=10)),
    ],
)
async def test_some_errors_are_definite_after_a_while(service: Service, remedy: Remedy, patience: timedelta):
    await service.happened(CREATED, LAUNCH)
    error = EC2InvalidParameterException("not yet", remedy=remedy)
    service.ec2.fail("launch", error, times=2)
    assert await service.wake() == Retry()
    service.now += patience
    assert await service.wake() == Ack()
    assert len(service.reports(OperationFailed)) == 1
    assert service.ec2.refreshed == (2 if remedy is Remedy.REFRESH else 0)


# -- start, stop, terminate, tags -------------------------------------------------------------------------


async def stopped(service: Service, *more: WorkerEvent) -> None:
    service.ec2.put(instance(InstanceState.STOPPED))
    await service.happened(CREATED, LAUNCH, RUNNING, *STOPPED, *more)


async def running(service: Service, *more: WorkerEvent) -> None:
    service.ec2.put(instance())
    await service.happened(CREATED, LAUNCH, RUNNING, *more)


async def test_a_start_is_reported_as_described_afterwards(service: Service):
    await stopped(service, START)
    assert await service.wake() == Ack()
    (report,) = service.reports(OperationSucceeded)
    assert report.instance
    assert report.instance.state is InstanceState.PENDING
    assert await service.wake() == Ack()
    assert service.called("start") == 1


async def test_a_stop_waits_for_a_pending_instance(service: Service):
    service.ec2.put(instance(InstanceState.PENDING))
    await service.happened(CREATED, LAUNCH, PENDING, STOP)
    assert await service.wake() == Retry()
    service.ec2.settle()
    assert await service.wake() == Ack()
    assert service.called("stop") == 1
    assert len(service.reports(OperationSucceeded)) == 1


async def test_a_worker_is_terminated_when_ec2_says_so(service: Service):
    await running(service, TERMINATE)
    assert await service.wake() == Retry()
    (seen,) = service.reports(InstanceObserved)
    assert seen.instance
    assert seen.instance.state is InstanceState.SHUTTING_DOWN
    assert service.reports(OperationSucceeded) == []
    service.ec2.settle()
    assert await service.wake() == Ack()
    assert service.called("terminate") == 1
    assert len(service.reports(OperationSucceeded)) == 1


async def test_tags_are_reported_as_they_are_afterwards(service: Service):
    await running(service, TAG)
    assert await service.wake() == Ack()
    (report,) = service.reports(OperationSucceeded)
    assert report.instance
    assert report.instance.tags == {**instance().tags, "a": "1"}


@pytest.mark.parametrize(
    ("intent", "operation", "state"),
    [
        (START, "start", InstanceState.STOPPED),
        (STOP, "stop", InstanceState.RUNNING),
        (TERMINATE, "terminate", InstanceState.RUNNING),
        (TAG, "add_tags", InstanceState.RUNNING),
    ],
)
class TestEveryOperation:
    async def prepare(self, service: Service, intent: WorkerEvent, state: InstanceState) -> None:
        await (stopped if state is InstanceState.STOPPED else running)(service, intent)

    @pytest.mark.parametrize("after", [False, True])
    async def test_an_unknown_outcome_is_tried_again_and_never_a_failure(
        self, service: Service, intent, operation, state, after
    ):
        await self.prepare(service, intent, state)
        service.ec2.fail(operation, UNKNOWN, after=after)
        assert await service.wake() == Retry()
        await service.wake()
        service.ec2.settle()
        assert bool(service.reports(OperationSucceeded)) == (operation in ("start", "stop", "add_tags"))
        service.now += timedelta(minutes=5)
        await service.wake()
        assert len(service.outcomes(OperationSucceeded)) == 1
        # Tags are written again, as nobody knows; what changes a state is not done a second time.
        assert service.called(operation) == (2 if operation == "add_tags" else 1 if after else 2)
        assert service.reports(OperationFailed) == []

    async def test_a_definite_refusal_is_its_failure(self, service: Service, intent, operation, state):
        await self.prepare(service, intent, state)
        service.ec2.fail(operation, EC2InstanceOperationException("protected"))
        assert await service.wake() == Ack()
        (report,) = service.reports(OperationFailed)
        assert report.operation_id == "the-operation"

    async def test_a_describe_that_fails_after_the_effect_is_no_failure(
        self, service: Service, intent, operation, state
    ):
        await self.prepare(service, intent, state)
        refused = EC2AuthenticationException("not allowed")
        call = "tags" if operation == "add_tags" else "describe"
        original = getattr(service.ec2, call)
        if call == "describe":
            seen = 0

            async def refuse_second(region: str, instance_id: str) -> object:
                nonlocal seen
                seen += 1
                if seen == 2:
                    raise refused
                return await original(region, instance_id)

            service.ec2.describe = refuse_second  # type: ignore[method-assign,assignment]
        else:
            service.ec2.fail(call, refused)
        await service.wake()
        service.ec2.settle()
        await service.wake()
        assert len(service.outcomes(OperationSucceeded)) == 1
        assert service.called(operation) == 1
        assert service.reports(OperationFailed) == []

    async def test_an_instance_gone_from_ec2_is_looked_for_twice(
        self, service: Service, intent, operation, state
    ):
        await self.prepare(service, intent, state)
        service.ec2.instances.clear()
        assert await service.wake() == Retry()
        assert service.outbox.sent == []
        service.now += timedelta(minutes=10)
        assert await service.wake() == Ack()
        assert service.called("describe") == 3
        if intent is TERMINATE:
            (done,) = service.reports(OperationSucceeded)
            assert done.warning
        else:
            (failed,) = service.reports(OperationFailed)
            assert failed.problem.code is ProblemCode.EC2_INSTANCE_NOT_FOUND
            (gone,) = service.reports(InstanceObserved)
            assert gone.instance is None

    async def test_nothing_is_acknowledged_before_it_is_reported(
        self, service: Service, intent, operation, state
    ):
        await self.prepare(service, intent, state)
        service.outbox.broken = 1
        with pytest.raises(ConnectionError):
            await service.wake()
        service.ec2.settle()
        await service.wake(redelivered=True)
        assert len(service.outcomes(OperationSucceeded)) == 1
        assert service.called(operation) == 1


async def test_a_start_of_an_ended_instance_fails(service: Service):
    await stopped(service, START)
    service.ec2.put(instance(InstanceState.TERMINATED))
    assert await service.wake() == Ack()
    (report,) = service.reports(OperationFailed)
    assert report.problem.code is ProblemCode.EC2_INSTANCE_OPERATION


async def test_tags_and_power_do_not_wait_for_each_other(service: Service):
    service.ec2.put(instance(InstanceState.PENDING))
    await service.happened(CREATED, LAUNCH, PENDING, STOP, TAG.model_copy(update={"operation_id": "tag"}))
    assert await service.wake() == Retry()
    (report,) = service.reports(OperationSucceeded)
    assert report.operation_id == "tag"
    service.ec2.settle()
    service.ec2.fail("add_tags", EC2TagOperationException("limit"))
    await service.wake()
    assert {report.operation_id for report in service.reports(OperationSucceeded)} == {"tag", "the-operation"}


async def test_tag_updates_go_one_after_the_other_each_woken_by_the_outcome_before(service: Service):
    first, second = (TagsUpdateRequested(operation_id=name, tags={"a": name}) for name in ("one", "two"))
    await running(service, first, second)
    await service.wake()
    assert [report.operation_id for report in service.reports(OperationSucceeded)] == ["one"]
    await service.happened(TagsUpdated(operation_id="one", tags={"a": "one"}))
    await service.wake()
    assert service.reports(OperationSucceeded)[-1].operation_id == "two"
    assert service.ec2.instances[instance().instance_id].tags["a"] == "two"


@pytest.mark.parametrize("error", [None, UNKNOWN, EC2TagOperationException("limit")])
async def test_tags_that_a_call_changed_after_another_one_went_on_are_written_again(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: EC2Exception | None
):
    """A process that stands still in its call is taken for dead; the next update is done before the call is."""
    service.ec2.put(instance())
    await service.happened(CREATED, LAUNCH, RUNNING, TAG.model_copy(update={"tags": {"a": "old"}}))
    add_tags = service.ec2.add_tags

    async def frozen(region: str, instance_id: str, tags: Mapping[str, str]) -> None:
        recorded = {**instance().tags, "a": "new"}
        await service.happened(
            TagsUpdated(operation_id="the-operation", tags={**recorded, "a": "old"}),
            TagsUpdateRequested(operation_id="next", tags={"a": "new"}),
            TagsUpdated(operation_id="next", tags=recorded),
        )
        service.now += FRESH
        if error is not None:
            service.ec2.fail("add_tags", error, after=True)
        await add_tags(region, instance_id, tags)

    monkeypatch.setattr(service.ec2, "add_tags", frozen)
    assert await service.wake() == Retry()
    assert service.ec2.instances[instance().instance_id].tags["a"] == "old"
    assert service.reports(OperationSucceeded) == []
    (recheck,) = service.outbox.on(INTERNAL_EXCHANGE.name)
    assert recheck.type == Reminder.TYPE

    service.restarted()  # the active one
    monkeypatch.setattr(service.ec2, "add_tags", add_tags)
    assert await service.executor.on_wake(Message(body=recheck.body, type=recheck.type)) == Retry()
    assert service.ec2.instances[instance().instance_id].tags["a"] == "new"
    written = service.called("add_tags")
    assert await service.executor.on_wake(Message(body=recheck.body, type=recheck.type)) == Retry()
    service.now += SETTLING
    assert await service.executor.on_wake(Message(body=recheck.body, type=recheck.type)) == Ack()
    assert service.called("add_tags") == written


@pytest.mark.parametrize("ours", [True, False], ids=["not answered to us", "made by another one"])
async def test_tags_that_a_call_without_an_answer_may_still_change_are_compared(service: Service, ours: bool):
    """The recheck is published before the report: whoever dies in between, it is there."""
    service.ec2.put(instance())
    await service.happened(CREATED, LAUNCH, RUNNING, TAG.model_copy(update={"tags": {"a": "old"}}))
    if ours:
        service.ec2.fail("add_tags", UNKNOWN, after=False)
        assert await service.wake() == Retry()
        assert await service.wake() == Ack()
    else:
        assert await service.wake(redelivered=True) == Ack()
    recheck, report = service.outbox.on(INTERNAL_EXCHANGE.name)
    assert (recheck.type, report.type) == (Reminder.TYPE, OperationSucceeded.TYPE)
    recorded = {**instance().tags, "a": "new"}
    await service.happened(
        TagsUpdated(operation_id="the-operation", tags={**recorded, "a": "old"}),
        TagsUpdateRequested(operation_id="next", tags={"a": "new"}),
        TagsUpdated(operation_id="next", tags=recorded),
    )
    service.ec2.put(instance(tags={**recorded, "a": "old"}))  # the call is carried out at last
    service.restarted()
    assert await service.executor.on_wake(Message(body=recheck.body, type=recheck.type)) == Retry()
    assert service.ec2.instances[instance().instance_id].tags == recorded
    service.now += SETTLING
    assert await service.executor.on_wake(Message(body=recheck.body, type=recheck.type)) == Ack()


async def test_a_recheck_while_ec2_does_not_answer_waits_and_publishes_nothing(service: Service):
    service.ec2.put(instance())
    await service.happened(CREATED, LAUNCH, RUNNING)
    recheck = Reminder(worker_id=WORKER, recheck_since=NOW)
    message = Message(body=recheck.model_dump_json().encode(), type=recheck.TYPE)
    service.ec2.fail("describe", UNKNOWN)
    assert await service.executor.on_wake(message) == Retry()
    assert service.outbox.sent == []


async def test_rechecked_tags_wait_for_the_update_that_is_owed(service: Service):
    service.ec2.put(instance())
    await service.happened(CREATED, LAUNCH, RUNNING, TAG)
    recheck = Reminder(worker_id=WORKER, recheck_since=NOW - SETTLING)
    message = Message(body=recheck.model_dump_json().encode(), type=recheck.TYPE)
    assert await service.executor.on_wake(message) == Retry()
    (report,) = service.reports(OperationSucceeded)
    assert report.instance
    await service.happened(TagsUpdated(operation_id="the-operation", tags=dict(report.instance.tags)))
    assert await service.executor.on_wake(message) == Ack()
    assert service.called("add_tags") == 1


# -- watching and looking up ------------------------------------------------------------------------------


async def test_an_unsettled_instance_is_watched_until_it_moves(service: Service):
    service.ec2.put(instance(InstanceState.PENDING))
    await service.happened(CREATED, LAUNCH, PENDING)
    assert await service.wake() == Retry()
    service.ec2.settle()
    assert await service.wake() == Ack()
    (seen,) = service.reports(InstanceObserved)
    assert seen.instance
    assert (seen.instance.state, seen.seen_revision) == (InstanceState.RUNNING, 2)


async def test_a_watch_ends_when_a_later_event_showed_the_instance(service: Service):
    service.ec2.put(instance(InstanceState.PENDING))
    await service.happened(
        CREATED,
        LAUNCH,
        PENDING,
        InstanceStateObserved(instance_state=InstanceState.PENDING, public_ip="1.2.3.4"),
    )
    assert await service.wake(revision=2) == Ack()
    assert service.ec2.calls == []


async def test_an_instance_whose_stop_was_refused_is_still_watched(service: Service):
    """The watch's own message carries out the stop, and is done with it; the outcome resumes the watch."""
    service.ec2.put(instance())
    await service.happened(CREATED, LAUNCH, PENDING, STOP)
    service.ec2.fail("stop", EC2InstanceOperationException("protected"))
    verdicts = [await service.wake(revision=2), await service.wake(revision=3)]
    (failed,) = {report.operation_id: report for report in service.reports(OperationFailed)}.values()
    assert Retry() not in verdicts
    await service.happened(StopFailed(operation_id=failed.operation_id, problem=failed.problem))
    await service.wake()
    (seen,) = service.reports(InstanceObserved)
    assert seen.instance
    assert seen.instance.state is InstanceState.RUNNING


async def test_a_lasting_describe_failure_changes_nothing_and_is_tried_again(service: Service):
    service.ec2.put(instance(InstanceState.PENDING))
    await service.happened(CREATED, LAUNCH, PENDING)
    service.ec2.fail("describe", EC2StatusCheckException("no"))
    assert await service.wake() == Retry()
    assert service.outbox.sent == []


async def test_a_watched_instance_that_is_gone_ends_the_worker(service: Service):
    await service.happened(CREATED, LAUNCH, PENDING)
    assert await service.wake() == Retry()
    service.now += timedelta(minutes=10)
    assert await service.wake() == Ack()
    (gone,) = service.reports(InstanceObserved)
    assert gone.instance is None


def lookup(question: ImageLookup | InstanceLookup, attempt: int = 0) -> Message:
    status = UpdateCMLWorkerStatus(worker_id=WORKER)
    origin = CommandMessage(command_id="c", command=status, command_type=status.TYPE, correlation_id="t")
    request = LookupRequested(origin=origin, question=question)
    return Message(
        body=request.model_dump_json().encode(), type=request.TYPE, message_id="lookup", attempt=attempt
    )


IMAGE = ImageLookup(aws_region="us-east-1", ami_name="cml")
INSTANCE = InstanceLookup(aws_region="us-east-1", instance_id=instance().instance_id, seen_revision=2)


async def finding(service: Service, message: Message) -> LookupResult:
    assert await service.executor.on_lookup(message) == Ack()
    return service.reports(LookupAnswered)[-1].finding


async def test_questions_are_answered(service: Service):
    assert await finding(service, lookup(IMAGE)) == LookupResult()
    assert await finding(service, lookup(INSTANCE)) == LookupResult()
    assert service.called("describe") == 2
    service.ec2.images["us-east-1", "cml"] = "ami-1"
    service.ec2.put(instance())
    assert (await finding(service, lookup(IMAGE))).image_id == "ami-1"
    assert (await finding(service, lookup(INSTANCE))).instance == instance()


async def test_a_question_ec2_does_not_answer_is_asked_again_but_not_for_ever(service: Service):
    service.ec2.fail("describe", UNKNOWN, times=2)
    assert await service.executor.on_lookup(lookup(INSTANCE)) == Retry()
    answer = await finding(service, lookup(INSTANCE, attempt=LOOKUP_ATTEMPTS))
    assert answer.problem
    assert answer.problem.retryable


async def test_a_question_for_the_largest_command_is_answered(service: Service):
    question = lookup(INSTANCE)
    largest = dataclasses.replace(question, body=question.body + b" " * MAX_BODY)
    assert await service.executor.on_lookup(largest) == Ack()


async def test_a_definite_no_is_an_answer(service: Service):
    service.ec2.fail("find_image", EC2AuthenticationException("not allowed"))
    answer = await finding(service, lookup(IMAGE))
    assert answer.problem
    assert answer.problem.code is ProblemCode.EC2_AUTHENTICATION


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"\xff", b'{"subject": 1}', b"[" * 100_000, b"1" * 10_000, b'"%s"' % (b"x" * 2**20)],
)
async def test_a_broken_message_is_kept(service: Service, body: bytes):
    assert isinstance(await service.executor.on_wake(Message(body=body, type="any")), DeadLetter)
    assert isinstance(
        await service.executor.on_lookup(Message(body=body, type="cml.lookup.requested.v1", message_id="m")),
        DeadLetter,
    )


async def test_a_reminder_finds_the_intent_whose_wake_up_was_lost(service: Service):
    await service.happened(CREATED, LAUNCH)
    assert await service.remind() == Ack()
    assert len(service.reports(OperationSucceeded)) == 1


async def test_a_reminder_looks_at_an_instance_that_was_on_its_way(service: Service):
    await service.happened(CREATED, LAUNCH, PENDING, TAG, TagsUpdated(operation_id="the-operation", tags={}))
    service.ec2.put(instance(InstanceState.RUNNING))
    assert await service.remind() == Ack()
    assert len(service.reports(InstanceObserved)) == 1


async def test_a_reminder_is_not_put_aside_the_next_one_comes_by_itself(service: Service):
    await service.happened(CREATED, LAUNCH)
    service.ec2.fail("launch", UNKNOWN)
    assert await service.remind() == Ack()
    assert service.outbox.sent == []


# -- races ------------------------------------------------------------------------------------------------


async def test_what_was_reported_is_not_done_again_before_the_stream_shows_it(service: Service):
    await service.happened(CREATED, LAUNCH)
    service.ec2.fail("launch", EC2QuotaExceededException("no vCPU"))
    reminder = Message(body=Reminder(worker_id=WORKER).model_dump_json().encode(), type=Reminder.TYPE)
    for _ in range(2):
        assert await service.executor.on_wake(reminder) == Ack()
    assert len(service.reports(AttemptRefused)) == 2
    assert service.called("launch") == 1
    assert not service.ec2.instances


async def test_after_a_refusal_nobody_tries_again_and_what_another_process_launched_is_adopted(
    service: Service,
):
    await service.happened(CREATED, LAUNCH)
    service.ec2.fail("launch", UNKNOWN, after=True)
    assert await service.wake() == Retry()
    refused = OperationRefused(operation_id="create", problem=EC2QuotaExceededException("none").problem)
    await service.happened(refused)
    service.now += timedelta(seconds=1)
    service.restarted()
    assert await service.wake() == Ack()
    assert service.called("launch") == 1
    assert len(service.reports(OperationSucceeded)) == 1


async def test_an_operation_in_doubt_does_not_fail_before_it_was_looked_at(service: Service):
    await service.happened(CREATED, LAUNCH)
    service.ec2.fail("launch", EC2AuthenticationException("not allowed"))
    service.ec2.fail("find_launched", EC2AuthenticationException("not allowed"), times=2)
    assert await service.wake(redelivered=True) == Retry()
    service.now += timedelta(hours=1)
    assert await service.wake() == Retry()
    assert service.reports(OperationFailed) == []
    assert await service.wake() == Ack()
    assert len(service.reports(OperationFailed)) == 1


@pytest.mark.parametrize(("fresh", "still"), [(FRESH, timedelta(minutes=3)), (SECOND, 2 * SECOND)])
async def test_who_stood_still_reads_the_stream_again_before_acting(
    service: Service, fresh: timedelta, still: timedelta
):
    service.restarted(fresh=fresh)
    await stopped(service, START)
    describe = service.ec2.describe

    async def slow(region: str, instance_id: str) -> object:
        service.now += still
        return await describe(region, instance_id)

    service.ec2.describe = slow  # type: ignore[method-assign,assignment]
    assert await service.wake() == Retry()
    assert service.called("start") == 0


async def test_who_takes_over_leaves_older_intents_alone_for_a_moment(service: Service):
    await service.happened(CREATED, LAUNCH)
    service.takeover = timedelta(seconds=3)
    service.now += timedelta(seconds=1)
    service.restarted()
    assert await service.wake() == Retry()
    assert service.called("launch") == 0
    service.now += timedelta(seconds=3)
    assert await service.wake() == Ack()
    assert service.called("launch") == 1


async def test_who_lost_the_broker_meanwhile_does_not_trust_what_it_knew(service: Service):
    await service.happened(CREATED, LAUNCH)
    service.executor.disconnected()
    service.now += timedelta(seconds=1)
    service.executor.connected()
    service.ec2.fail("launch", EC2QuotaExceededException("no vCPU"))
    assert await service.wake() == Retry()
    assert service.reports(OperationFailed) == []


async def test_who_lost_the_broker_while_reading_the_stream_does_not_trust_it_either(service: Service):
    await service.happened(CREATED, LAUNCH)
    read = service.store.read

    async def interrupted(stream: str, *, after: int = -1, limit: int | None = None) -> object:
        service.executor.disconnected()
        service.executor.connected()
        return await read(stream, after=after, limit=limit)

    service.store.read = interrupted  # type: ignore[method-assign,assignment]
    service.ec2.fail("launch", EC2QuotaExceededException("no vCPU"))
    assert await service.wake() == Retry()
    assert service.reports(OperationFailed) == []


async def test_a_call_that_does_not_arrive_ends_nobody(service: Service):
    service.outbox.broken = 1
    await service.executor.call()
    assert service.outbox.sent == []
    await service.executor.call()
    assert await service.executor.on_wake(delivered(service.outbox.sent[-1])) == Ack()
