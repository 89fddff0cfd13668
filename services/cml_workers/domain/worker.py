"""The CMLWorker aggregate: its state, and how each event changes it.

The fold collates facts and never judges: guards are in ``decide.py``, and tightening one can never
break the replay of an old stream. Of its operations a worker holds the pending ones; what became of the others is
said by ``domain/ledger.py``.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple, assert_never
from uuid import UUID

from cml_contracts.events import (
    CommandRejected,
    CommandSkipped,
    InstanceLaunched,
    InstanceStateObserved,
    Intent,
    LaunchFailed,
    LaunchRequested,
    OperationOverdue,
    OperationRefused,
    TagsUpdated,
    TerminationRequested,
    WorkerCreated,
    WorkerEvent,
    WorkerImported,
    WorkerTerminated,
)
from cml_contracts.instance import CMLWorkerInstanceDto, Ec2Instance, InstanceState, WorkerStatus
from cml_contracts.results import Problem
from cml_workers.domain.history import EventMetadata, Recorded
from cml_workers.domain.operations import KIND_OF, KINDS, SWITCHES, Failure, Kind, Switched


class Operation(NamedTuple):
    """One command's request that has no outcome yet.

    ``requested`` surrounds the request: who, when, and where the reply goes; ``refusal``: EC2's, after which nobody
    tries again; ``overdue_at``: when a deadline passed meanwhile.
    """

    command_id: str
    intent: Intent
    requested: EventMetadata
    refusal: Problem | None = None
    overdue_at: datetime | None = None

    @property
    def kind(self) -> Kind:
        """What the catalogue says of it."""
        return KIND_OF[type(self.intent)]


class Worker(NamedTuple):
    """A worker: the fold of its events; a tuple, as that is copied fastest.

    ``instance`` is what EC2 showed last; ``observed_revision`` is the event that showed it. ``revision`` -1:
    nothing is recorded yet. ``operations``: the pending ones by their command's id, oldest first.
    """

    id: UUID
    revision: int = -1
    name: str = ""
    owner: str = ""
    aws_region: str = ""
    instance_type: str = ""
    ami_name: str | None = None
    cml_version: str | None = None
    profile: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    tags: Mapping[str, str] = MappingProxyType({})
    instance: Ec2Instance | None = None
    launched_at: datetime | None = None
    observed_revision: int = -1
    launch_problem: Problem | None = None
    terminated: bool = False
    operations: Mapping[str, Operation] = MappingProxyType({})

    @property
    def exists(self) -> bool:
        """Whether it was ever created or imported."""
        return self.created_at is not None

    def pending(self, *intents: type[Intent]) -> list[Operation]:
        """The operations that still have no outcome to an intent of these types, oldest first."""
        return [operation for operation in self.operations.values() if isinstance(operation.intent, intents)]

    @property
    def status(self) -> WorkerStatus:
        """What was decided last, if it is still pending; else what EC2 showed last."""
        if self.terminated:
            return WorkerStatus.TERMINATED
        if self.instance is None:
            return WorkerStatus.FAILED if self.launch_problem else WorkerStatus.PENDING
        meanwhile = {operation.kind.meanwhile for operation in self.operations.values()}
        for status in (WorkerStatus.STOPPING, WorkerStatus.STARTING):
            if status in meanwhile:
                return status
        return status_of(self.instance.state)

    @property
    def dto(self) -> CMLWorkerInstanceDto | None:
        """The instance as callers see it; None while there is none."""
        return self.shown(self.instance) if self.instance else None

    def shown(self, instance: Ec2Instance) -> CMLWorkerInstanceDto:
        """An instance of the worker as callers see it."""
        return CMLWorkerInstanceDto.of(self.id, self.name, self.ami_name, instance)


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


def advance(worker: Worker, history: Iterable[Recorded]) -> Worker:
    """The worker after these events."""
    for recorded in history:
        worker = evolve(worker, recorded)
    return worker


def evolve(worker: Worker, recorded: Recorded) -> Worker:
    """The worker after one more event. Nothing after its termination changes more than what is pending."""
    after = _AFTER[type(recorded.event)](worker, recorded.event, recorded)
    if worker.terminated:
        return worker._replace(revision=recorded.revision, operations=after.operations)
    return after


def _created(worker: Worker, event: WorkerCreated, recorded: Recorded) -> Worker:
    return worker._replace(
        revision=recorded.revision,
        name=event.name,
        owner=event.created_by,
        aws_region=event.aws_region,
        instance_type=event.instance_type,
        ami_name=event.ami_name,
        cml_version=event.cml_version,
        profile=event.profile,
        tags=event.tags,
        created_at=recorded.metadata.time,
        updated_at=recorded.metadata.time,
    )


def _imported(worker: Worker, event: WorkerImported, recorded: Recorded) -> Worker:
    return _observed(
        worker._replace(
            name=event.name,
            owner=event.created_by,
            aws_region=event.instance.aws_region,
            instance_type=event.instance.instance_type,
            tags=event.instance.tags,
            created_at=recorded.metadata.time,
            # Nobody knows; it may be as new as that, and not yet visible to all.
            launched_at=recorded.metadata.time,
        ),
        event.instance,
        recorded,
    )


def _requested(worker: Worker, event: Intent, recorded: Recorded) -> Worker:
    pending = worker.operations.get(event.operation_id)
    if pending is not None:  # a launch goes on in another place, for whoever asked for it
        operation = pending._replace(intent=event, refusal=None)
    else:
        operation = Operation(event.operation_id, event, recorded.metadata)
    if isinstance(event, LaunchRequested):
        worker = worker._replace(instance_type=event.launch.instance_type)
    return worker._replace(
        revision=recorded.revision,
        operations={**worker.operations, operation.command_id: operation},
        updated_at=recorded.metadata.time,
    )


def _launched(worker: Worker, event: InstanceLaunched, recorded: Recorded) -> Worker:
    return _shown(
        worker._replace(launched_at=recorded.metadata.time, tags=event.instance.tags), event, recorded
    )


def _shown(worker: Worker, event: InstanceLaunched | Switched, recorded: Recorded) -> Worker:
    return worker._replace(
        revision=recorded.revision,
        instance=event.instance,
        observed_revision=recorded.revision,
        updated_at=recorded.metadata.time,
        operations=_without(worker.operations, event.operation_id),
    )


def _tagged(worker: Worker, event: TagsUpdated, recorded: Recorded) -> Worker:
    return worker._replace(
        revision=recorded.revision,
        tags=event.tags,
        instance=worker.instance and worker.instance.model_copy(update={"tags": event.tags}),
        updated_at=recorded.metadata.time,
        operations=_without(worker.operations, event.operation_id),
    )


def _failed(worker: Worker, event: Failure, recorded: Recorded) -> Worker:
    return worker._replace(
        revision=recorded.revision,
        updated_at=recorded.metadata.time,
        launch_problem=event.problem if isinstance(event, LaunchFailed) else worker.launch_problem,
        operations=_without(worker.operations, event.operation_id),
    )


def _terminated(worker: Worker, _event: WorkerTerminated, recorded: Recorded) -> Worker:
    """Every request to terminate succeeds by the one termination."""
    return worker._replace(
        revision=recorded.revision,
        terminated=True,
        instance=worker.instance and worker.instance.model_copy(update={"state": InstanceState.TERMINATED}),
        updated_at=recorded.metadata.time,
        operations={
            command_id: operation
            for command_id, operation in worker.operations.items()
            if not isinstance(operation.intent, TerminationRequested)
        },
    )


_SEEN = InstanceStateObserved.model_fields.keys() - {"instance_state", "drift"}
"""What is called the same in the event and in the instance."""


def _state_observed(worker: Worker, event: InstanceStateObserved, recorded: Recorded) -> Worker:
    if worker.instance is None:
        return worker._replace(revision=recorded.revision)
    seen = {name: getattr(event, name) for name in _SEEN}
    seen["state"] = event.instance_state
    return _observed(worker, worker.instance.model_copy(update=seen), recorded)


def _observed(worker: Worker, instance: Ec2Instance, recorded: Recorded) -> Worker:
    return worker._replace(
        revision=recorded.revision,
        instance=instance,
        observed_revision=recorded.revision,
        updated_at=recorded.metadata.time,
    )


def _noted(worker: Worker, event: OperationRefused | OperationOverdue, recorded: Recorded) -> Worker:
    operation = worker.operations.get(event.operation_id)
    if operation is None:
        return worker._replace(revision=recorded.revision)
    if isinstance(event, OperationRefused):
        noted = operation._replace(refusal=event.problem)
    else:
        noted = operation._replace(overdue_at=recorded.metadata.time)
    return worker._replace(
        revision=recorded.revision, operations={**worker.operations, event.operation_id: noted}
    )


def _answered(worker: Worker, event: CommandRejected | CommandSkipped, recorded: Recorded) -> Worker:
    return worker._replace(
        revision=recorded.revision, operations=_without(worker.operations, event.operation_id)
    )


def _without(operations: Mapping[str, Operation], operation_id: str) -> Mapping[str, Operation]:
    if operation_id not in operations:
        return operations
    return {command_id: each for command_id, each in operations.items() if command_id != operation_id}


_AFTER: Mapping[type[WorkerEvent], Callable[[Worker, Any, Recorded], Worker]] = {
    WorkerCreated: _created,
    WorkerImported: _imported,
    **{kind.intent: _requested for kind in KINDS},
    InstanceLaunched: _launched,
    **{kind.success: _shown for kind in SWITCHES},
    TagsUpdated: _tagged,
    **{kind.failure: _failed for kind in KINDS},
    WorkerTerminated: _terminated,
    InstanceStateObserved: _state_observed,
    OperationRefused: _noted,
    OperationOverdue: _noted,
    CommandRejected: _answered,
    CommandSkipped: _answered,
}
"""What each event changes; all that there are."""
