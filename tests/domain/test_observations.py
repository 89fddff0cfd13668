"""What EC2 shows and how it differs from what is recorded: every difference, by its name, with EC2's reason."""

import pytest

from cml_contracts.events import InstanceStateObserved, StopFailed, WorkerTerminated
from cml_contracts.instance import Ec2Instance, InstanceState, StateReason
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.messages import InstanceObserved, OperationSucceeded
from support.given import WORKER, given, instance
from support.situations import (
    IS_PENDING,
    IS_RUNNING,
    IS_STARTING,
    IS_STOPPED,
    IS_STOPPING,
    IS_TERMINATING,
    LAUNCHING,
    PENDING,
    STARTING,
    TAGS_REQUESTED,
)

RUNNING, STOPPED = InstanceState.RUNNING, InstanceState.STOPPED
VOLUME = StateReason(
    code="Client.VolumeLimitExceeded", message="Client.VolumeLimitExceeded: Volume limit exceeded"
)
BROKEN = StateReason(code="Server.InternalError", message="Internal error on launch")
BY_USER = StateReason(
    code="Client.UserInitiatedShutdown", message="Client.UserInitiatedShutdown: User initiated shutdown"
)
BY_USER_AT = "User initiated (2026-01-02 03:04:05 GMT)"


def seen(found: Ec2Instance | None) -> InstanceObserved:
    return InstanceObserved(worker_id=WORKER, seen_revision=99, instance=found)


# -- reasons ----------------------------------------------------------------------------------------------


def test_an_instance_that_dies_after_the_launch_ends_its_worker_with_the_reason():
    dead = instance(InstanceState.TERMINATED, state_reason=VOLUME, state_transition_reason=VOLUME.code)
    case = given(*IS_PENDING).reported(seen(dead))
    worker = case.then(
        WorkerTerminated(
            reason="Client.VolumeLimitExceeded: Volume limit exceeded",
            state_reason=VOLUME,
            state_transition_reason=VOLUME.code,
        )
    )
    assert worker.instance.reason == "Client.VolumeLimitExceeded: Volume limit exceeded"


def test_an_instance_that_falls_back_after_a_start_says_why_until_it_runs():
    fallen = instance(STOPPED, state_reason=BROKEN)
    back = InstanceStateObserved(
        instance_state=STOPPED, state_reason=BROKEN, changed=("instance_state", "state_reason"), drift=True
    )
    worker = given(*IS_STARTING, STARTING).reported(seen(fallen)).then(back)
    assert worker.instance.reason == "Server.InternalError: Internal error on launch"
    again = InstanceStateObserved(
        instance_state=RUNNING, changed=("instance_state", "state_reason"), drift=True
    )
    worker = given(*IS_STARTING, STARTING, back).reported(seen(instance(RUNNING))).then(again)
    assert worker.instance.reason is None


@pytest.mark.parametrize("history", [IS_TERMINATING, IS_RUNNING])
def test_who_terminated_an_instance_is_recorded_whoever_it_was(history):
    ended = instance(InstanceState.TERMINATED, state_reason=BY_USER, state_transition_reason=BY_USER_AT)
    report = (
        OperationSucceeded(worker_id=WORKER, operation_id="terminate", instance=ended)
        if history is IS_TERMINATING
        else seen(ended)
    )
    given(*history).reported(report).then(
        WorkerTerminated(
            operation_id="terminate" if history is IS_TERMINATING else None,
            reason=BY_USER.message,
            state_reason=BY_USER,
            state_transition_reason=BY_USER_AT,
        )
    )


def test_an_operation_that_the_end_answers_does_not_hide_the_reason():
    meanwhile = Problem.of(ProblemCode.WORKER_TERMINATED, f"worker {WORKER} was terminated meanwhile")
    dead = instance(InstanceState.TERMINATED, state_transition_reason=BY_USER_AT)
    given(*IS_STOPPING).reported(seen(dead)).then(
        StopFailed(operation_id="stop", problem=meanwhile),
        WorkerTerminated(reason=BY_USER_AT, state_transition_reason=BY_USER_AT),
    )


def test_a_launch_that_is_found_dead_says_why():
    dead = instance(InstanceState.TERMINATED, state_reason=VOLUME)
    report = OperationSucceeded(worker_id=WORKER, operation_id="create", instance=dead)
    case = given(*LAUNCHING).reported(report)
    decided = case._decide(case.worker)
    assert [event.reason for event in decided.events if isinstance(event, WorkerTerminated)] == [
        VOLUME.message
    ]


# -- differences ------------------------------------------------------------------------------------------


def test_a_type_that_somebody_changed_is_drift():
    resized = instance(STOPPED, instance_type="m5.xlarge")
    worker = (
        given(*IS_STOPPED)
        .reported(seen(resized))
        .then(
            InstanceStateObserved(
                instance_state=STOPPED, instance_type="m5.xlarge", changed=("instance_type",), drift=True
            )
        )
    )
    assert worker.instance.instance_type == "m5.xlarge"


def test_tags_that_somebody_changed_are_drift_and_then_the_worker_s():
    tags = {**instance().tags, "course": "ccnp"}
    worker = (
        given(*IS_RUNNING)
        .reported(seen(instance(tags=tags)))
        .then(InstanceStateObserved(instance_state=RUNNING, tags=tags, changed=("tags",), drift=True))
    )
    assert worker.tags == worker.instance.tags == tags


def test_tags_that_somebody_removed_are_gone():
    worker = (
        given(*IS_RUNNING)
        .reported(seen(instance(tags={})))
        .then(InstanceStateObserved(instance_state=RUNNING, tags={}, changed=("tags",), drift=True))
    )
    assert worker.tags == {}


def test_tags_that_a_pending_update_asks_for_are_no_drift():
    tags = {**instance().tags, "a": "1"}
    given(*IS_RUNNING, TAGS_REQUESTED).reported(seen(instance(tags=tags))).then(
        InstanceStateObserved(instance_state=RUNNING, tags=tags, changed=("tags",))
    )


CHECKED = InstanceStateObserved(
    instance_state=RUNNING,
    instance_status_check="ok",
    ec2_system_status_check="ok",
    changed=("instance_status_check", "ec2_system_status_check"),
)


def test_status_checks_that_were_not_asked_for_have_not_changed():
    given(*IS_RUNNING, CHECKED).reported(seen(instance())).then()
    worker = (
        given(*IS_RUNNING, CHECKED)
        .reported(seen(instance(public_ip="1.2.3.4")))
        .then(
            InstanceStateObserved(
                instance_state=RUNNING,
                instance_status_check="ok",
                ec2_system_status_check="ok",
                public_ip="1.2.3.4",
                changed=("public_ip",),
            )
        )
    )
    assert worker.instance.instance_status_check == "ok"


def test_status_checks_of_a_running_instance_say_nothing_of_a_stopped_one():
    worker = (
        given(*IS_RUNNING, CHECKED)
        .reported(seen(instance(STOPPED)))
        .then(InstanceStateObserved(instance_state=STOPPED, changed=("instance_state",), drift=True))
    )
    assert worker.instance.instance_status_check is None


def test_an_observation_of_a_version_that_did_not_say_what_changed_changes_what_it_did():
    worker = given(*IS_RUNNING, CHECKED, InstanceStateObserved(instance_state=STOPPED)).worker
    assert (worker.instance.state, worker.instance.instance_status_check) == (STOPPED, None)
    assert (worker.tags, worker.instance.instance_type) == (instance().tags, "m5.large")


def test_an_observation_of_a_later_version_may_name_what_this_one_does_not_know():
    newer = InstanceStateObserved(instance_state=STOPPED, changed=("instance_state", "host_id"))
    assert given(*IS_RUNNING, newer).worker.instance.state is STOPPED


# -- what comes late --------------------------------------------------------------------------------------


def test_a_report_from_before_a_tag_update_does_not_bring_back_the_tags_of_then():
    tagged = InstanceStateObserved(instance_state=STOPPED, tags={"new": "1"}, changed=("tags",), drift=True)
    late = OperationSucceeded(
        worker_id=WORKER, operation_id="start", seen_revision=0, instance=instance(RUNNING)
    )
    assert given(*IS_STARTING, tagged).reported(late)._decide(given(*IS_STARTING, tagged).worker).events[
        0
    ].instance.tags == {"new": "1"}


def test_a_power_operation_shows_what_somebody_did_to_the_tags():
    shown = instance(InstanceState.PENDING, tags={"theirs": "1"})
    report = OperationSucceeded(worker_id=WORKER, operation_id="start", seen_revision=99, instance=shown)
    worker = given(*IS_STARTING).reported(report).then(STARTING.model_copy(update={"instance": shown}))
    assert worker.tags == {"theirs": "1"}
    assert PENDING.instance.tags != worker.tags
