"""The rules of commands on a worker, in given/when/then."""

import pytest

from cml_contracts.commands import (
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.events import (
    InstanceStateObserved,
    StartFailed,
    StartRequested,
    StopFailed,
    StopRequested,
    TagsUpdateRequested,
    TerminationRequested,
    WorkerTerminated,
)
from cml_contracts.instance import InstanceState, WorkerStatus
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.messages import (
    OperationSucceeded,
)
from support.given import WORKER, given, instance
from support.situations import (
    ASKED,
    IS_FAILED,
    IS_PENDING,
    IS_RUNNING,
    IS_STARTING,
    IS_STOPPED,
    IS_STOPPING,
    IS_TERMINATED,
    IS_TERMINATING,
    LAUNCHING,
    START,
    STARTING,
    STATUS,
    STOP,
    STOPPING,
    TAG,
    TAGS_REQUESTED,
    TERMINATE,
    TERMINATED,
)

GIVEN_AWAY = InstanceStateObserved(
    instance_state=InstanceState.RUNNING,
    tags={**instance().tags, "cml:deployment": "other"},
    changed=("tags",),
    drift=True,
)


@pytest.mark.parametrize("command", [START, STOP, TAG, TERMINATE])
def test_what_somebody_gave_to_another_deployment_is_left_alone(command: WorkerCommand):
    now = instance(tags=GIVEN_AWAY.tags)
    given(*IS_RUNNING, GIVEN_AWAY).when(command).then_asks(ASKED.model_copy(update={"seen_revision": 3}))
    given(*IS_RUNNING, GIVEN_AWAY).when(command).found(now).then_rejected(
        "Conflict", saying="belongs to deployment 'other' now"
    )


def test_what_was_given_back_is_ours_again():
    back = InstanceStateObserved(
        instance_state=InstanceState.RUNNING, tags=instance().tags, changed=("tags",), drift=True
    )
    given(*IS_RUNNING, GIVEN_AWAY).when(STOP).found(instance()).then(
        back, StopRequested(operation_id="the-command")
    )


def test_a_stopped_worker_starts():
    given(*IS_STOPPED).when(START).then(StartRequested(operation_id="the-command"))


def test_a_running_worker_stops():
    given(*IS_RUNNING).when(STOP).then(StopRequested(operation_id="the-command"))


@pytest.mark.parametrize("history", [IS_RUNNING, IS_PENDING, (*IS_STARTING, STARTING)])
def test_starting_what_runs_or_starts_is_skipped_once_ec2_shows_that(history):
    case = given(*history)
    case.found(case.worker.instance).when(START).then_nothing(data=True)


@pytest.mark.parametrize("history", [IS_STOPPED, (*IS_STOPPING, STOPPING)])
def test_stopping_what_stands_or_stops_is_skipped_once_ec2_shows_that(history):
    case = given(*history)
    case.found(case.worker.instance).when(STOP).then_nothing(data=True)


def test_a_worker_that_ec2_shows_as_stopping_cannot_be_started():
    case = given(*IS_STOPPING, STOPPING)
    case.found(case.worker.instance).when(START).then_rejected("Conflict", retryable=True)


@pytest.mark.parametrize("command", [START, STOP])
def test_what_is_pending_may_still_fail_so_nothing_is_satisfied_yet(command):
    given(*IS_STARTING).when(command).then_rejected("Conflict", retryable=True)
    given(*IS_STOPPING).when(command).then_rejected("Conflict", retryable=True)
    given(*IS_TERMINATING).when(command).then_rejected("Conflict")


def test_a_worker_whose_instance_is_pending_can_be_stopped():
    given(*IS_PENDING).when(STOP).then(StopRequested(operation_id="the-command"))
    given(*IS_STARTING, STARTING).when(STOP).then(StopRequested(operation_id="the-command"))


@pytest.mark.parametrize("command", [START, STOP, TERMINATE, TAG, STATUS])
def test_an_unknown_worker_is_refused(command: WorkerCommand):
    given().when(command).then_rejected("WorkerNotFound", retryable=True)


@pytest.mark.parametrize("command", [START, STOP, TAG, STATUS])
def test_a_terminated_worker_is_refused(command: WorkerCommand):
    given(*IS_TERMINATED).when(command).then_rejected("WorkerTerminated")


@pytest.mark.parametrize("command", [START, STOP, TAG, STATUS])
def test_a_worker_whose_launch_failed_has_no_instance(command: WorkerCommand):
    given(*IS_FAILED).when(command).then_rejected("NoInstance")


@pytest.mark.parametrize("command", [START, STOP, TAG, STATUS])
def test_while_the_launch_is_unresolved_it_is_too_early(command: WorkerCommand):
    given(*LAUNCHING).when(command).then_rejected("Conflict", retryable=True)


@pytest.mark.parametrize("history", [IS_RUNNING, IS_PENDING, IS_STOPPED, LAUNCHING])
def test_termination_is_always_possible(history):
    given(*history).when(TERMINATE).then(TerminationRequested(operation_id="the-command"))


def test_a_second_termination_joins_the_first():
    after = given(*IS_TERMINATING).when(TERMINATE).then(TerminationRequested(operation_id="the-command"))
    ended = OperationSucceeded(worker_id=WORKER, operation_id="terminate")
    settled = given(*IS_TERMINATING, TerminationRequested(operation_id="the-command")).reported(ended)
    assert len(after.pending(TerminationRequested)) == 2
    assert not settled.then(TERMINATED).pending(TerminationRequested)


@pytest.mark.parametrize(
    ("history", "superseded"),
    [(IS_STARTING, StartFailed), (IS_STOPPING, StopFailed)],
)
def test_termination_supersedes_a_pending_start_or_stop(history, superseded):
    operation_id = "start" if superseded is StartFailed else "stop"
    problem = Problem.of(
        ProblemCode.CONFLICT,
        f"superseded by the termination of worker {WORKER}",
    )
    given(*history).when(TERMINATE).then(
        superseded(operation_id=operation_id, problem=problem),
        TerminationRequested(operation_id="the-command"),
    )


def test_without_an_instance_the_termination_is_immediate():
    given(*IS_FAILED).when(TERMINATE).then(
        TerminationRequested(operation_id="the-command"), WorkerTerminated(operation_id="the-command")
    )


def test_terminating_again_is_skipped():
    given(*IS_TERMINATED).when(TERMINATE).then_nothing(data=True)


def test_tags_are_added():
    given(*IS_RUNNING).when(TAG).then(TagsUpdateRequested(operation_id="the-command", tags={"a": "1"}))


def test_tags_that_are_there_already_are_skipped_once_ec2_shows_that():
    same = UpdateCMLWorkerTags(worker_id=WORKER, tags={"Name": "lab"})
    given(*IS_RUNNING).found(instance()).when(same).then_nothing(data=dict(instance().tags))


def test_tags_have_a_lane_of_their_own():
    given(*IS_STOPPING).when(TAG).then(TagsUpdateRequested(operation_id="the-command", tags={"a": "1"}))
    given(*IS_STOPPED, TAGS_REQUESTED).when(START).then(StartRequested(operation_id="the-command"))
    again = UpdateCMLWorkerTags(worker_id=WORKER, tags={"a": "2"})
    given(*IS_RUNNING, TAGS_REQUESTED).when(again).then(
        TagsUpdateRequested(operation_id="the-command", tags={"a": "2"})
    )


def test_tags_are_not_there_already_while_an_earlier_request_would_replace_them():
    back = UpdateCMLWorkerTags(worker_id=WORKER, tags={"Name": "lab"})
    away = TagsUpdateRequested(operation_id="tag", tags={"Name": "other"})
    given(*IS_RUNNING, away).when(back).then(
        TagsUpdateRequested(operation_id="the-command", tags={"Name": "lab"})
    )


def test_the_tag_limit_counts_what_is_there_and_what_is_under_way():
    pending = TagsUpdateRequested(operation_id="tag", tags={f"p{n}": "" for n in range(40)})
    many = UpdateCMLWorkerTags(worker_id=WORKER, tags={f"t{n}": "" for n in range(8)})
    given(*IS_RUNNING, pending).found(instance()).when(many).then_rejected("ValidationFailed")
    given(*IS_RUNNING).when(many).then(TagsUpdateRequested(operation_id="the-command", tags=many.tags))


def test_no_tags_for_a_worker_that_is_being_terminated():
    given(*IS_TERMINATING).when(TAG).then_rejected("Conflict")


def test_a_status_update_asks_ec2():
    given(*IS_RUNNING).when(STATUS).then_asks(ASKED)


def test_a_status_update_without_change_leaves_no_event():
    given(*IS_RUNNING).found(instance()).when(STATUS).then_nothing(
        data={
            "instance_state": "running",
            "instance_status_check": None,
            "ec2_system_status_check": None,
        }
    )


def test_a_status_update_records_what_changed():
    seen = instance(instance_status_check="ok", ec2_system_status_check="ok", public_ip="1.2.3.4")
    given(*IS_RUNNING).found(seen).when(STATUS).then(
        InstanceStateObserved(
            instance_state=InstanceState.RUNNING,
            instance_status_check="ok",
            ec2_system_status_check="ok",
            public_ip="1.2.3.4",
            changed=("instance_status_check", "ec2_system_status_check", "public_ip"),
        )
    )


def test_an_instance_that_is_not_found_is_terminated():
    after = given(*IS_RUNNING).found().when(STATUS).then(WorkerTerminated())
    assert after.status is WorkerStatus.TERMINATED
    assert after.instance.state is InstanceState.TERMINATED


def test_an_instance_that_is_not_visible_yet_is_not():
    given(*IS_RUNNING).found().soon().when(STATUS).then_rejected(
        "EC2InstanceNotFound", outcome="failed", retryable=True
    )


def test_a_lasting_describe_failure_changes_nothing():
    problem = Problem(code=ProblemCode.EC2_STATUS_CHECK, title="no", detail="describe failed")
    given(*IS_RUNNING).found(problem=problem).when(STATUS).then_rejected("EC2StatusCheck", outcome="failed")
