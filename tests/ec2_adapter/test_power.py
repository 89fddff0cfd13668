"""Starting, stopping and terminating: EC2 is called first and looked at once, and never blindly where that could harm."""

from collections.abc import Mapping, Sequence

import pytest

from cml_contracts.events import WorkerEvent
from cml_contracts.instance import Ec2Instance, InstanceState
from cml_contracts.results import ProblemCode
from cml_workers.bus.port import Ack
from cml_workers.domain.messages import InstanceObserved, OperationFailed, OperationSucceeded
from cml_workers.domain.operations import SWITCHES, intents
from cml_workers.ec2_adapter.errors import (
    EC2AuthenticationException,
    EC2InstanceOperationException,
    Remedy,
)
from cml_workers.ec2_adapter.power import POWERS
from support.given import instance
from support.given_adapter import Adapter, Given
from support.histories import PENDING, RUNNING, START, STOP, STOPPED, TAG, TERMINATE, UNKNOWN, WAITS

IS_STOPPED = instance(InstanceState.STOPPED)
IS_PENDING = instance(InstanceState.PENDING)
IS_TERMINATED = instance(InstanceState.TERMINATED)


async def test_a_start_is_two_calls(given: Given):
    adapter = await given(*STOPPED, START).observed(IS_STOPPED).then_calls("start", "describe_many")
    (report,) = adapter.reports(OperationSucceeded)
    assert report.instance
    assert report.instance.state is InstanceState.PENDING


async def test_a_stop_is_two_calls(given: Given):
    adapter = await given(*RUNNING, STOP).observed(instance()).then_calls("stop", "describe_many")
    (report,) = adapter.reports(OperationSucceeded)
    assert report.instance
    assert report.instance.state is InstanceState.STOPPING


async def test_what_is_so_already_is_reported_as_it_is(given: Given):
    adapter = await given(*STOPPED, START).observed(instance()).then_calls("start", "describe_many")
    (report,) = adapter.reports(OperationSucceeded)
    assert report.instance == instance()


async def test_the_answer_of_the_call_is_newer_than_a_describe_that_has_not_seen_it(
    given: Given, monkeypatch: pytest.MonkeyPatch
):
    adapter = given(*STOPPED, START).observed(IS_STOPPED)

    async def stale(region: str, instance_ids: Sequence[str]) -> Mapping[str, Ec2Instance]:
        return {instance_ids[0]: instance(InstanceState.STOPPED, private_ip="10.0.0.1")}

    monkeypatch.setattr(adapter.ec2, "describe_many", stale)
    report = await adapter.then_reports(OperationSucceeded)
    assert report.instance == instance(InstanceState.PENDING, private_ip="10.0.0.1")


@pytest.mark.parametrize(
    ("history", "shown", "operation"),
    [((*STOPPED, START), IS_TERMINATED, "start"), ((*RUNNING, STOP), IS_TERMINATED, "stop")],
)
async def test_an_instance_that_ended_outside_is_looked_at_after_the_refusal(
    given: Given, history: Sequence[WorkerEvent], shown: Ec2Instance, operation: str
):
    adapter = given(*history).observed(shown)
    assert await adapter.triggered() == Ack()
    assert adapter.ec2.calls == [operation, "describe_many"]
    (report,) = adapter.reports(OperationFailed)
    assert report.problem.code is ProblemCode.EC2_INSTANCE_OPERATION
    assert "terminated" in report.problem.detail
    assert adapter.reports(InstanceObserved)[0].instance == shown, "or the worker seems to run without end"
    assert adapter.all_reports.index(adapter.reports(InstanceObserved)[0]) == 0


async def test_a_start_that_is_refused_for_a_state_that_ec2_does_not_show_is_tried_again(given: Given):
    refused = EC2InstanceOperationException("not so soon", remedy=Remedy.DESCRIBE)
    adapter = given(*STOPPED, START).observed(IS_STOPPED).refusing("start", refused)
    assert await adapter.triggered() == WAITS
    assert adapter.ec2.calls == ["start", "describe_many"]
    await adapter.passes(2)
    assert len(adapter.reports(OperationSucceeded)) == 1


async def test_a_stop_waits_for_a_pending_instance_and_is_carried_out_when_it_runs(given: Given):
    adapter = given(*PENDING, STOP).observed(IS_PENDING)
    assert await adapter.triggered() == WAITS
    await adapter.passes(30)
    assert adapter.called("stop") == 0
    adapter.ec2.settle()
    before = len(adapter.ec2.calls)
    await adapter.passes(6)
    assert adapter.ec2.calls[before:] == ["describe_many", "stop", "describe_many"]
    assert len(adapter.reports(OperationSucceeded)) == 1


@pytest.mark.parametrize(
    ("history", "shown"),
    [((*STOPPED, START), InstanceState.STOPPING), ((*RUNNING, STOP), InstanceState.PENDING)],
)
async def test_what_an_operation_waits_for_is_reported_if_it_was_not_known(
    given: Given, history: Sequence[WorkerEvent], shown: InstanceState
):
    """Somebody acted behind our back."""
    adapter = given(*history).observed(instance(shown))
    await adapter.triggered()
    (report,) = adapter.outcomes(InstanceObserved)
    assert report.instance == instance(shown)


async def test_while_a_stop_waits_nothing_is_read_or_published(given: Given):
    adapter = given(*PENDING, STOP).observed(IS_PENDING)
    await adapter.triggered()
    reads = adapter.store.reads
    await adapter.passes(60)
    assert (adapter.store.reads, adapter.outbox.sent) == (reads, [])


async def test_a_worker_is_terminated_when_ec2_says_so(given: Given):
    adapter = given(*RUNNING, TERMINATE).observed(instance())
    assert await adapter.triggered() == WAITS
    assert adapter.ec2.calls == ["terminate"]
    (seen,) = adapter.reports(InstanceObserved)
    assert seen.instance
    assert seen.instance.state is InstanceState.SHUTTING_DOWN
    await adapter.passes(30)
    assert adapter.reports(OperationSucceeded) == []
    adapter.ec2.settle()
    await adapter.passes(6)
    assert adapter.called("terminate") == 1
    assert len(adapter.reports(OperationSucceeded)) == 1
    assert adapter.executor._attempts._of == {}, "no trigger comes of the end of a worker"


async def test_a_termination_of_what_ended_outside_is_no_failure(given: Given):
    adapter = given(*RUNNING, TERMINATE).observed(IS_TERMINATED)
    await adapter.then_reports(OperationSucceeded)
    assert adapter.ec2.calls == ["terminate"]


async def test_tags_and_power_do_not_wait_for_each_other(given: Given):
    adapter = given(*PENDING, STOP, TAG.model_copy(update={"operation_id": "tag"})).observed(IS_PENDING)
    assert await adapter.triggered() == WAITS
    (report,) = adapter.reports(OperationSucceeded)
    assert report.operation_id == "tag"
    adapter.ec2.settle()
    await adapter.passes(6)
    assert {report.operation_id for report in adapter.reports(OperationSucceeded)} == {"tag", "the-operation"}


@pytest.mark.parametrize(
    ("history", "operation"),
    [
        ((*STOPPED, START), "start"),
        ((*RUNNING, STOP), "stop"),
        ((*RUNNING, TERMINATE), "terminate"),
        ((*RUNNING, TAG), "add_tags"),
    ],
)
class TestEveryOperation:
    def prepared(self, given: Given, history: Sequence[WorkerEvent]) -> Adapter:
        return given(*history).observed(IS_STOPPED if START in history else instance())

    @pytest.mark.parametrize("after", [False, True])
    async def test_an_unknown_outcome_is_tried_again_and_never_a_failure(
        self, given: Given, history: Sequence[WorkerEvent], operation: str, after: bool
    ):
        adapter = self.prepared(given, history).refusing(operation, UNKNOWN, after=after)
        assert await adapter.triggered() == WAITS
        await adapter.passes(2)
        adapter.ec2.settle()
        await adapter.passes(30)
        assert len(adapter.outcomes(OperationSucceeded)) == 1
        # Tags are written again, as nobody knows; what changes a state is not done a second time.
        assert adapter.called(operation) == (2 if operation == "add_tags" else 1 if after else 2)
        assert adapter.reports(OperationFailed) == []

    async def test_a_definite_refusal_is_its_failure(
        self, given: Given, history: Sequence[WorkerEvent], operation: str
    ):
        adapter = self.prepared(given, history).refusing(
            operation, EC2InstanceOperationException("protected")
        )
        assert await adapter.triggered() == Ack()
        (report,) = adapter.reports(OperationFailed)
        assert report.operation_id == "the-operation"

    async def test_a_look_that_fails_after_the_effect_is_no_failure(
        self, given: Given, history: Sequence[WorkerEvent], operation: str
    ):
        adapter = self.prepared(given, history).refusing(
            "describe_many", EC2AuthenticationException("not allowed")
        )
        await adapter.triggered()
        adapter.ec2.settle()
        await adapter.passes(30)
        assert len(adapter.outcomes(OperationSucceeded)) == 1
        assert adapter.called(operation) == 1
        assert adapter.reports(OperationFailed) == []

    async def test_an_instance_gone_from_ec2_is_looked_for_twice(
        self, given: Given, history: Sequence[WorkerEvent], operation: str
    ):
        adapter = given(*history)
        assert await adapter.triggered() == WAITS
        assert adapter.ec2.calls == [operation, "describe_many"]
        await adapter.passes(4 * 60)
        assert adapter.outbox.sent == []
        await adapter.passes(90)
        assert adapter.ec2.calls[-3:] == [operation, "describe_many", "describe_many"]
        if operation == "terminate":
            (done,) = adapter.outcomes(OperationSucceeded)
            assert done.warning
        else:
            (failed,) = adapter.outcomes(OperationFailed)
            assert failed.problem.code is ProblemCode.EC2_INSTANCE_NOT_FOUND
            (gone,) = adapter.outcomes(InstanceObserved)
            assert gone.instance is None

    async def test_nothing_is_acknowledged_before_it_is_reported(
        self, given: Given, history: Sequence[WorkerEvent], operation: str
    ):
        adapter = self.prepared(given, history)
        adapter.outbox.broken = 1
        with pytest.raises(ConnectionError):
            await adapter.triggered()
        adapter.ec2.settle()
        await adapter.triggered(redelivered=True)
        assert len(adapter.outcomes(OperationSucceeded)) == 1
        assert adapter.called(operation) == 1


def test_every_switch_has_its_call():
    assert POWERS.keys() == set(intents(SWITCHES))
