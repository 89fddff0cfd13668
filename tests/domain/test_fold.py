"""The whole stream at once gives what one event after the other gives."""

from collections.abc import Mapping

import pytest

from cml_contracts.events import (
    EVENTS,
    CommandRejected,
    InstanceLaunched,
    InstanceStateObserved,
    Intent,
    LaunchRequested,
    OperationOverdue,
    OperationRefused,
    StartRequested,
    StopFailed,
    StopRequested,
    TagsUpdated,
    TagsUpdateRequested,
    TerminationRequested,
    WorkerEvent,
    WorkerTerminated,
)
from cml_contracts.instance import InstanceState
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.fold import _AFTER, evolve, fold
from cml_workers.domain.ledger import Ledger, settled
from cml_workers.domain.operations import KINDS
from cml_workers.domain.worker import Operation, Worker
from support.given import NOW, WORKER, created, instance, launch, recorded

PROBLEM = Problem(
    code=ProblemCode.EC2_INSTANCE_OPERATION, title="EC2 refuses", detail="as it does", retryable=False
)
LIFE: list[WorkerEvent] = [
    created(),
    LaunchRequested(operation_id="c", launch=launch()),
    OperationOverdue(operation_id="c"),
    InstanceLaunched(operation_id="c", instance=instance()),
    CommandRejected(operation_id="r", command_type="t", outcome="rejected", problem=PROBLEM),
    StopRequested(operation_id="s"),
    OperationRefused(operation_id="s", problem=PROBLEM),
    StopFailed(operation_id="s", problem=PROBLEM),
    TagsUpdateRequested(operation_id="t", tags={"a": "1"}),
    TagsUpdated(operation_id="t", tags={"a": "1"}),
    TerminationRequested(operation_id="x"),
    TerminationRequested(operation_id="y"),
    WorkerTerminated(),
    TagsUpdated(operation_id="late", tags={}),
]


@pytest.mark.parametrize(
    ("tags", "name"), [({"Name": "mine"}, "mine"), ({"Name": ""}, "lab"), ({"a": "1"}, "lab"), ({}, "lab")]
)
@pytest.mark.parametrize("outside", [True, False])
def test_a_worker_is_called_what_its_name_tag_says(tags: dict[str, str], name: str, outside: bool):
    """EC2's console shows that name, and whoever changes it there looks for the worker under it."""
    if outside:
        changed: WorkerEvent = InstanceStateObserved(
            instance_state=InstanceState.RUNNING, tags=tags, changed=("tags",)
        )
    else:
        changed = TagsUpdated(operation_id="t", tags=tags)
    worker = Worker(WORKER)
    for event in (*LIFE[:4], changed):
        worker = evolve(worker, recorded(worker, event, NOW, "m"))
    assert worker.name == name
    assert worker.dto is not None
    assert worker.dto.instance_name == name


def test_the_fold_is_one_event_after_the_other():
    worker, history = Worker(WORKER), []
    for event in LIFE:
        history.append(recorded(worker, event, NOW, "m"))
        worker = evolve(worker, history[-1])
        assert fold(WORKER, history) == worker
    assert worker.tags == {"a": "1"}
    assert not worker.operations
    ledger = Ledger.of(WORKER, history)
    assert ledger.worker == worker
    assert list(ledger.entries) == ["c", "r", "s", "t", "x", "y", "late"]
    assert all(entry.result for entry in ledger.entries.values())


def test_every_event_has_its_place_in_the_fold_and_every_outcome_its_result():
    assert set(_AFTER) == set(EVENTS.values())
    for kind in KINDS:
        operation = Operation(
            "op", INTENTS[kind.intent], recorded(Worker(WORKER), created(), NOW, "m").metadata
        )
        before = Worker(WORKER, operations={"op": operation})
        outcomes = {
            "succeeded": kind.succeeded("op", instance()),
            "failed": kind.failure(operation_id="op", problem=PROBLEM),
        }
        assert type(outcomes["succeeded"]) is kind.success
        for outcome, event in outcomes.items():
            (entry,) = settled(before, recorded(before, event, NOW, "m"))
            assert (entry.command_id, entry.command_type) == ("op", kind.command.TYPE)
            assert entry.operation is operation
            assert entry.result is not None
            assert entry.result.outcome == outcome


INTENTS: Mapping[type[Intent], Intent] = {
    LaunchRequested: LaunchRequested(operation_id="op", launch=launch()),
    StartRequested: StartRequested(operation_id="op"),
    StopRequested: StopRequested(operation_id="op"),
    TerminationRequested: TerminationRequested(operation_id="op"),
    TagsUpdateRequested: TagsUpdateRequested(operation_id="op", tags={}),
}
