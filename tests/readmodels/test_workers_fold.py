"""The rows of workers and operations, as plain functions of their events."""

import json

from cml_contracts.events import (
    CommandRejected,
    InstanceStopping,
    LaunchFailed,
    OperationDelayed,
    OperationOverdue,
    StopRequested,
    WorkerEvent,
)
from cml_contracts.instance import InstanceState
from cml_contracts.results import Problem, ProblemCode
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.fold import sortable
from support.given import NOW, WORKER, instance
from support.given_rows import GivenEvents, given_events
from support.projecting import CREATED, LAUNCH, LAUNCHED, TAGS

STOP = StopRequested(operation_id="stop")


def given(*events: WorkerEvent) -> GivenEvents:
    return given_events(WORKERS_VIEW, *events)


def test_a_worker_is_shown_as_soon_as_it_is_created():
    row = given(CREATED).then_row(
        "workers", id=WORKER, name="lab", status="PENDING", owner="ann", created_at=sortable(NOW)
    )
    assert json.loads(row["view"])["revision"] == 0


def test_a_worker_that_stops_is_shown_so_with_its_instance():
    row = given(CREATED, LAUNCH, LAUNCHED, STOP).then_row("workers", status="STOPPING")
    view = json.loads(row["view"])
    assert (view["revision"], view["instance"]["aws_instance_id"]) == (3, instance().instance_id)


def test_a_pending_operation_is_found_by_its_age():
    assert (
        given(CREATED, LAUNCH).then_row("operations", pending_since=sortable(NOW))["command_id"] == "create"
    )


def test_an_operation_that_is_settled_is_no_longer_pending():
    row = given(CREATED, LAUNCH, LAUNCHED).then_row("operations", pending_since=None)
    assert json.loads(row["view"])["result"]["outcome"] == "succeeded"


def test_each_operation_has_its_own_row():
    stopping = InstanceStopping(operation_id="stop", instance=instance(InstanceState.STOPPING))
    rows = given(CREATED, LAUNCH, LAUNCHED, *TAGS, STOP, stopping).rows("operations")
    assert [row["command_id"] for row in rows] == ["create", "tag", "stop"]
    assert {row["pending_since"] for row in rows} == {None}


def test_an_overdue_operation_says_since_when():
    row = given(CREATED, LAUNCH, OperationOverdue(operation_id="create")).then_row("operations")
    assert json.loads(row["view"])["overdue_at"] == NOW.isoformat().replace("+00:00", "Z")


def test_worker_and_operation_say_what_they_wait_for_until_the_outcome():
    problem = Problem.of(ProblemCode.EC2_THROTTLED, "slow down", retryable=True)
    delayed = OperationDelayed(operation_id="create", problem=problem, attempts=2, next_at=NOW)
    for table in ("workers", "operations"):
        waits_for = json.loads(given(CREATED, LAUNCH, delayed).then_row(table)["view"])["waits_for"]
        assert (waits_for["problem"]["detail"], waits_for["attempts"]) == ("slow down", 2)
        assert waits_for["last_at"] == waits_for["next_at"] == NOW.isoformat().replace("+00:00", "Z")
        after = given(CREATED, LAUNCH, delayed, LAUNCHED).then_row(table)["view"]
        assert json.loads(after)["waits_for"] is None


def test_the_result_of_a_create_whose_instance_never_ran_is_corrected():
    problem = Problem.of(ProblemCode.EC2_INSTANCE_CREATION, "never ran")
    pending = LAUNCHED.model_copy(update={"instance": instance(InstanceState.PENDING)})
    case = given(CREATED, LAUNCH, pending, LaunchFailed(operation_id="create", problem=problem))
    view = json.loads(case.then_row("operations", command_id="create", pending_since=None)["view"])
    assert (view["result"]["outcome"], view["result"]["problem"]["detail"]) == ("failed", "never ran")
    worker = json.loads(case.then_row("workers", status="FAILED")["view"])
    assert (worker["problem"], worker["instance"], worker["generation"]) == ("never ran", None, 1)


def test_tags_can_be_looked_for_until_they_are_gone():
    tags = given(CREATED, LAUNCH, LAUNCHED, *TAGS).rows("worker_tags")
    assert {row["key"]: row["value"] for row in tags} == {"Name": "lab", "a": "1"}
    assert {row["name"] for row in tags} == {"lab"}


def test_a_rejected_command_has_a_row_although_its_worker_never_was():
    problem = Problem.of(ProblemCode.WORKER_NOT_FOUND, "no such worker")
    rejected = CommandRejected(operation_id="x", command_type="t", outcome="rejected", problem=problem)
    given(rejected).then_no_row("workers")
    row = given(rejected).then_row("operations", command_id="x", pending_since=None)
    assert json.loads(row["view"])["result"]["problem"]["detail"] == "no such worker"
