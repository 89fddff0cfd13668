"""The rules of a worker's beginning, in given/when/then."""

from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from cml_contracts.commands import (
    ImportCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
)
from cml_contracts.events import (
    ImportFailed,
    InstanceLaunched,
    LaunchFailed,
    LaunchRequested,
    OperationRefused,
    StopFailed,
    StopRequested,
    TagsUpdated,
    TagsUpdateFailed,
    TagsUpdateRequested,
    TerminationRequested,
    WorkerImported,
    WorkerRecreated,
    WorkerTerminated,
)
from cml_contracts.instance import CONSENT_TAG, DEPLOYMENT_TAG, WORKER_TAG, InstanceState, WorkerStatus
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.creation import launch_token
from cml_workers.domain.messages import (
    ImageLookup,
    OperationFailed,
)
from support.given import WORKER, given, instance, launch
from support.given import create as given_create
from support.situations import (
    ASKED,
    CREATED,
    IS_FAILED,
    IS_RUNNING,
    IS_STOPPED,
    IS_TERMINATED,
    IS_TERMINATING,
    LAUNCH_REQUESTED,
    LAUNCHING,
    LAUNCHING_AGAIN,
    QUOTA,
    RECREATED,
    TERMINATED,
    TERMINATION_REQUESTED,
)

create = partial(given_create, instance_type="m5.large")


def requested_launch(**changes: Any) -> LaunchRequested:
    return LaunchRequested(operation_id="the-command", launch=launch(**changes))


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


def test_a_region_without_an_image_is_rejected_and_the_answer_says_where_there_is_one():
    case = given().when(create(ami_id=None, aws_region="ap-south-1"))
    case.then_rejected(
        "ValidationFailed", saying="has none in region ap-south-1; it has one in: eu-west-1, us-east-1"
    )


def test_a_lookup_that_ec2_refuses_fails_with_its_problem():
    given().found(problem=QUOTA).when(create(ami_id=None, ami_name="mine")).then_rejected(
        "EC2QuotaExceeded", outcome="failed"
    )


@pytest.mark.parametrize("history", [LAUNCHING, IS_RUNNING, IS_STOPPED, IS_TERMINATING, LAUNCHING_AGAIN])
def test_a_worker_is_created_once_unless_its_launch_failed(history):
    given(*history).when(create()).then_rejected("Conflict")


def test_a_create_that_failed_could_not_be_retried_with_its_id():
    """It is launched again, under a token of its own, and as the new command says."""
    token = launch_token("default", WORKER, 2)
    worker = (
        given(*IS_FAILED)
        .when(create(name="lab 2", instance_type="m5.metal", cml_version="2.9"))
        .then(
            RECREATED.model_copy(update={"name": "lab 2", "instance_type": "m5.metal", "cml_version": "2.9"}),
            requested_launch(
                instance_type="m5.metal",
                tags={**launch().tags, "Name": "lab 2"},
                generation=2,
                client_token=token,
            ),
        )
    )
    assert (worker.status, worker.launch_problem) == (WorkerStatus.PENDING, None)
    assert (worker.name, worker.generation) == ("lab 2", 2)


def test_each_launch_of_a_worker_has_a_generation_of_its_own():
    failed_again = (*LAUNCHING_AGAIN, LaunchFailed(operation_id="again", problem=QUOTA))
    worker = (
        given(*failed_again)
        .when(create())
        .then(
            WorkerRecreated(**dict(CREATED), generation=3),
            requested_launch(generation=3, client_token=launch_token("default", WORKER, 3)),
        )
    )
    assert worker.generation == 3


def test_a_worker_that_is_created_again_stays_whose_it_was():
    case = given(*IS_FAILED).when(create(created_by="bob"))
    created_at = case.worker.created_at
    worker = case.then(
        RECREATED.model_copy(update={"created_by": "bob"}),
        requested_launch(generation=2, client_token=launch_token("default", WORKER, 2)),
    )
    assert (worker.owner, worker.created_at) == ("ann", created_at)


def test_a_worker_is_created_again_in_its_region_where_something_may_be_left_of_it():
    given(*IS_FAILED).when(create(aws_region="eu-west-1")).then_rejected(
        "Conflict", saying="in region us-east-1"
    )


@pytest.mark.parametrize("history", [IS_TERMINATED, (*IS_FAILED, TERMINATION_REQUESTED, TERMINATED)])
def test_a_create_of_a_terminated_worker_was_called_a_conflict(history):
    given(*history).when(create()).then_rejected("WorkerTerminated")


def test_what_was_refused_and_may_still_have_been_launched_is_not_launched_again():
    """It has not failed before it is known that no earlier call got through (decision 12)."""
    refused = OperationRefused(operation_id="create", problem=QUOTA)
    given(*LAUNCHING, refused).when(create()).then_rejected("Conflict")


def test_what_is_created_again_by_name_has_its_image_looked_up_again():
    given(*IS_FAILED).when(create(ami_id=None, ami_name="mine")).then_asks(
        ImageLookup(aws_region="us-east-1", ami_name="mine")
    )


def test_the_launch_that_failed_before_is_still_on_record():
    case = given(*LAUNCHING_AGAIN, InstanceLaunched(operation_id="again", instance=instance()))
    assert case.worker.status is WorkerStatus.RUNNING
    assert [case.result(each).outcome for each in ("create", "again")] == ["failed", "succeeded"]


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


IMPORT = ImportCMLWorker(aws_region="us-east-1", instance_id="i-0123456789abcdef0", created_by="ann")
ADOPTED = IMPORT.worker("any")


FOUND_TAGS = {"Name": "found", CONSENT_TAG: "default"}


def imported(state: InstanceState = InstanceState.RUNNING):
    return instance(state, tags=FOUND_TAGS)


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


def test_the_same_instance_twice_is_the_same_worker():
    assert IMPORT.worker("one") == IMPORT.worker("two")
    pending = given(*adoption("earlier"), worker_id=ADOPTED)
    pending.found(imported()).when(IMPORT).then_rejected(
        "Conflict", saying="is being imported", retryable=True
    )
    known = given(*adoption("earlier"), ADOPTED_NOW, worker_id=ADOPTED).found(instance(tags=OURS))
    known.when(IMPORT).then_nothing(data=known.worker.dto.model_dump(mode="json"))


OURS = {**FOUND_TAGS, **adoption()[1].tags}
ADOPTED_NOW = TagsUpdated(operation_id="earlier adopt", tags=OURS)
REFUSED = Problem.of(ProblemCode.EC2_AUTHENTICATION, "UnauthorizedOperation")
NOT_OURS = OperationFailed(worker_id=ADOPTED, operation_id="earlier adopt", problem=REFUSED)


def test_an_import_is_answered_when_the_instance_bears_our_tags():
    assert given(*adoption("earlier"), worker_id=ADOPTED).ledger.entries["earlier"].result is None
    adopted = given(*adoption("earlier"), ADOPTED_NOW, worker_id=ADOPTED).result("earlier")
    assert adopted.data["aws_instance_id"] == "i-0123456789abcdef0"
    assert adopted.data["tags"] == imported().tags, "as it was found"


def test_an_import_that_ec2_refuses_has_failed_and_what_was_asked_for_since_with_it():
    """The worker does not keep what may be another deployment's, and may be imported again."""
    since = (StopRequested(operation_id="stop"), TagsUpdateRequested(operation_id="tags", tags={"a": "1"}))
    case = given(*adoption("earlier"), *since, worker_id=ADOPTED).reported(NOT_OURS)
    failed = case.then(
        TagsUpdateFailed(operation_id="earlier adopt", problem=REFUSED),
        StopFailed(operation_id="stop", problem=REFUSED),
        TagsUpdateFailed(operation_id="tags", problem=REFUSED),
        ImportFailed(operation_id="earlier", problem=REFUSED),
    )
    assert (failed.status, failed.instance, failed.operations) == (WorkerStatus.FAILED, None, {})
    assert case.result("earlier").problem == REFUSED
    assert case.result("earlier").outcome == "failed"


def test_an_import_that_failed_may_be_asked_for_again():
    failed = (
        *adoption("earlier"),
        TagsUpdateFailed(operation_id="earlier adopt", problem=REFUSED),
        ImportFailed(operation_id="earlier", problem=REFUSED),
    )
    case = given(*failed, worker_id=ADOPTED).found(imported()).when(IMPORT)
    assert case.then(*adoption()).status is WorkerStatus.RUNNING
    gone = given(*failed, worker_id=ADOPTED).when(TerminateCMLWorker(worker_id=ADOPTED))
    assert gone.then(
        TerminationRequested(operation_id="the-command"), WorkerTerminated(operation_id="the-command")
    ).terminated


def test_an_import_is_not_met_by_a_worker_of_another_instance():
    other = CREATED.model_copy(update={"name": "other"})
    launched = InstanceLaunched(operation_id="create", instance=instance(instance_id="i-1111111111111111f"))
    for history in ((other, LAUNCH_REQUESTED), (other, LAUNCH_REQUESTED, launched)):
        given(*history, worker_id=ADOPTED).when(IMPORT).then_rejected("Conflict")


def test_only_what_has_the_tags_that_the_deployment_names_is_imported():
    case = given(worker_id=ADOPTED).under(import_tags={"pool": "cml"}).found(imported()).when(IMPORT)
    case.then_rejected("EC2InstanceNotFound", outcome="failed", saying="cml:import=default and pool=cml")
    tagged = imported().model_copy(update={"tags": {**FOUND_TAGS, "pool": "cml"}})
    case = given(worker_id=ADOPTED).under(import_tags={"pool": "cml"}).found(tagged).when(IMPORT)
    case.then(adoption()[0].model_copy(update={"instance": tagged}), adoption()[1])


def test_imports_can_be_off():
    case = given(worker_id=ADOPTED).under(import_tags=None).when(IMPORT)
    case.then_rejected("ValidationFailed", saying="CML_IMPORT_TAGS")


def test_a_terminated_worker_is_not_imported_again():
    given(*adoption("earlier"), WorkerTerminated(), worker_id=ADOPTED).when(IMPORT).then_rejected(
        "WorkerTerminated"
    )


def test_an_imported_instance_may_be_as_new_as_its_import():
    given(*adoption("earlier"), worker_id=ADOPTED).soon().found().when(
        UpdateCMLWorkerStatus(worker_id=ADOPTED)
    ).then_rejected("EC2InstanceNotFound", outcome="failed", retryable=True)
