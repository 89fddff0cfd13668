"""What a report of the EC2 adapter does to a worker."""

from collections.abc import Container
from typing import assert_never

from cml_contracts.events import (
    ImportFailed,
    LaunchFailed,
    LaunchRequested,
    OperationDelayed,
    OperationOverdue,
    OperationRefused,
    TerminationRequested,
    WorkerEvent,
)
from cml_contracts.instance import (
    InstanceState,
)
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.creation import next_place
from cml_workers.domain.decisions import NoChange, Record, Reject, RejectedError, rejected
from cml_workers.domain.messages import (
    AttemptDelayed,
    AttemptRefused,
    InstanceObserved,
    OperationFailed,
    OperationOutstanding,
    OperationSucceeded,
    WorkerReport,
)
from cml_workers.domain.observations import died_at_birth, end, failure_of, fallen_back, observe
from cml_workers.domain.operations import LAUNCH, TERMINATE, adoption_of, command_of, is_adoption
from cml_workers.domain.worker import Operation, Worker

OperationReport = (
    OperationSucceeded | AttemptRefused | AttemptDelayed | OperationFailed | OperationOutstanding
)


def decide_report(
    report: WorkerReport, worker: Worker, *, known: Container[str] = ()
) -> Record | NoChange | Reject:
    """What an outcome or an observation adds: nothing if it is known or superseded.

    ``known``: operations that the worker had, beside the pending ones. Rejected is what names any other.
    """
    try:
        events = _reported(report, worker, known)
    except RejectedError as rejected:
        return rejected.decision
    return Record(events) if events else NoChange()


def _reported(report: WorkerReport, worker: Worker, known: Container[str]) -> list[WorkerEvent]:
    if worker.terminated:
        return []
    if isinstance(report, InstanceObserved):
        return observe(worker, report.instance) if report.seen_revision >= worker.observed_revision else []
    of_import = worker.operations.get(adoption_of(report.operation_id))  # callers know it as their command's
    operation = worker.operations.get(report.operation_id) or of_import
    if operation is None:
        if command_of(report.operation_id) in known:
            return []
        raise rejected(
            ProblemCode.VALIDATION_FAILED, f"worker {worker.id} has no operation {report.operation_id!r}"
        )
    if _is_of_an_earlier_place(report, operation):
        return []
    match report:
        case OperationSucceeded():
            return _success(operation, report, worker)
        case OperationOutstanding():
            return [] if operation.overdue_at else [OperationOverdue(operation_id=operation.command_id)]
        case AttemptRefused():
            if operation.refusal:
                return []
            return [OperationRefused(operation_id=report.operation_id, problem=report.problem)]
        case AttemptDelayed():
            before = operation.delay.attempts if operation.delay else 0
            if operation.refusal or report.attempts <= before:
                return []  # it comes late
            return [OperationDelayed(**report.model_dump(exclude={"worker_id", "generation"}))]
        case OperationFailed():
            failure = failure_of(operation, report.problem)
            if isinstance(failure, LaunchFailed) and worker.pending(TerminationRequested):
                return [failure, *end(worker, worker.pending(TerminationRequested)[0].command_id)]
            if is_adoption(operation.command_id):
                return _not_adopted(operation, report.problem, worker)
            elsewhere = next_place(operation, report.problem)
            return [elsewhere or failure]
    assert_never(report)


def _not_adopted(adoption: Operation, problem: Problem, worker: Worker) -> list[WorkerEvent]:
    """The instance is not ours: nothing that was asked for since is done to it."""
    others = [each for each in worker.operations.values() if each is not adoption]
    return [
        *(failure_of(each, problem) for each in [adoption, *others]),
        ImportFailed(operation_id=command_of(adoption.command_id), problem=problem),
    ]


def _is_of_an_earlier_place(report: OperationReport, operation: Operation) -> bool:
    """Reports come at least once: one of a launch that another place took over says nothing of that."""
    intent = operation.intent
    said = None if isinstance(report, OperationOutstanding) else report.generation
    return isinstance(intent, LaunchRequested) and said not in (None, intent.launch.generation)


def _success(operation: Operation, report: OperationSucceeded, worker: Worker) -> list[WorkerEvent]:
    operation_id, kind, instance = operation.command_id, operation.kind, report.instance
    if kind is TERMINATE:
        return end(worker, operation_id, warning=report.warning, instance=instance)
    if instance is None:
        raise rejected(
            ProblemCode.VALIDATION_FAILED, f"report on {operation_id!r} lacks the instance it is about"
        )
    if report.seen_revision is not None and report.seen_revision < worker.observed_revision:
        # The tags that were recorded meanwhile may be newer than those of the report.
        instance = instance.model_copy(update={"tags": {**worker.tags, **operation.tags}})
    succeeded = kind.succeeded(operation_id, instance)
    if kind is not LAUNCH or instance.state is not InstanceState.TERMINATED:
        return [*fallen_back(worker, instance), succeeded]
    terminations = worker.pending(TerminationRequested)
    if not terminations and (died := died_at_birth(worker, instance)):
        return died
    ended_by = terminations[0].command_id if terminations else None
    return [succeeded, *end(worker, ended_by, instance=instance)]
