"""What is remembered of an instance answers no command: EC2 has shown it after the command came in, or a short while ago."""

from dataclasses import replace
from datetime import timedelta

import pytest

from cml_contracts.commands import UpdateCMLWorkerTags
from cml_contracts.events import (
    InstanceStateObserved,
    StartRequested,
    StopRequested,
    TagsUpdateFailed,
    TagsUpdateRequested,
    WorkerTerminated,
)
from cml_contracts.instance import InstanceState, StateReason
from cml_contracts.results import Problem, ProblemCode
from support.given import NOW, POLICY, WORKER, evolved, given, instance
from support.situations import (
    ASKED,
    IS_PENDING,
    IS_RUNNING,
    IS_STARTING,
    IS_STOPPED,
    IS_STOPPING,
    IS_TERMINATED,
    START,
    STARTING,
    STATUS,
    STOP,
    STOPPING,
    TAG,
    TAGS_REQUESTED,
    TERMINATE,
)

RUNNING, STOPPED = InstanceState.RUNNING, InstanceState.STOPPED
SAME = UpdateCMLWorkerTags(worker_id=WORKER, tags={"Name": "lab"})
MANY = UpdateCMLWorkerTags(worker_id=WORKER, tags={f"t{n}": "" for n in range(48)})


def drifted(state: InstanceState, *changed: str, **fields: object) -> InstanceStateObserved:
    return InstanceStateObserved.model_validate(
        {"instance_state": state, "changed": changed or ("instance_state",), "drift": True, **fields}
    )


ANSWERED_BY_MEMORY = [
    ("no-op", IS_RUNNING, START),
    ("no-op", IS_PENDING, START),
    ("no-op", (*IS_STARTING, STARTING), START),
    ("no-op", IS_STOPPED, STOP),
    ("no-op", (*IS_STOPPING, STOPPING), STOP),
    ("no-op", IS_RUNNING, SAME),
    ("rejection", (*IS_STOPPING, STOPPING), START),
    ("rejection", IS_RUNNING, MANY),
]


@pytest.mark.parametrize(("_answer", "history", "command"), ANSWERED_BY_MEMORY)
def test_what_is_remembered_answers_no_command(_answer, history, command):
    case = given(*history)
    case.when(command).then_asks(ASKED.model_copy(update={"seen_revision": case.worker.observed_revision}))


def test_stopped_outside_then_start():
    given(*IS_RUNNING).found(instance(STOPPED)).when(START).then(
        drifted(STOPPED), StartRequested(operation_id="the-command")
    )


def test_started_outside_then_stop():
    given(*IS_STOPPED).found(instance(RUNNING)).when(STOP).then(
        drifted(RUNNING), StopRequested(operation_id="the-command")
    )


def test_a_tag_changed_outside_then_the_update_that_restores_it():
    theirs = {**instance().tags, "Name": "theirs"}
    given(*IS_RUNNING).found(instance(tags=theirs)).when(SAME).then(
        drifted(RUNNING, "tags", tags=theirs),
        TagsUpdateRequested(operation_id="the-command", tags={"Name": "lab"}),
    )


def test_tags_removed_outside_make_room_for_others():
    given(*IS_RUNNING).found(instance(tags={})).when(MANY).then(
        drifted(RUNNING, "tags", tags={}), TagsUpdateRequested(operation_id="the-command", tags=MANY.tags)
    )


def test_a_worker_remembered_as_stopping_that_has_stopped_can_be_started():
    given(*IS_STOPPING, STOPPING).found(instance(STOPPED)).when(START).then(
        InstanceStateObserved(instance_state=STOPPED, changed=("instance_state",)),
        StartRequested(operation_id="the-command"),
    )


def test_what_was_seen_is_recorded_whatever_becomes_of_the_command():
    stopping = instance(InstanceState.STOPPING)
    given(*IS_RUNNING).found(stopping).when(START).then_rejected(
        "Conflict", retryable=True, news=(drifted(InstanceState.STOPPING),)
    )
    given(*IS_RUNNING).found(instance(public_ip="1.2.3.4")).when(START).then_nothing(
        data=True,
        news=(InstanceStateObserved(instance_state=RUNNING, public_ip="1.2.3.4", changed=("public_ip",)),),
    )


@pytest.mark.parametrize(
    ("history", "command"), [(IS_RUNNING, START), (IS_STOPPED, STOP), (IS_RUNNING, SAME)]
)
def test_terminated_outside_ends_the_worker_and_is_the_answer(history, command):
    killed = StateReason(code="Client.UserInitiatedShutdown", message="User initiated shutdown")
    shown = instance(InstanceState.TERMINATED, state_reason=killed)
    given(*history).found(shown).when(command).then_rejected(
        "WorkerTerminated",
        news=(
            WorkerTerminated(
                reason="Client.UserInitiatedShutdown: User initiated shutdown", state_reason=killed
            ),
        ),
    )
    given(*history).found().when(command).then_rejected("WorkerTerminated", news=(WorkerTerminated(),))


def test_the_end_that_a_command_sees_answers_what_is_pending():
    meanwhile = Problem.of(ProblemCode.WORKER_TERMINATED, f"worker {WORKER} was terminated meanwhile")
    given(*IS_RUNNING, TAGS_REQUESTED).found().when(START).then_rejected(
        "WorkerTerminated",
        news=(TagsUpdateFailed(operation_id="tag", problem=meanwhile), WorkerTerminated()),
    )


def test_an_instance_that_is_not_visible_yet_is_not_gone():
    given(*IS_RUNNING).soon().found().when(START).then_rejected(
        "EC2InstanceNotFound", outcome="failed", retryable=True
    )


@pytest.mark.parametrize(("_answer", "history", "command"), ANSWERED_BY_MEMORY)
def test_what_ec2_would_not_show_is_the_answer(_answer, history, command):
    problem = Problem(code=ProblemCode.EC2_STATUS_CHECK, title="no", detail="describe failed", retryable=True)
    given(*history).found(problem=problem).when(command).then_rejected(
        "EC2StatusCheck", outcome="failed", retryable=True
    )


def test_what_changes_the_instance_needs_no_look_before():
    given(*IS_STOPPED).when(START).then(StartRequested(operation_id="the-command"))
    given(*IS_RUNNING).when(STOP).then(StopRequested(operation_id="the-command"))
    given(*IS_RUNNING).when(TAG).then(TagsUpdateRequested(operation_id="the-command", tags={"a": "1"}))


def test_the_end_of_a_worker_is_final_and_needs_no_look():
    given(*IS_TERMINATED).when(TERMINATE).then_nothing(data=True)
    given(*IS_TERMINATED).when(START).then_rejected("WorkerTerminated")


def test_a_pending_operation_is_no_memory_and_needs_no_look():
    given(*IS_STARTING).when(START).then_rejected("Conflict", retryable=True)
    given(*IS_STOPPING).when(STOP).then_rejected("Conflict", retryable=True)


POLLED = replace(POLICY, observation_age=timedelta(minutes=2))


def test_a_deployment_that_polls_may_take_what_ec2_showed_a_short_while_ago():
    fresh = given(*IS_RUNNING)
    fresh.policy = POLLED
    fresh.at = NOW + timedelta(minutes=2)
    fresh.when(START).then_nothing(data=True)
    fresh.at = NOW + timedelta(minutes=2, microseconds=1)
    fresh.then_asks(ASKED)


def test_a_status_update_always_asks():
    fresh = given(*IS_RUNNING).soon()
    fresh.policy = POLLED
    fresh.when(STATUS).then_asks(ASKED)


def test_what_the_age_is_counted_from_is_what_ec2_showed_and_no_other_event():
    worker = given(*IS_RUNNING).worker
    assert evolved(worker, [TAGS_REQUESTED], at=NOW + timedelta(hours=1)).observed_at == NOW
    shown = drifted(STOPPED)
    assert evolved(worker, [shown], at=NOW + timedelta(hours=1)).observed_at == NOW + timedelta(hours=1)
