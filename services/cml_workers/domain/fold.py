"""How each event changes a worker.

The fold collates facts and never judges: guards are in ``decide.py``, and tightening one can never break the replay of an old
stream.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

from cml_contracts.events import (
    CommandRejected,
    CommandSkipped,
    ImportFailed,
    InstanceLaunched,
    InstanceStateObserved,
    Intent,
    LaunchFailed,
    LaunchRequested,
    OperationDelayed,
    OperationOverdue,
    OperationRefused,
    TagsUpdated,
    TerminationRequested,
    WorkerCreated,
    WorkerEvent,
    WorkerImported,
    WorkerRecreated,
    WorkerTerminated,
)
from cml_contracts.instance import Ec2Instance, InstanceState
from cml_contracts.results import Delay
from cml_workers.domain.history import Recorded
from cml_workers.domain.operations import KINDS, SWITCHES, Failure, Switched
from cml_workers.domain.worker import Operation, Worker


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
        given_name=event.name,
        owner=worker.owner or event.owner or event.created_by,
        aws_region=event.aws_region,
        instance_type=event.instance_type,
        ami_name=event.ami_name,
        cml_version=event.cml_version,
        profile=event.profile,
        tags=event.tags,
        created_at=worker.created_at or recorded.metadata.time,
        updated_at=recorded.metadata.time,
    )


def _recreated(worker: Worker, event: WorkerRecreated, recorded: Recorded) -> Worker:
    """It stays whose it was."""
    return _created(worker, event, recorded)._replace(launch_problem=None)


def _imported(worker: Worker, event: WorkerImported, recorded: Recorded) -> Worker:
    return _observed(
        worker._replace(
            given_name=event.name,
            owner=event.owner or event.created_by,
            aws_region=event.instance.aws_region,
            instance_type=event.instance.instance_type,
            tags=event.instance.tags,
            created_at=recorded.metadata.time,
            # Nobody knows; it may be as new as that, and not yet visible to all.
            launched_at=recorded.metadata.time,
            launch_problem=None,
        ),
        event.instance,
        recorded,
    )


def _import_failed(worker: Worker, event: ImportFailed, recorded: Recorded) -> Worker:
    """What was looked at is somebody else's, and stays so."""
    return worker._replace(
        revision=recorded.revision,
        updated_at=recorded.metadata.time,
        launch_problem=event.problem,
        instance=None,
        tags={},
        launched_at=None,
    )


def _requested(worker: Worker, event: Intent, recorded: Recorded) -> Worker:
    pending = worker.operations.get(event.operation_id)
    if pending is not None:  # a launch goes on in another place, for whoever asked for it
        operation = pending._replace(intent=event, refusal=None)
    else:
        operation = Operation(event.operation_id, event, recorded.metadata)
    if isinstance(event, LaunchRequested):
        worker = worker._replace(instance_type=event.launch.instance_type, generation=event.launch.generation)
    return worker._replace(
        revision=recorded.revision,
        operations={**worker.operations, operation.command_id: operation},
        updated_at=recorded.metadata.time,
    )


def _launched(worker: Worker, event: InstanceLaunched, recorded: Recorded) -> Worker:
    return _shown(worker._replace(launched_at=recorded.metadata.time), event, recorded)


def _shown(worker: Worker, event: InstanceLaunched | Switched, recorded: Recorded) -> Worker:
    return worker._replace(
        revision=recorded.revision,
        instance=event.instance,
        tags=event.instance.tags,
        observed_revision=recorded.revision,
        observed_at=recorded.metadata.time,
        updated_at=recorded.metadata.time,
        operations=_without(worker.operations, event.operation_id),
        beginning=(
            worker.operations.get(event.operation_id) if event.instance.state in _NEVER_RAN_YET else None
        ),
    )


def _tagged(worker: Worker, event: TagsUpdated, recorded: Recorded) -> Worker:
    return worker._replace(
        revision=recorded.revision,
        tags=event.tags,
        instance=worker.instance and worker.instance.model_copy(update={"tags": event.tags}),
        observed_revision=recorded.revision,
        observed_at=recorded.metadata.time,
        updated_at=recorded.metadata.time,
        operations=_without(worker.operations, event.operation_id),
    )


def _failed(worker: Worker, event: Failure, recorded: Recorded) -> Worker:
    beginning = worker.beginning
    if beginning is not None and beginning.command_id == event.operation_id:
        beginning = None
    return worker._replace(
        revision=recorded.revision,
        updated_at=recorded.metadata.time,
        operations=_without(worker.operations, event.operation_id),
        beginning=beginning,
    )


def _launch_failed(worker: Worker, event: LaunchFailed, recorded: Recorded) -> Worker:
    """Where there was an instance, it has ended before it ran."""
    return _failed(worker, event, recorded)._replace(
        launch_problem=event.problem, instance=None, launched_at=None
    )


def _terminated(worker: Worker, event: WorkerTerminated, recorded: Recorded) -> Worker:
    """Every request to terminate succeeds by the one termination."""
    ended = {
        "state": InstanceState.TERMINATED,
        "state_reason": event.state_reason,
        "state_transition_reason": event.state_transition_reason,
    }
    return worker._replace(
        revision=recorded.revision,
        terminated=True,
        instance=worker.instance and worker.instance.model_copy(update=ended),
        updated_at=recorded.metadata.time,
        operations={
            command_id: operation
            for command_id, operation in worker.operations.items()
            if not isinstance(operation.intent, TerminationRequested)
        },
    )


_SHARED = InstanceStateObserved.model_fields.keys() & Ec2Instance.model_fields.keys()
"""What is called the same in the event and in the instance."""
_ALWAYS_SHOWN = frozenset({"instance_status_check", "ec2_system_status_check", "public_ip", "private_ip"})
"""What each observation says; the rest only where it changed."""


def _state_observed(worker: Worker, event: InstanceStateObserved, recorded: Recorded) -> Worker:
    if worker.instance is None:
        return worker._replace(revision=recorded.revision)
    seen = {name: getattr(event, name) for name in _SHARED if name in _ALWAYS_SHOWN or name in event.changed}
    seen["state"] = event.instance_state
    instance = worker.instance.model_copy(update=seen)
    return _observed(worker._replace(tags=seen.get("tags", worker.tags)), instance, recorded)


def _observed(worker: Worker, instance: Ec2Instance, recorded: Recorded) -> Worker:
    return worker._replace(
        revision=recorded.revision,
        instance=instance,
        observed_revision=recorded.revision,
        observed_at=recorded.metadata.time,
        updated_at=recorded.metadata.time,
        beginning=None if instance.state in _BEGUN else worker.beginning,
    )


_NEVER_RAN_YET = (InstanceState.PENDING, InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED)
"""States in which the answer to a launch or a start may show an instance that has not run: EC2 may have ended it already, where
that answer came late. The reason of its end says whether it was EC2."""
_BEGUN = (InstanceState.RUNNING, InstanceState.STOPPED)
"""States in which a launch or a start has come to its end."""


def _noted(
    worker: Worker, event: OperationRefused | OperationDelayed | OperationOverdue, recorded: Recorded
) -> Worker:
    operation, at = worker.operations.get(event.operation_id), recorded.metadata.time
    if operation is None:
        return worker._replace(revision=recorded.revision)
    match event:
        case OperationRefused(problem=problem):
            attempts = 1 + (operation.delay.attempts if operation.delay else 0)
            delay = Delay(problem=problem, attempts=attempts, last_at=at)
            noted = operation._replace(refusal=problem, delay=delay)
        case OperationDelayed(problem=problem, attempts=attempts, next_at=next_at):
            delay = Delay(problem=problem, attempts=attempts, last_at=at, next_at=next_at)
            noted = operation._replace(delay=delay)
        case OperationOverdue():
            noted = operation._replace(overdue_at=at)
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
    WorkerRecreated: _recreated,
    WorkerImported: _imported,
    ImportFailed: _import_failed,
    **{kind.intent: _requested for kind in KINDS},
    InstanceLaunched: _launched,
    **{kind.success: _shown for kind in SWITCHES},
    TagsUpdated: _tagged,
    **{kind.failure: _failed for kind in KINDS},
    LaunchFailed: _launch_failed,
    WorkerTerminated: _terminated,
    InstanceStateObserved: _state_observed,
    OperationRefused: _noted,
    OperationDelayed: _noted,
    OperationOverdue: _noted,
    CommandRejected: _answered,
    CommandSkipped: _answered,
}
"""What each event changes; all that there are."""
