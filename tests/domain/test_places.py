"""A launch that EC2 has no room for goes on in the next place of its profile, and never in two."""

from cml_contracts.events import (
    LaunchFailed,
    LaunchRequested,
    OperationRefused,
    TerminationRequested,
    WorkerTerminated,
)
from cml_contracts.instance import LaunchPlace, WorkerStatus
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.creation import launch_token
from cml_workers.domain.messages import AttemptRefused, OperationFailed, OperationSucceeded
from support.given import WORKER, given, instance, launch
from support.situations import CREATED, QUOTA

PLACE = LaunchPlace(instance_type="m8i.4xlarge", subnet_id="subnet-22222222", nested_virtualization=True)
FIRST = LaunchRequested(
    operation_id="create", launch=launch(), alternatives=(PLACE, LaunchPlace(instance_type="m5.metal"))
)
SECOND = LaunchRequested(
    operation_id="create",
    launch=launch(
        instance_type="m8i.4xlarge",
        subnet_id="subnet-22222222",
        nested_virtualization=True,
        generation=2,
        client_token=launch_token("default", WORKER, 2),
    ),
    alternatives=FIRST.alternatives[1:],
)
NO_ROOM = Problem.of(ProblemCode.EC2_CAPACITY, "no room")


def no_room(generation: int | None) -> OperationFailed:
    return OperationFailed(worker_id=WORKER, operation_id="create", problem=NO_ROOM, generation=generation)


def test_a_launch_that_ec2_has_no_room_for_goes_on_in_the_next_place():
    """In the stream, so that no two processes, and no process after its death, can launch in two places."""
    refused = OperationRefused(operation_id="create", problem=NO_ROOM)
    worker = given(CREATED, FIRST, refused).reported(no_room(1)).then(SECOND)
    (operation,) = worker.pending(LaunchRequested)
    assert operation.intent == SECOND
    assert operation.refusal is None
    assert operation.requested.reply is not None  # whoever asked is still answered
    assert worker.instance_type == "m8i.4xlarge"


def test_a_late_report_of_an_earlier_place_says_nothing_of_the_next_one():
    """Reports come at least once."""
    for late in (
        no_room(1),
        AttemptRefused(worker_id=WORKER, operation_id="create", problem=NO_ROOM, generation=1),
        OperationSucceeded(worker_id=WORKER, operation_id="create", instance=instance(), generation=1),
    ):
        given(CREATED, FIRST, SECOND).reported(late).then()


def test_a_launch_that_no_place_has_room_for_has_failed():
    last = SECOND.model_copy(update={"alternatives": ()})
    case = given(CREATED, FIRST, last).reported(no_room(2))
    assert case.then(LaunchFailed(operation_id="create", problem=NO_ROOM)).status is WorkerStatus.FAILED
    assert case.result("create").problem == NO_ROOM


def test_another_refusal_than_for_room_is_the_same_in_every_place():
    report = OperationFailed(worker_id=WORKER, operation_id="create", problem=QUOTA, generation=1)
    given(CREATED, FIRST).reported(report).then(LaunchFailed(operation_id="create", problem=QUOTA))


def test_nothing_is_launched_elsewhere_for_a_worker_that_is_to_be_terminated():
    requested = TerminationRequested(operation_id="end")
    given(CREATED, FIRST, requested).reported(no_room(1)).then(
        LaunchFailed(operation_id="create", problem=NO_ROOM), WorkerTerminated(operation_id="end")
    )
