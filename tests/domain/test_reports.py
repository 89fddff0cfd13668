"""What reports and observations do, in given/when/then."""

from datetime import timedelta
from typing import Any

import pytest

from cml_contracts.events import (
    InstanceLaunched,
    InstanceStateObserved,
    LaunchFailed,
    LaunchRequested,
    OperationDelayed,
    OperationOverdue,
    OperationRefused,
    StartFailed,
    StopFailed,
    TagsUpdated,
    TagsUpdateFailed,
    TerminationFailed,
    WorkerTerminated,
)
from cml_contracts.instance import InstanceState, WorkerStatus
from cml_contracts.results import Delay, Problem, ProblemCode
from cml_workers.domain.messages import (
    AttemptDelayed,
    InstanceObserved,
    OperationFailed,
    OperationOutstanding,
    OperationSucceeded,
)
from support.given import NOW, WORKER, given, instance
from support.situations import (
    IS_FAILED,
    IS_PENDING,
    IS_RUNNING,
    IS_STARTING,
    IS_STOPPED,
    IS_STOPPING,
    IS_TERMINATED,
    IS_TERMINATING,
    LAUNCH_FAILED,
    LAUNCHING,
    PENDING,
    QUOTA,
    RUNNING,
    STARTING,
    STOPPED,
    TAGS_REQUESTED,
    TERMINATED,
    TERMINATION_REQUESTED,
)

SUCCESSES = [
    (LAUNCHING, "create", InstanceState.PENDING, PENDING, WorkerStatus.STARTING),
    (IS_STARTING, "start", InstanceState.PENDING, STARTING, WorkerStatus.STARTING),
    (IS_STOPPING, "stop", InstanceState.STOPPED, STOPPED, WorkerStatus.STOPPED),
    (IS_TERMINATING, "terminate", InstanceState.TERMINATED, TERMINATED, WorkerStatus.TERMINATED),
    (
        (*IS_RUNNING, TAGS_REQUESTED),
        "tag",
        InstanceState.RUNNING,
        TagsUpdated(operation_id="tag", tags=instance().tags),
        WorkerStatus.RUNNING,
    ),
]


@pytest.mark.parametrize(("history", "operation_id", "state", "outcome", "status"), SUCCESSES)
def test_every_intent_is_answered_by_its_outcome(history, operation_id, state, outcome, status):
    report = OperationSucceeded(worker_id=WORKER, operation_id=operation_id, instance=instance(state))
    case = given(*history).reported(report)
    assert case.then(outcome).status is status
    assert case.result(operation_id).outcome == "succeeded"


FAILURES = [
    (LAUNCHING, "create", LaunchFailed, WorkerStatus.FAILED),
    (IS_STARTING, "start", StartFailed, WorkerStatus.STOPPED),
    (IS_STOPPING, "stop", StopFailed, WorkerStatus.RUNNING),
    (IS_TERMINATING, "terminate", TerminationFailed, WorkerStatus.RUNNING),
    ((*IS_RUNNING, TAGS_REQUESTED), "tag", TagsUpdateFailed, WorkerStatus.RUNNING),
]


@pytest.mark.parametrize(("history", "operation_id", "outcome", "status"), FAILURES)
def test_every_intent_may_fail_and_then_what_was_observed_counts(history, operation_id, outcome, status):
    report = OperationFailed(worker_id=WORKER, operation_id=operation_id, problem=QUOTA)
    case = given(*history).reported(report)
    assert case.then(outcome(operation_id=operation_id, problem=QUOTA)).status is status
    result = case.result(operation_id)
    assert (result.outcome, result.problem) == ("failed", QUOTA)


def test_an_outcome_is_recorded_once_even_if_the_reports_contradict():
    late = OperationFailed(worker_id=WORKER, operation_id="create", problem=QUOTA)
    given(*IS_RUNNING).reported(late).then()


def test_an_outcome_without_an_intent_is_refused():
    stray = OperationSucceeded(worker_id=WORKER, operation_id="never", instance=instance())
    given(*IS_RUNNING).reported(stray).then_rejected("ValidationFailed")


def test_a_launch_that_is_to_be_terminated_is_resolved_first():
    requested = (*LAUNCHING, TERMINATION_REQUESTED)
    report = OperationSucceeded(worker_id=WORKER, operation_id="create", instance=instance())
    after = given(*requested).reported(report).then(RUNNING)
    assert after.status is WorkerStatus.STOPPING
    failed = OperationFailed(worker_id=WORKER, operation_id="create", problem=QUOTA)
    case = given(*requested).reported(failed)
    case.then(LAUNCH_FAILED, TERMINATED)
    assert case.result("terminate").outcome == "succeeded"


def test_a_launch_found_terminated_is_launched_and_terminated():
    gone = instance(InstanceState.TERMINATED)
    report = OperationSucceeded(worker_id=WORKER, operation_id="create", instance=gone)
    given(*LAUNCHING).reported(report).then(
        InstanceLaunched(operation_id="create", instance=gone), WorkerTerminated()
    )


def test_an_instance_that_was_gone_before_is_terminated_with_a_warning():
    report = OperationSucceeded(worker_id=WORKER, operation_id="terminate", warning="it was gone")
    given(*IS_TERMINATING).reported(report).then(
        WorkerTerminated(operation_id="terminate", warning="it was gone")
    )


def test_the_end_answers_every_open_intent():
    meanwhile = Problem.of(
        ProblemCode.WORKER_TERMINATED,
        f"worker {WORKER} was terminated meanwhile",
    )
    report = OperationSucceeded(worker_id=WORKER, operation_id="terminate")
    after = (
        given(*IS_RUNNING, TAGS_REQUESTED, TERMINATION_REQUESTED)
        .reported(report)
        .then(TagsUpdateFailed(operation_id="tag", problem=meanwhile), TERMINATED)
    )
    assert not after.operations


STATE = ("instance_state",)


def seen(state: InstanceState, revision: int = 99) -> InstanceObserved:
    return InstanceObserved(worker_id=WORKER, seen_revision=revision, instance=instance(state))


def test_an_observation_is_recorded_on_change_only():
    given(*IS_PENDING).reported(seen(InstanceState.RUNNING)).then(
        InstanceStateObserved(instance_state=InstanceState.RUNNING, changed=STATE)
    )
    given(*IS_RUNNING).reported(seen(InstanceState.RUNNING)).then()


def test_what_nothing_decided_explains_is_drift_and_never_refused():
    given(*IS_STOPPED).reported(seen(InstanceState.RUNNING)).then(
        InstanceStateObserved(instance_state=InstanceState.RUNNING, changed=STATE, drift=True)
    )
    given(*IS_RUNNING).reported(seen(InstanceState.STOPPED)).then(
        InstanceStateObserved(instance_state=InstanceState.STOPPED, changed=STATE, drift=True)
    )


@pytest.mark.parametrize(
    ("history", "state"),
    [
        (IS_STARTING, InstanceState.RUNNING),
        (IS_STOPPING, InstanceState.STOPPED),
        (IS_TERMINATING, InstanceState.SHUTTING_DOWN),
    ],
)
def test_what_a_decision_explains_is_not_drift(history, state):
    given(*history).reported(seen(state)).then(InstanceStateObserved(instance_state=state, changed=STATE))


def test_a_stale_observation_is_not_recorded():
    given(*IS_STOPPED).reported(seen(InstanceState.RUNNING, revision=2)).then()


def test_an_instance_gone_from_ec2_ends_the_worker():
    gone = InstanceObserved(worker_id=WORKER, seen_revision=99, instance=None)
    given(*IS_RUNNING).reported(gone).then(WorkerTerminated())
    given(*IS_RUNNING).reported(seen(InstanceState.TERMINATED)).then(WorkerTerminated())


def test_nothing_after_the_termination_changes_state():
    given(*IS_TERMINATED).reported(seen(InstanceState.RUNNING)).then()
    after = given(*IS_TERMINATED, InstanceStateObserved(instance_state=InstanceState.RUNNING)).worker
    assert after.status is WorkerStatus.TERMINATED
    assert after.instance.state is InstanceState.TERMINATED


def test_a_deadline_that_passes_is_an_event_once_and_the_outcome_may_still_come():
    outstanding = OperationOutstanding(worker_id=WORKER, operation_id="create")
    late = given(*LAUNCHING).reported(outstanding).then(OperationOverdue(operation_id="create"))
    assert late.pending(LaunchRequested)[0].overdue_at is not None
    given(*LAUNCHING, OperationOverdue(operation_id="create")).reported(
        OperationSucceeded(worker_id=WORKER, operation_id="create", instance=instance())
    ).then(InstanceLaunched(operation_id="create", instance=instance()))


THROTTLED = Problem.of(ProblemCode.EC2_THROTTLED, "slow down", retryable=True)
DELAYED = OperationDelayed(operation_id="create", problem=THROTTLED, attempts=2, next_at=NOW)


def delayed(**changes: Any) -> AttemptDelayed:
    named = {"worker_id": WORKER, "operation_id": "create", "problem": THROTTLED, "next_at": NOW}
    return AttemptDelayed.model_validate({**named, "attempts": 2, **changes})


def test_what_an_operation_waits_for_is_on_record_until_its_outcome():
    worker = given(*LAUNCHING).reported(delayed()).then(DELAYED)
    assert worker.delay == Delay(problem=THROTTLED, attempts=2, last_at=NOW + timedelta(hours=1), next_at=NOW)
    launched = InstanceLaunched(operation_id="create", instance=instance())
    assert given(*LAUNCHING, DELAYED, launched).worker.delay is None


def test_a_delay_that_comes_late_is_nothing():
    given(*LAUNCHING, DELAYED).reported(delayed(attempts=1)).then()
    given(*LAUNCHING, OperationRefused(operation_id="create", problem=QUOTA)).reported(delayed()).then()


def test_a_delay_never_comes_after_the_outcome():
    for history in (IS_RUNNING, IS_FAILED, IS_TERMINATED):
        given(*history).reported(delayed()).then()


def test_after_a_refusal_the_operation_waits_to_be_looked_at():
    worker = given(*LAUNCHING, DELAYED, OperationRefused(operation_id="create", problem=QUOTA)).worker
    assert worker.delay == Delay(problem=QUOTA, attempts=3, last_at=NOW)


def test_a_deadline_of_a_settled_operation_is_nothing():
    given(*IS_RUNNING).reported(OperationOutstanding(worker_id=WORKER, operation_id="create")).then()
