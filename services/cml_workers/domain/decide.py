"""The rules: what a command does to a worker. Plain functions of what is known.

Each answers with a ``Decision``: record events, no change, ask EC2 first, or reject.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any, assert_never

from cml_contracts.commands import (
    CreateCMLWorker,
    ImportCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
)
from cml_contracts.events import (
    LaunchRequested,
    StartRequested,
    StopRequested,
    TagsUpdateRequested,
    TerminationRequested,
    WorkerEvent,
    WorkerTerminated,
)
from cml_contracts.instance import (
    DEPLOYMENT_TAG,
    WorkerStatus,
)
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.creation import are_too_many, check_tag_count, create_worker, import_instance
from cml_workers.domain.decisions import (
    Decision,
    LookupNeededError,
    NoChange,
    Record,
    RejectedError,
    rejected,
)
from cml_workers.domain.messages import CommandMessage, LookupResult
from cml_workers.domain.observations import failure_of
from cml_workers.domain.operations import SWITCHES, intents
from cml_workers.domain.policy import Policy
from cml_workers.domain.situation import Situation, situation
from cml_workers.domain.worker import Worker


def decide(
    message: CommandMessage,
    worker: Worker,
    *,
    policy: Policy,
    now: datetime,
    looked_up: LookupResult | None = None,
) -> Decision:
    """What a command does; ``looked_up``: what EC2 answered, where it was asked."""
    at = situation(message, worker, policy, now, looked_up)
    try:
        decided = _events(message, at)
    except LookupNeededError as needed:
        return needed.decision
    except RejectedError as rejected:
        return replace(rejected.decision, news=at.news)
    if decided:
        return Record([*at.news, *decided])
    return NoChange(already_so(message, at.worker, looked_up), at.news)


def _events(message: CommandMessage, at: Situation) -> list[WorkerEvent]:
    """[] where it is so already."""
    command, command_id, worker = message.command, message.operation_id, at.worker
    match command:
        case CreateCMLWorker():
            return create_worker(command, command_id, worker, at.policy, at.looked_up)
        case StartCMLWorker():
            return _start(_ours(at), command_id, at)
        case StopCMLWorker():
            return _stop(_ours(at), command_id, at)
        case TerminateCMLWorker():
            return _terminate(_existing(worker), command_id, at)
        case UpdateCMLWorkerTags():
            return _update_tags(command, command_id, _ours(at), at)
        case UpdateCMLWorkerStatus():
            _with_instance(at.recorded)
            at.look()
            return []
        case ImportCMLWorker():
            return import_instance(command, command_id, at)
    assert_never(command)


def already_so(message: CommandMessage, worker: Worker, looked_up: LookupResult | None) -> Any:
    """The reply data of a command that changes nothing, and of every status update."""
    command = message.command
    match command:
        case StartCMLWorker() | StopCMLWorker() | TerminateCMLWorker():
            return True
        case UpdateCMLWorkerTags():
            return dict(worker.tags)
        case UpdateCMLWorkerStatus():
            instance = (looked_up and looked_up.instance) or worker.instance
            assert instance is not None  # noqa: S101 - without one the command was rejected
            return {
                "instance_state": instance.state.value,
                "instance_status_check": instance.instance_status_check,
                "ec2_system_status_check": instance.ec2_system_status_check,
            }
        case CreateCMLWorker() | ImportCMLWorker():
            return worker.dto.model_dump(mode="json") if worker.dto else None
    assert_never(command)


def _existing(worker: Worker) -> Worker:
    if not worker.exists:
        # Its creation may be on its way: commands of one worker may arrive out of order.
        raise rejected(ProblemCode.WORKER_NOT_FOUND, f"worker {worker.id} is not known", retryable=True)
    return worker


def _with_instance(worker: Worker) -> Worker:
    _existing(worker)
    if worker.terminated:
        raise rejected(ProblemCode.WORKER_TERMINATED, f"worker {worker.id} is terminated")
    if worker.instance is None:
        if worker.pending(LaunchRequested):
            raise rejected(
                ProblemCode.CONFLICT, f"worker {worker.id} is still being launched", retryable=True
            )
        raise rejected(ProblemCode.NO_INSTANCE, f"worker {worker.id} has no instance")
    return worker


def _ours(at: Situation) -> Worker:
    """The worker, whose instance nobody gave to another deployment: whatever bears that one's tag is left alone."""
    worker = _with_instance(at.worker)
    owner = worker.tags.get(DEPLOYMENT_TAG, at.policy.deployment)
    if owner != at.policy.deployment:
        at.confirm()
        assert worker.instance is not None  # noqa: S101 - `_with_instance` saw it
        raise rejected(
            ProblemCode.CONFLICT,
            f"instance {worker.instance.instance_id} of worker {worker.id} belongs to deployment {owner!r} now",
        )
    return worker


def _at_rest(worker: Worker) -> WorkerStatus:
    """What EC2 showed last, which is what counts while nothing is pending. What is pending may still fail."""
    if worker.pending(TerminationRequested):
        raise rejected(ProblemCode.CONFLICT, f"worker {worker.id} is being terminated")
    for kind in SWITCHES:
        if worker.pending(kind.intent):
            raise rejected(
                ProblemCode.CONFLICT, f"worker {worker.id} is being {kind.participle}", retryable=True
            )
    return worker.status


def _start(worker: Worker, command_id: str, at: Situation) -> list[WorkerEvent]:
    status = _at_rest(worker)
    if status is WorkerStatus.STOPPED:
        return [StartRequested(operation_id=command_id)]
    at.confirm()
    if status is WorkerStatus.STOPPING:
        raise rejected(ProblemCode.CONFLICT, f"worker {worker.id} is stopping", retryable=True)
    return []


def _stop(worker: Worker, command_id: str, at: Situation) -> list[WorkerEvent]:
    if _at_rest(worker) in (WorkerStatus.STOPPING, WorkerStatus.STOPPED):
        at.confirm()
        return []
    return [StopRequested(operation_id=command_id)]


def _terminate(worker: Worker, command_id: str, at: Situation) -> list[WorkerEvent]:
    if worker.terminated:
        return []
    if worker.instance is not None:
        _ours(at)
    requested = TerminationRequested(operation_id=command_id)
    if worker.instance is None and not worker.pending(LaunchRequested):
        return [requested, WorkerTerminated(operation_id=command_id)]
    superseded = Problem.of(ProblemCode.CONFLICT, f"superseded by the termination of worker {worker.id}")
    return [
        *(failure_of(operation, superseded) for operation in worker.pending(*intents(SWITCHES))),
        requested,
    ]


def _update_tags(
    command: UpdateCMLWorkerTags, command_id: str, worker: Worker, at: Situation
) -> list[WorkerEvent]:
    if worker.pending(TerminationRequested):
        raise rejected(ProblemCode.CONFLICT, f"worker {worker.id} is being terminated")
    pending = worker.pending(TagsUpdateRequested)
    if not pending and {**worker.tags, **command.tags} == worker.tags:
        # While anything is pending it is not satisfied, though it may look so.
        at.confirm()
        return []
    wanted = dict(worker.tags)
    for operation in pending:
        wanted.update(operation.tags)
    wanted.update(command.tags)
    if are_too_many(wanted):
        at.confirm()
    check_tag_count(wanted)
    return [TagsUpdateRequested(operation_id=command_id, tags=command.tags)]
