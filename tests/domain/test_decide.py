"""Each rule of the domain, in given/when/then."""

from typing import Any
from uuid import uuid4

import pytest

from cml_contracts.commands import (
    CreateCMLWorker,
    ImportCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.events import (
    InstanceLaunched,
    InstanceStarting,
    InstanceStateObserved,
    InstanceStopping,
    LaunchFailed,
    LaunchRequested,
    OperationOverdue,
    StartFailed,
    StartRequested,
    StopFailed,
    StopRequested,
    TagsUpdated,
    TagsUpdateFailed,
    TagsUpdateRequested,
    TerminationFailed,
    TerminationRequested,
    WorkerImported,
    WorkerTerminated,
)
from cml_contracts.instance import DEPLOYMENT_TAG, WORKER_TAG, InstanceState, WorkerStatus
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.creation import launch_token
from cml_workers.domain.messages import (
    ImageLookup,
    InstanceLookup,
    InstanceObserved,
    OperationFailed,
    OperationOutstanding,
    OperationSucceeded,
)
from support.given import WORKER, created, given, instance, launch

CREATED = created()
LAUNCH_REQUESTED = LaunchRequested(operation_id="create", launch=launch())
PENDING = InstanceLaunched(operation_id="create", instance=instance(InstanceState.PENDING))
RUNNING = InstanceLaunched(operation_id="create", instance=instance(InstanceState.RUNNING))
QUOTA = Problem(code=ProblemCode.EC2_QUOTA_EXCEEDED, title="quota", detail="no vCPU left")
LAUNCH_FAILED = LaunchFailed(operation_id="create", problem=QUOTA)
STOP_REQUESTED = StopRequested(operation_id="stop")
STOPPING = InstanceStopping(operation_id="stop", instance=instance(InstanceState.STOPPING))
STOPPED = InstanceStopping(operation_id="stop", instance=instance(InstanceState.STOPPED))
START_REQUESTED = StartRequested(operation_id="start")
STARTING = InstanceStarting(operation_id="start", instance=instance(InstanceState.PENDING))
TERMINATION_REQUESTED = TerminationRequested(operation_id="terminate")
TERMINATED = WorkerTerminated(operation_id="terminate")
TAGS_REQUESTED = TagsUpdateRequested(operation_id="tag", tags={"a": "1"})

LAUNCHING = (CREATED, LAUNCH_REQUESTED)
IS_PENDING = (*LAUNCHING, PENDING)
IS_RUNNING = (*LAUNCHING, RUNNING)
IS_STOPPING = (*IS_RUNNING, STOP_REQUESTED)
IS_STOPPED = (*IS_STOPPING, STOPPED)
IS_STARTING = (*IS_STOPPED, START_REQUESTED)
IS_FAILED = (*LAUNCHING, LAUNCH_FAILED)
IS_TERMINATING = (*IS_RUNNING, TERMINATION_REQUESTED)
IS_TERMINATED = (*IS_TERMINATING, TERMINATED)

START = StartCMLWorker(worker_id=WORKER)
STOP = StopCMLWorker(worker_id=WORKER)
TERMINATE = TerminateCMLWorker(worker_id=WORKER)
TAG = UpdateCMLWorkerTags(worker_id=WORKER, tags={"a": "1"})
STATUS = UpdateCMLWorkerStatus(worker_id=WORKER)


def create(**changes: Any) -> CreateCMLWorker:
    fields: dict[str, Any] = {
        "name": "lab",
        "aws_region": "us-east-1",
        "instance_type": "m5.large",
        "ami_id": "ami-11111111",
        "created_by": "ann",
        "worker_id": WORKER,
    }
    return CreateCMLWorker(**(fields | changes))


def requested_launch(**changes: Any) -> LaunchRequested:
    return LaunchRequested(operation_id="the-command", launch=launch(**changes))


# -- create -----------------------------------------------------------------------------------------------


def test_creating_stores_every_launch_parameter_before_aws_is_called():
    given().when(create()).then(CREATED, requested_launch())


def test_the_tags_of_a_launch_are_the_callers_the_deployments_and_ours():
    given().under(default_tags={"team": "net"}, deployment="blue").when(create(tags={"a": "1"})).then(
        CREATED.model_copy(update={"tags": {"a": "1"}}),
        requested_launch(
            tags={
                "Name": "lab",
                "team": "net",
                "a": "1",
                WORKER_TAG: str(WORKER),
                DEPLOYMENT_TAG: "blue",
            },
            client_token=launch_token("blue", WORKER, 1),
        ),
    )


def test_the_settings_image_id_of_the_region_is_taken_when_none_is_given():
    given().when(create(ami_id=None)).then(CREATED, requested_launch())


def test_a_given_image_id_comes_before_a_given_name():
    given().when(create(ami_name="other")).then(
        CREATED.model_copy(update={"ami_name": "other"}), requested_launch(ami_name="other")
    )


def test_a_given_image_name_comes_before_the_settings_and_is_looked_up():
    given().when(create(ami_id=None, ami_name="mine")).then_asks(
        ImageLookup(aws_region="us-east-1", ami_name="mine")
    )


def test_the_settings_image_name_is_looked_up_where_the_region_has_no_id():
    given().when(create(ami_id=None, aws_region="eu-west-1")).then_asks(
        ImageLookup(aws_region="eu-west-1", ami_name="cml")
    )


def test_what_was_looked_up_is_stored():
    given().found(image_id="ami-22222222").when(create(ami_id=None, ami_name="mine")).then(
        CREATED.model_copy(update={"ami_id": "ami-22222222", "ami_name": "mine"}),
        requested_launch(ami_id="ami-22222222", ami_name="mine"),
    )


def test_a_name_without_an_image_fails():
    given().found().when(create(ami_id=None, ami_name="mine")).then_rejected(
        "EC2InvalidParameter", outcome="failed"
    )


def test_a_region_without_an_image_fails():
    given().when(create(ami_id=None, aws_region="ap-south-1")).then_rejected(
        "EC2InvalidParameter", outcome="failed"
    )


def test_a_lookup_that_ec2_refuses_fails_with_its_problem():
    given().found(problem=QUOTA).when(create(ami_id=None, ami_name="mine")).then_rejected(
        "EC2QuotaExceeded", outcome="failed"
    )


@pytest.mark.parametrize("history", [IS_RUNNING, IS_FAILED, IS_TERMINATED])
def test_a_worker_is_created_once(history):
    given(*history).when(create()).then_rejected("Conflict")


def test_regions_and_types_can_be_limited():
    given().under(allowed_regions=frozenset({"eu-west-1"})).when(create()).then_rejected("ValidationFailed")
    given().under(allowed_instance_types=frozenset({"m5.metal"})).when(create()).then_rejected(
        "ValidationFailed"
    )


def test_fifty_tags_are_the_limit_ours_included():
    given().when(create(tags={f"t{n}": "" for n in range(48)})).then_rejected("ValidationFailed")
    given().when(create(tags={f"t{n}": "" for n in range(47)})).then(
        CREATED.model_copy(update={"tags": {f"t{n}": "" for n in range(47)}}),
        requested_launch(tags={**launch().tags, **{f"t{n}": "" for n in range(47)}}),
    )


def test_the_client_token_is_stable_short_and_its_own_for_each_generation():
    token = launch_token("default", WORKER, 1)
    assert token == launch_token("default", WORKER, 1)
    others = {
        launch_token("default", WORKER, 2),
        launch_token("default", uuid4(), 1),
        launch_token("b", WORKER, 1),
    }
    assert len({token, *others}) == 4
    assert len(token) == 64


# -- start and stop, mirror images ------------------------------------------------------------------------


def test_a_stopped_worker_starts():
    given(*IS_STOPPED).when(START).then(StartRequested(operation_id="the-command"))


def test_a_running_worker_stops():
    given(*IS_RUNNING).when(STOP).then(StopRequested(operation_id="the-command"))


@pytest.mark.parametrize("history", [IS_RUNNING, IS_PENDING, (*IS_STARTING, STARTING)])
def test_starting_what_runs_or_starts_is_skipped(history):
    given(*history).when(START).then_nothing(data=True)


@pytest.mark.parametrize("history", [IS_STOPPED, (*IS_STOPPING, STOPPING)])
def test_stopping_what_stands_or_stops_is_skipped(history):
    given(*history).when(STOP).then_nothing(data=True)


def test_a_stopping_worker_cannot_be_started():
    given(*IS_STOPPING, STOPPING).when(START).then_rejected("Conflict", retryable=True)


@pytest.mark.parametrize("command", [START, STOP])
def test_what_is_pending_may_still_fail_so_nothing_is_satisfied_yet(command):
    given(*IS_STARTING).when(command).then_rejected("Conflict", retryable=True)
    given(*IS_STOPPING).when(command).then_rejected("Conflict", retryable=True)
    given(*IS_TERMINATING).when(command).then_rejected("Conflict")


def test_a_worker_whose_instance_is_pending_can_be_stopped():
    given(*IS_PENDING).when(STOP).then(StopRequested(operation_id="the-command"))
    given(*IS_STARTING, STARTING).when(STOP).then(StopRequested(operation_id="the-command"))


# -- what every command on a worker needs -----------------------------------------------------------------


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


# -- terminate --------------------------------------------------------------------------------------------


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


# -- tags -------------------------------------------------------------------------------------------------


def test_tags_are_added():
    given(*IS_RUNNING).when(TAG).then(TagsUpdateRequested(operation_id="the-command", tags={"a": "1"}))


def test_tags_that_are_there_already_are_skipped():
    tags = dict(instance().tags)
    given(*IS_RUNNING).when(UpdateCMLWorkerTags(worker_id=WORKER, tags={"Name": "lab"})).then_nothing(
        data=tags
    )


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
    given(*IS_RUNNING, pending).when(many).then_rejected("ValidationFailed")
    given(*IS_RUNNING).when(many).then(TagsUpdateRequested(operation_id="the-command", tags=many.tags))


def test_no_tags_for_a_worker_that_is_being_terminated():
    given(*IS_TERMINATING).when(TAG).then_rejected("Conflict")


# -- status -----------------------------------------------------------------------------------------------

ASKED = InstanceLookup(aws_region="us-east-1", instance_id="i-0123456789abcdef0", seen_revision=2)


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
        )
    )


def test_an_instance_that_is_not_found_is_terminated():
    after = given(*IS_RUNNING).found().when(STATUS).then(WorkerTerminated())
    assert after.status is WorkerStatus.TERMINATED
    assert after.instance.state is InstanceState.TERMINATED


def test_an_imported_instance_may_be_as_new_as_its_import():
    given(*adoption("earlier"), worker_id=ADOPTED).soon().found().when(
        UpdateCMLWorkerStatus(worker_id=ADOPTED)
    ).then_rejected("EC2InstanceNotFound", outcome="failed", retryable=True)


def test_an_instance_that_is_not_visible_yet_is_not():
    given(*IS_RUNNING).found().soon().when(STATUS).then_rejected(
        "EC2InstanceNotFound", outcome="failed", retryable=True
    )


def test_a_lasting_describe_failure_changes_nothing():
    problem = Problem(code=ProblemCode.EC2_STATUS_CHECK, title="no", detail="describe failed")
    given(*IS_RUNNING).found(problem=problem).when(STATUS).then_rejected("EC2StatusCheck", outcome="failed")


# -- import -----------------------------------------------------------------------------------------------

IMPORT = ImportCMLWorker(aws_region="us-east-1", instance_id="i-0123456789abcdef0", created_by="ann")
ADOPTED = IMPORT.worker("any")


def imported(state: InstanceState = InstanceState.RUNNING):
    return instance(state, tags={"Name": "found"})


def adoption(operation_id: str = "the-command"):
    return (
        WorkerImported(operation_id=operation_id, name="found", instance=imported(), created_by="ann"),
        TagsUpdateRequested(
            operation_id=f"{operation_id} adopt",
            tags={WORKER_TAG: str(ADOPTED), DEPLOYMENT_TAG: "default"},
        ),
    )


def test_an_import_looks_at_the_instance_and_adopts_it():
    asked = ASKED.model_copy(update={"seen_revision": -1})
    given(worker_id=ADOPTED).when(IMPORT).then_asks(asked)
    case = given(worker_id=ADOPTED).found(imported()).when(IMPORT)
    assert case.then(*adoption()).status is WorkerStatus.RUNNING
    assert case.result("the-command").data["aws_instance_id"] == "i-0123456789abcdef0"


def test_the_same_instance_twice_is_the_same_worker():
    assert IMPORT.worker("one") == IMPORT.worker("two")
    known = given(*adoption("earlier"), worker_id=ADOPTED)
    known.when(IMPORT).then_nothing(data=known.worker.dto.model_dump(mode="json"))


def test_an_import_is_not_met_by_a_worker_of_another_instance():
    other = CREATED.model_copy(update={"name": "other"})
    launched = InstanceLaunched(operation_id="create", instance=instance(instance_id="i-1111111111111111f"))
    for history in ((other, LAUNCH_REQUESTED), (other, LAUNCH_REQUESTED, launched)):
        given(*history, worker_id=ADOPTED).when(IMPORT).then_rejected("Conflict")


def test_an_instance_that_is_not_there_cannot_be_imported():
    given(worker_id=ADOPTED).found().when(IMPORT).then_rejected("EC2InstanceNotFound", outcome="failed")


@pytest.mark.parametrize("state", [InstanceState.TERMINATED, InstanceState.SHUTTING_DOWN])
def test_an_instance_that_ends_cannot_be_imported(state):
    given(worker_id=ADOPTED).found(imported(state)).when(IMPORT).then_rejected(
        "EC2InstanceOperation", outcome="failed"
    )


def test_another_workers_instance_cannot_be_imported():
    given(worker_id=ADOPTED).found(instance()).when(IMPORT).then_rejected("Conflict")


def test_a_terminated_worker_is_not_imported_again():
    given(*adoption("earlier"), WorkerTerminated(), worker_id=ADOPTED).when(IMPORT).then_rejected(
        "WorkerTerminated"
    )


# -- outcomes ---------------------------------------------------------------------------------------------

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


# -- observations -----------------------------------------------------------------------------------------


def seen(state: InstanceState, revision: int = 99) -> InstanceObserved:
    return InstanceObserved(worker_id=WORKER, seen_revision=revision, instance=instance(state))


def test_an_observation_is_recorded_on_change_only():
    given(*IS_PENDING).reported(seen(InstanceState.RUNNING)).then(
        InstanceStateObserved(instance_state=InstanceState.RUNNING)
    )
    given(*IS_RUNNING).reported(seen(InstanceState.RUNNING)).then()


def test_what_nothing_decided_explains_is_drift_and_never_refused():
    given(*IS_STOPPED).reported(seen(InstanceState.RUNNING)).then(
        InstanceStateObserved(instance_state=InstanceState.RUNNING, drift=True)
    )
    given(*IS_RUNNING).reported(seen(InstanceState.STOPPED)).then(
        InstanceStateObserved(instance_state=InstanceState.STOPPED, drift=True)
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
    given(*history).reported(seen(state)).then(InstanceStateObserved(instance_state=state))


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


def test_a_deadline_of_a_settled_operation_is_nothing():
    given(*IS_RUNNING).reported(OperationOutstanding(worker_id=WORKER, operation_id="create")).then()
