"""What EC2 shows and how it differs from what is recorded: every difference, by its name, with EC2's reason."""

import pytest

from cml_contracts.events import (
    InstanceLaunched,
    InstanceStateObserved,
    InstanceStopping,
    LaunchFailed,
    LaunchRequested,
    StartFailed,
    StopFailed,
    StopRequested,
    TagsUpdateFailed,
    WorkerTerminated,
)
from cml_contracts.instance import Ec2Instance, InstanceState, StateReason, WorkerStatus
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.creation import launch_token
from cml_workers.domain.messages import InstanceObserved, OperationSucceeded
from support.given import WORKER, create, given, instance, launch
from support.situations import (
    IS_PENDING,
    IS_RUNNING,
    IS_STARTING,
    IS_STOPPED,
    IS_STOPPING,
    IS_TERMINATING,
    LAUNCHING,
    PENDING,
    RECREATED,
    STARTING,
    STOP_REQUESTED,
    TAGS_REQUESTED,
    TERMINATION_REQUESTED,
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


def never_ran(
    code: ProblemCode, reason: StateReason, state: InstanceState, *, retryable: bool = False
) -> Problem:
    detail = f"instance {instance().instance_id} of worker {WORKER} is {state} and never ran: {reason}"
    return Problem.of(code, detail, retryable=retryable)


ENDING = InstanceStateObserved(
    instance_state=InstanceState.SHUTTING_DOWN,
    state_reason=BROKEN,
    changed=("instance_state", "state_reason"),
    drift=True,
)


@pytest.mark.parametrize(
    ("reason", "code", "retryable"),
    [
        (BROKEN, ProblemCode.EC2_INSTANCE_CREATION, True),
        (VOLUME, ProblemCode.EC2_QUOTA_EXCEEDED, False),
        (StateReason(code="Server.InsufficientInstanceCapacity"), ProblemCode.EC2_CAPACITY, True),
        (StateReason(code="Client.InvalidKMSKey.InvalidState"), ProblemCode.EC2_INSTANCE_CREATION, False),
    ],
    ids=lambda value: str(value) if isinstance(value, StateReason) else "",
)
def test_a_create_whose_instance_died_while_pending_had_succeeded(
    reason: StateReason, code: ProblemCode, retryable: bool
):
    """It has failed, with EC2's reason, and may be tried again under its id."""
    problem = never_ran(code, reason, InstanceState.TERMINATED, retryable=retryable)
    dead = instance(InstanceState.TERMINATED, state_reason=reason)
    for history in (IS_PENDING, (*IS_PENDING, ENDING)):
        case = given(*history).reported(seen(dead))
        assert case.result("create").outcome == "succeeded"  # it was launched
        worker = case.then(LaunchFailed(operation_id="create", problem=problem))
        assert (worker.status, worker.launch_problem) == (WorkerStatus.FAILED, problem)
        result = case.result("create")
        assert (result.outcome, result.problem) == ("failed", problem)
        entry = case.ledger.entries["create"]
        assert entry.requested.command_id == "create"
        assert entry.requested.reply is not None  # whom it was answered
        after = given(*history, LaunchFailed(operation_id="create", problem=problem))
        after.when(create(instance_type="m5.large")).then(
            RECREATED,
            LaunchRequested(
                operation_id="the-command",
                launch=launch(generation=2, client_token=launch_token("default", WORKER, 2)),
            ),
        )


@pytest.mark.parametrize("shown", [InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED])
def test_a_create_whose_answer_came_when_the_instance_had_died_had_succeeded(shown: InstanceState):
    """The launch was asked for again under its token, and the instance was never seen pending."""
    launched = InstanceLaunched(operation_id="create", instance=instance(shown, state_reason=BROKEN))
    problem = never_ran(ProblemCode.EC2_INSTANCE_CREATION, BROKEN, InstanceState.TERMINATED, retryable=True)
    case = given(*LAUNCHING, launched).reported(seen(instance(InstanceState.TERMINATED, state_reason=BROKEN)))
    worker = case.then(LaunchFailed(operation_id="create", problem=problem))
    assert worker.status is WorkerStatus.FAILED


@pytest.mark.parametrize(
    "shown",
    [None, instance(InstanceState.TERMINATED), instance(InstanceState.TERMINATED, state_reason=BY_USER)],
)
@pytest.mark.parametrize("launched", [True, False])
def test_the_reason_of_its_end_outlasts_what_comes_later(shown: Ec2Instance | None, *, launched: bool):
    """Somebody terminates it once more, or nobody looks for longer than EC2 shows it."""
    ending = instance(InstanceState.SHUTTING_DOWN, state_reason=BROKEN)
    history = (
        (*LAUNCHING, InstanceLaunched(operation_id="create", instance=ending))
        if launched
        else (*IS_PENDING, ENDING)
    )
    problem = never_ran(ProblemCode.EC2_INSTANCE_CREATION, BROKEN, InstanceState.TERMINATED, retryable=True)
    given(*history).reported(seen(shown)).then(LaunchFailed(operation_id="create", problem=problem))
    given(*IS_RUNNING, ENDING).reported(seen(shown)).then(
        WorkerTerminated(reason=ending.reason, state_reason=BROKEN)
    )


def test_what_is_pending_when_the_instance_dies_at_its_birth_fails_for_that_reason():
    problem = never_ran(ProblemCode.EC2_INSTANCE_CREATION, BROKEN, InstanceState.TERMINATED, retryable=True)
    given(*IS_PENDING, TAGS_REQUESTED, STOP_REQUESTED).reported(
        seen(instance(InstanceState.TERMINATED, state_reason=BROKEN))
    ).then(
        TagsUpdateFailed(operation_id="tag", problem=problem),
        StopFailed(operation_id="stop", problem=problem),
        LaunchFailed(operation_id="create", problem=problem),
    )


BY_SOMEBODY = [
    StateReason(code="Client.UserInitiatedShutdown", message="User initiated shutdown"),
    StateReason(code="Client.InstanceInitiatedShutdown"),
    None,
]


@pytest.mark.parametrize("reason", BY_SOMEBODY, ids=str)
def test_an_instance_that_somebody_ends_while_it_is_pending_is_no_failure_of_the_launch(
    reason: StateReason | None,
):
    ended = instance(InstanceState.TERMINATED, state_reason=reason)
    case = given(*IS_PENDING).reported(seen(ended))
    worker = case.then(WorkerTerminated(reason=str(reason) if reason else None, state_reason=reason))
    assert worker.status is WorkerStatus.TERMINATED
    assert case.result("create").outcome == "succeeded"


def test_an_instance_that_has_run_and_is_ended_by_ec2_was_launched_all_the_same():
    ran = InstanceStateObserved(instance_state=RUNNING)
    case = given(*IS_PENDING, ran).reported(seen(instance(InstanceState.TERMINATED, state_reason=BROKEN)))
    case.then(WorkerTerminated(reason=str(BROKEN), state_reason=BROKEN))
    assert case.result("create").outcome == "succeeded"


def test_who_asked_for_the_end_of_what_dies_at_its_birth_gets_it():
    dead = instance(InstanceState.TERMINATED, state_reason=BROKEN)
    case = given(*IS_PENDING, TERMINATION_REQUESTED).reported(seen(dead))
    case.then(WorkerTerminated(operation_id="terminate", reason=str(BROKEN), state_reason=BROKEN))


def test_a_start_whose_instance_fell_back_had_succeeded():
    """It has failed, with EC2's reason; the worker is stopped, and can be started again."""
    problem = never_ran(ProblemCode.EC2_INSTANCE_OPERATION, BROKEN, STOPPED, retryable=True)
    fallen = instance(STOPPED, state_reason=BROKEN)
    back = InstanceStateObserved(
        instance_state=STOPPED, state_reason=BROKEN, changed=("instance_state", "state_reason"), drift=True
    )
    case = given(*IS_STARTING, STARTING).reported(seen(fallen))
    worker = case.then(StartFailed(operation_id="start", problem=problem), back)
    assert worker.status is WorkerStatus.STOPPED
    assert worker.instance.reason == "Server.InternalError: Internal error on launch"
    result = case.result("start")
    assert (result.outcome, result.problem) == ("failed", problem)
    again = InstanceStateObserved(
        instance_state=RUNNING, changed=("instance_state", "state_reason"), drift=True
    )
    history = (*IS_STARTING, STARTING, StartFailed(operation_id="start", problem=problem), back)
    worker = given(*history).reported(seen(instance(RUNNING))).then(again)
    assert worker.instance.reason is None


def test_a_stop_that_finds_a_start_fallen_back_says_of_both_what_became_of_them():
    problem = never_ran(ProblemCode.EC2_INSTANCE_OPERATION, BROKEN, STOPPED, retryable=True)
    fallen = instance(STOPPED, state_reason=BROKEN)
    again = StopRequested(operation_id="stop again")
    given(*IS_STARTING, STARTING, again).reported(
        OperationSucceeded(worker_id=WORKER, operation_id="stop again", instance=fallen)
    ).then(
        StartFailed(operation_id="start", problem=problem),
        InstanceStopping(operation_id="stop again", instance=fallen),
    )


def test_an_instance_that_somebody_stops_while_it_starts_was_started_all_the_same():
    stopped = instance(STOPPED, state_reason=BY_USER)
    case = given(*IS_STARTING, STARTING).reported(seen(stopped))
    case.then(
        InstanceStateObserved(
            instance_state=STOPPED,
            state_reason=BY_USER,
            changed=("instance_state", "state_reason"),
            drift=True,
        )
    )
    assert case.result("start").outcome == "succeeded"


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


def test_a_launch_that_is_found_dead_has_failed_for_that_reason():
    dead = instance(InstanceState.TERMINATED, state_reason=VOLUME)
    report = OperationSucceeded(worker_id=WORKER, operation_id="create", instance=dead)
    problem = never_ran(ProblemCode.EC2_QUOTA_EXCEEDED, VOLUME, InstanceState.TERMINATED)
    given(*LAUNCHING).reported(report).then(LaunchFailed(operation_id="create", problem=problem))


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
