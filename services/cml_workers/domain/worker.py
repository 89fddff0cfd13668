"""The CMLWorker aggregate: its state, and how each event changes it.

The fold collates facts and never judges: guards are in ``lifecycle/decide.py``, and tightening one can never
break the replay of an old stream.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, assert_never
from uuid import UUID

from cml_contracts.commands import (
    ImportCMLWorker,
)
from cml_contracts.events import (
    CommandRejected,
    CommandSkipped,
    InstanceLaunched,
    InstanceStarting,
    InstanceStateObserved,
    InstanceStopping,
    Intent,
    LaunchFailed,
    LaunchRequested,
    OperationOverdue,
    OperationRefused,
    StartFailed,
    StartRequested,
    StopFailed,
    StopRequested,
    TagsUpdated,
    TagsUpdateFailed,
    TagsUpdateRequested,
    TerminationFailed,
    TerminationRequested,
    WorkerCreated,
    WorkerImported,
    WorkerTerminated,
)
from cml_contracts.instance import CMLWorkerInstanceDto, Ec2Instance, InstanceState, WorkerStatus
from cml_contracts.results import OperationResult, Outcome, Problem
from cml_workers.domain.history import EventMetadata, Recorded
from cml_workers.domain.operations import KIND_OF


@dataclass(frozen=True, slots=True)
class Operation:
    """One command's request and its outcome.

    ``requested`` surrounds the request: who, when, and where the reply goes. ``intent`` is None where nothing
    was asked of AWS; ``result`` is None while it is pending; ``refusal``: EC2's, after which nobody tries again;
    ``overdue_at``: when a deadline passed meanwhile.
    ``settled_by`` is the id of the message whose handling settled it, so that a repetition sends the same replies
    again.
    """

    command_id: str
    command_type: str
    requested: EventMetadata
    intent: Intent | None = None
    refusal: Problem | None = None
    overdue_at: datetime | None = None
    result: OperationResult | None = None
    settled_at: datetime | None = None
    settled_by: str | None = None


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker: the fold of its events.

    ``instance`` is what EC2 showed last; ``observed_revision`` is the event that showed it. ``revision`` -1:
    nothing is recorded yet.
    """

    id: UUID
    revision: int = -1
    name: str = ""
    owner: str = ""
    aws_region: str = ""
    instance_type: str = ""
    ami_name: str | None = None
    cml_version: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    instance: Ec2Instance | None = None
    launched_at: datetime | None = None
    observed_revision: int = -1
    launch_problem: Problem | None = None
    terminated: bool = False
    operations: dict[str, Operation] = field(default_factory=dict)
    """By their command's id. The fold alone adds to them and changes them."""

    @property
    def exists(self) -> bool:
        """Whether it was ever created or imported."""
        return self.created_at is not None

    def pending(self, *intents: type[Intent]) -> list[Operation]:
        """The operations that still have no outcome to an intent of these types, oldest first."""
        return [
            operation
            for operation in self.operations.values()
            if operation.result is None and isinstance(operation.intent, intents)
        ]

    @property
    def status(self) -> WorkerStatus:
        """What was decided last, if it is still pending; else what EC2 showed last."""
        if self.terminated:
            return WorkerStatus.TERMINATED
        if self.instance is None:
            return WorkerStatus.FAILED if self.launch_problem else WorkerStatus.PENDING
        if self.pending(StopRequested, TerminationRequested):
            return WorkerStatus.STOPPING
        if self.pending(StartRequested):
            return WorkerStatus.STARTING
        return status_of(self.instance.state)

    @property
    def dto(self) -> CMLWorkerInstanceDto | None:
        """The instance as callers see it; None while there is none."""
        if self.instance is None:
            return None
        return CMLWorkerInstanceDto.of(self.id, self.name, self.ami_name, self.instance)


def status_of(state: InstanceState) -> WorkerStatus:
    """The one place where EC2's states become ours."""
    match state:
        case InstanceState.PENDING:
            return WorkerStatus.STARTING
        case InstanceState.RUNNING:
            return WorkerStatus.RUNNING
        case InstanceState.STOPPING | InstanceState.SHUTTING_DOWN:
            return WorkerStatus.STOPPING
        case InstanceState.STOPPED:
            return WorkerStatus.STOPPED
        case InstanceState.TERMINATED:
            return WorkerStatus.TERMINATED
    assert_never(state)


def fold(worker_id: UUID, history: Iterable[Recorded]) -> Worker:
    """The worker from its whole stream, in time that grows with its length."""
    return advance(Worker(worker_id), history)


def evolve(worker: Worker, recorded: Recorded) -> Worker:
    """The worker after one more event; the one given stays as it is."""
    return advance(worker, (recorded,))


def advance(worker: Worker, history: Iterable[Recorded]) -> Worker:
    """The worker after these events; the one given stays as it is."""
    worker = replace(worker, operations=dict(worker.operations))
    for recorded in history:
        worker = _advanced(worker, recorded)
    return worker


def _advanced(worker: Worker, recorded: Recorded) -> Worker:
    """``worker`` is given up: its operations become those of the worker that is returned.

    Nothing after its termination changes more than its operations.
    """
    after = _apply(worker, recorded)
    return replace(worker if worker.terminated else after, revision=recorded.revision)


def _apply(worker: Worker, recorded: Recorded) -> Worker:
    event, metadata = recorded.event, recorded.metadata
    match event:
        case WorkerCreated():
            return replace(
                worker,
                name=event.name,
                owner=event.created_by,
                aws_region=event.aws_region,
                instance_type=event.instance_type,
                ami_name=event.ami_name,
                cml_version=event.cml_version,
                tags=event.tags,
                created_at=metadata.time,
                updated_at=metadata.time,
            )
        case WorkerImported():
            imported = replace(
                _observed(worker, recorded, event.instance),
                name=event.name,
                owner=event.created_by,
                aws_region=event.instance.aws_region,
                instance_type=event.instance.instance_type,
                tags=event.instance.tags,
                created_at=metadata.time,
                launched_at=metadata.time,  # nobody knows; it may be as new as that, and not yet visible to all
            )
            return _settled(imported, recorded, event.operation_id, _dto_data(imported), ImportCMLWorker.TYPE)
        case (
            LaunchRequested()
            | StartRequested()
            | StopRequested()
            | TerminationRequested()
            | TagsUpdateRequested()
        ):
            return _requested(worker, recorded, event)
        case InstanceLaunched():
            launched = replace(
                _observed(worker, recorded, event.instance),
                launched_at=metadata.time,
                tags=event.instance.tags,
            )
            return _settled(launched, recorded, event.operation_id, _dto_data(launched))
        case InstanceStarting() | InstanceStopping():
            return _settled(
                _observed(worker, recorded, event.instance), recorded, event.operation_id, data=True
            )
        case LaunchFailed():
            failed = replace(worker, launch_problem=event.problem, updated_at=metadata.time)
            return _failed(failed, recorded, event.operation_id, event.problem)
        case StartFailed() | StopFailed() | TerminationFailed() | TagsUpdateFailed():
            return _failed(
                replace(worker, updated_at=metadata.time), recorded, event.operation_id, event.problem
            )
        case WorkerTerminated():
            return _terminated(worker, recorded)
        case TagsUpdated():
            tagged = replace(
                worker,
                tags=event.tags,
                instance=worker.instance and worker.instance.model_copy(update={"tags": event.tags}),
                updated_at=metadata.time,
            )
            return _settled(tagged, recorded, event.operation_id, dict(event.tags))
        case InstanceStateObserved():
            return _state_observed(worker, recorded, event)
        case OperationRefused():
            return _noted(worker, event.operation_id, refusal=event.problem)
        case OperationOverdue():
            return _noted(worker, event.operation_id, overdue_at=metadata.time)
        case CommandRejected():
            return _settled(
                worker,
                recorded,
                event.operation_id,
                None,
                event.command_type,
                outcome=event.outcome,
                problem=event.problem,
            )
        case CommandSkipped():
            return _settled(worker, recorded, event.operation_id, event.data, event.command_type)
    assert_never(event)


def _requested(worker: Worker, recorded: Recorded, intent: Intent) -> Worker:
    metadata = recorded.metadata
    operation = Operation(
        command_id=intent.operation_id,
        command_type=KIND_OF[type(intent)].command.TYPE,
        requested=metadata,
        intent=intent,
    )
    worker.operations[operation.command_id] = operation
    return replace(worker, updated_at=metadata.time)


def _observed(worker: Worker, recorded: Recorded, instance: Ec2Instance) -> Worker:
    return replace(
        worker,
        instance=instance,
        observed_revision=recorded.revision,
        updated_at=recorded.metadata.time,
    )


def _state_observed(worker: Worker, recorded: Recorded, event: InstanceStateObserved) -> Worker:
    if worker.instance is None:
        return worker
    seen = event.model_dump(exclude={"instance_state", "drift"})
    return _observed(
        worker, recorded, worker.instance.model_copy(update={"state": event.instance_state, **seen})
    )


def _terminated(worker: Worker, recorded: Recorded) -> Worker:
    """Every request to terminate succeeds by the one termination."""
    after = replace(
        worker,
        terminated=True,
        instance=worker.instance and worker.instance.model_copy(update={"state": InstanceState.TERMINATED}),
        updated_at=recorded.metadata.time,
    )
    for operation in worker.pending(TerminationRequested):
        after = _settled(after, recorded, operation.command_id, data=True)
    return after


def _noted(worker: Worker, operation_id: str, **changes: Any) -> Worker:
    operation = worker.operations.get(operation_id)
    if operation is not None:
        worker.operations[operation_id] = replace(operation, **changes)
    return worker


def _failed(worker: Worker, recorded: Recorded, operation_id: str, problem: Problem) -> Worker:
    return _settled(worker, recorded, operation_id, None, outcome="failed", problem=problem)


def _settled(
    worker: Worker,
    recorded: Recorded,
    operation_id: str,
    data: Any,
    command_type: str = "",
    *,
    outcome: Outcome = "succeeded",
    problem: Problem | None = None,
) -> Worker:
    metadata = recorded.metadata
    operation = worker.operations.get(operation_id) or Operation(operation_id, command_type, metadata)
    result = OperationResult(
        command_id=operation_id, worker_id=worker.id, outcome=outcome, data=data, problem=problem
    )
    worker.operations[operation_id] = replace(
        operation, result=result, settled_at=metadata.time, settled_by=metadata.causation_id
    )
    return worker


def _dto_data(worker: Worker) -> Any:
    return worker.dto.model_dump(mode="json") if worker.dto else None


def settled_by(worker: Worker, message_id: str) -> Sequence[Operation]:
    """The operations that the handling of one message settled."""
    return [operation for operation in worker.operations.values() if operation.settled_by == message_id]
