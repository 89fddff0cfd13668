"""The rules: what a command or a report does to a worker. Plain functions of what is known.

Each answers with a ``Decision``: record events, no change, ask EC2 first, or reject. Commands are judged, observations
never: what EC2 shows is recorded as it is, and marked as drift where nothing that was decided explains it.
"""

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_never
from uuid import UUID

from cml_contracts.commands import (
    MAX_TAGS,
    CreateCMLWorker,
    ImportCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
)
from cml_contracts.events import (
    InstanceStateObserved,
    LaunchFailed,
    LaunchRequested,
    OperationOverdue,
    OperationRefused,
    StartRequested,
    StopRequested,
    TagsUpdateRequested,
    TerminationRequested,
    WorkerCreated,
    WorkerEvent,
    WorkerImported,
    WorkerTerminated,
)
from cml_contracts.instance import (
    DEPLOYMENT_TAG,
    WORKER_TAG,
    Ec2Instance,
    InstanceState,
    LaunchParameters,
    WorkerStatus,
)
from cml_contracts.results import Outcome, Problem, ProblemCode
from cml_workers.domain.messages import (
    AttemptRefused,
    CommandMessage,
    ImageLookup,
    InstanceLookup,
    InstanceObserved,
    LookupResult,
    OperationFailed,
    OperationOutstanding,
    OperationSucceeded,
    WorkerReport,
)
from cml_workers.domain.operations import LAUNCH, SUPERSEDED, TERMINATE, Failure
from cml_workers.domain.policy import Policy
from cml_workers.domain.worker import Operation, Worker


@dataclass(frozen=True, slots=True)
class Record:
    """These events happen; never none."""

    events: Sequence[WorkerEvent]


@dataclass(frozen=True, slots=True)
class NoChange:
    """What is asked for is so already, or is known; ``data``: of the reply to a command."""

    data: Any = None


@dataclass(frozen=True, slots=True)
class Ask:
    """EC2 has to be asked before this can be decided."""

    lookup: ImageLookup | InstanceLookup


@dataclass(frozen=True, slots=True)
class Reject:
    """Nothing happens. ``failed`` instead of ``rejected``: it cannot be done as AWS is set up."""

    problem: Problem
    outcome: Outcome = "rejected"


Decision = Record | NoChange | Ask | Reject
Lookup = ImageLookup | InstanceLookup


class _Rejected(Exception):  # noqa: N818 - how a rule says no, wherever it stands
    def __init__(self, problem: Problem, outcome: Outcome = "rejected") -> None:
        super().__init__(problem.detail)
        self.decision = Reject(problem, outcome)


def _rejected(code: ProblemCode, detail: str, *, retryable: bool = False) -> _Rejected:
    """A rule of ours says no."""
    return _Rejected(Problem.of(code, detail, retryable=retryable))


def _failed(code: ProblemCode, detail: str, *, retryable: bool = False) -> _Rejected:
    """It cannot be done as AWS is set up."""
    return _Rejected(Problem.of(code, detail, retryable=retryable), "failed")


def decide(
    message: CommandMessage,
    worker: Worker,
    *,
    policy: Policy,
    now: datetime,
    looked_up: LookupResult | None = None,
) -> Decision:
    """What a command does; ``looked_up``: what EC2 answered, where it was asked."""
    try:
        decided = _events(message, worker, policy, now, looked_up)
    except _Rejected as rejected:
        return rejected.decision
    if isinstance(decided, ImageLookup | InstanceLookup):
        return Ask(decided)
    return Record(decided) if decided else NoChange(already_so(message, worker, looked_up))


def _events(
    message: CommandMessage, worker: Worker, policy: Policy, now: datetime, looked_up: LookupResult | None
) -> list[WorkerEvent] | Lookup:
    """[] where it is so already."""
    command, command_id = message.command, message.command_id
    match command:
        case CreateCMLWorker():
            if worker.exists:
                raise _rejected(ProblemCode.CONFLICT, f"worker {worker.id} exists already")
            return _create(command, command_id, worker, policy, looked_up)
        case StartCMLWorker():
            return _start(_with_instance(worker), command_id)
        case StopCMLWorker():
            return _stop(_with_instance(worker), command_id)
        case TerminateCMLWorker():
            return _terminate(_existing(worker), command_id)
        case UpdateCMLWorkerTags():
            return _update_tags(command, command_id, _with_instance(worker))
        case UpdateCMLWorkerStatus():
            return _update_status(_with_instance(worker), policy, now, looked_up)
        case ImportCMLWorker():
            return _import(command, command_id, worker, policy, looked_up)
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


# -- create and import ------------------------------------------------------------------------------------


def launch_token(deployment: str, worker_id: UUID, generation: int) -> str:
    """The ClientToken of a worker's launch: EC2 launches at most one instance under it (64 characters).

    It is the deployment's own: worker ids follow from command ids, and two deployments in one account may get the
    same command.
    """
    return hashlib.sha256(f"{deployment}/{worker_id}/launch/{generation}".encode()).hexdigest()


def _create(
    command: CreateCMLWorker, command_id: str, worker: Worker, policy: Policy, looked_up: LookupResult | None
) -> list[WorkerEvent] | Lookup:
    _check_region(command.aws_region, policy)
    instance_type = command.instance_type or policy.default_instance_type
    if policy.allowed_instance_types and instance_type not in policy.allowed_instance_types:
        allowed = ", ".join(sorted(policy.allowed_instance_types))
        raise _rejected(
            ProblemCode.VALIDATION_FAILED, f"instance type {instance_type} is not allowed; allowed: {allowed}"
        )
    tags = {
        "Name": command.name,
        **policy.default_tags,
        **command.tags,
        WORKER_TAG: str(worker.id),
        DEPLOYMENT_TAG: policy.deployment,
    }
    _check_tag_count(tags)

    ami_id, ami_name = command.ami_id, command.ami_name
    if ami_id is None and ami_name is None:
        ami_id = policy.ami_ids.get(command.aws_region)
        ami_name = policy.ami_names.get(command.aws_region)
    if ami_id is None:
        if ami_name is None:
            raise _failed(
                ProblemCode.EC2_INVALID_PARAMETER,
                f"no AMI is given and none is configured for region {command.aws_region}",
            )
        if looked_up is None:
            return ImageLookup(aws_region=command.aws_region, ami_name=ami_name)
        if looked_up.problem:
            raise _Rejected(looked_up.problem, "failed")
        if looked_up.image_id is None:
            raise _failed(
                ProblemCode.EC2_INVALID_PARAMETER,
                f"no available AMI named {ami_name!r} in region {command.aws_region}",
            )
        ami_id = looked_up.image_id

    generation = 1
    return [
        WorkerCreated(
            name=command.name,
            aws_region=command.aws_region,
            instance_type=instance_type,
            ami_id=ami_id,
            ami_name=ami_name,
            cml_version=command.cml_version,
            tags=command.tags,
            created_by=command.created_by,
        ),
        LaunchRequested(
            operation_id=command_id,
            launch=LaunchParameters(
                aws_region=command.aws_region,
                ami_id=ami_id,
                ami_name=ami_name,
                instance_type=instance_type,
                security_group_ids=policy.security_group_ids,
                subnet_id=policy.subnet_id,
                key_name=policy.key_name,
                tags=tags,
                generation=generation,
                client_token=launch_token(policy.deployment, worker.id, generation),
            ),
        ),
    ]


def _import(
    command: ImportCMLWorker, command_id: str, worker: Worker, policy: Policy, looked_up: LookupResult | None
) -> list[WorkerEvent] | Lookup:
    _check_region(command.aws_region, policy)
    if worker.terminated:
        raise _rejected(
            ProblemCode.WORKER_TERMINATED,
            f"instance {command.instance_id} was worker {worker.id}, which is terminated",
        )
    if worker.exists and (worker.instance is None or worker.instance.instance_id != command.instance_id):
        raise _rejected(
            ProblemCode.CONFLICT, f"worker {worker.id} exists already, and is of another instance"
        )
    if worker.exists:
        return []
    if looked_up is None:
        return InstanceLookup(
            aws_region=command.aws_region,
            instance_id=command.instance_id,
            seen_revision=worker.observed_revision,
        )
    if looked_up.problem:
        raise _Rejected(looked_up.problem, "failed")
    instance = looked_up.instance
    if instance is None:
        raise _failed(
            ProblemCode.EC2_INSTANCE_NOT_FOUND,
            f"instance {command.instance_id} is not found in region {command.aws_region}",
        )
    if instance.state in (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED):
        raise _failed(
            ProblemCode.EC2_INSTANCE_OPERATION, f"instance {command.instance_id} is {instance.state}"
        )
    if instance.tags.get(WORKER_TAG, str(worker.id)) != str(worker.id):
        raise _rejected(
            ProblemCode.CONFLICT,
            f"instance {command.instance_id} belongs to worker {instance.tags[WORKER_TAG]} already",
        )
    ours = {WORKER_TAG: str(worker.id), DEPLOYMENT_TAG: policy.deployment}
    _check_tag_count({**instance.tags, **ours})
    return [
        WorkerImported(
            operation_id=command_id,
            name=instance.tags.get("Name") or command.instance_id,
            instance=instance,
            created_by=command.created_by,
        ),
        # No command's id contains a space, so this can be no other command's operation.
        TagsUpdateRequested(operation_id=f"{command_id} adopt", tags=ours),
    ]


def _check_region(region: str, policy: Policy) -> None:
    if policy.allowed_regions and region not in policy.allowed_regions:
        allowed = ", ".join(sorted(policy.allowed_regions))
        raise _rejected(ProblemCode.VALIDATION_FAILED, f"region {region} is not allowed; allowed: {allowed}")


# -- power ------------------------------------------------------------------------------------------------


def _existing(worker: Worker) -> Worker:
    if not worker.exists:
        # Its creation may be on its way: commands of one worker may arrive out of order.
        raise _rejected(ProblemCode.WORKER_NOT_FOUND, f"worker {worker.id} is not known", retryable=True)
    return worker


def _with_instance(worker: Worker) -> Worker:
    _existing(worker)
    if worker.terminated:
        raise _rejected(ProblemCode.WORKER_TERMINATED, f"worker {worker.id} is terminated")
    if worker.instance is None:
        if worker.pending(LaunchRequested):
            raise _rejected(
                ProblemCode.CONFLICT, f"worker {worker.id} is still being launched", retryable=True
            )
        raise _rejected(ProblemCode.NO_INSTANCE, f"worker {worker.id} has no instance")
    return worker


def _at_rest(worker: Worker) -> WorkerStatus:
    """What EC2 showed last, which is what counts while nothing is pending. What is pending may still fail."""
    if worker.pending(TerminationRequested):
        raise _rejected(ProblemCode.CONFLICT, f"worker {worker.id} is being terminated")
    for kind in SUPERSEDED:
        if worker.pending(kind.intent):
            raise _rejected(
                ProblemCode.CONFLICT, f"worker {worker.id} is being {kind.participle}", retryable=True
            )
    return worker.status


def _start(worker: Worker, command_id: str) -> list[WorkerEvent]:
    status = _at_rest(worker)
    if status in (WorkerStatus.STARTING, WorkerStatus.RUNNING):
        return []
    if status is WorkerStatus.STOPPING:
        raise _rejected(ProblemCode.CONFLICT, f"worker {worker.id} is stopping", retryable=True)
    return [StartRequested(operation_id=command_id)]


def _stop(worker: Worker, command_id: str) -> list[WorkerEvent]:
    if _at_rest(worker) in (WorkerStatus.STOPPING, WorkerStatus.STOPPED):
        return []
    return [StopRequested(operation_id=command_id)]


def _terminate(worker: Worker, command_id: str) -> list[WorkerEvent]:
    if worker.terminated:
        return []
    requested = TerminationRequested(operation_id=command_id)
    if worker.instance is None and not worker.pending(LaunchRequested):
        return [requested, WorkerTerminated(operation_id=command_id)]
    superseded = Problem.of(ProblemCode.CONFLICT, f"superseded by the termination of worker {worker.id}")
    return [
        *(
            _failure(operation, superseded)
            for operation in worker.pending(*(kind.intent for kind in SUPERSEDED))
        ),
        requested,
    ]


# -- tags and status --------------------------------------------------------------------------------------


def _update_tags(command: UpdateCMLWorkerTags, command_id: str, worker: Worker) -> list[WorkerEvent]:
    if worker.pending(TerminationRequested):
        raise _rejected(ProblemCode.CONFLICT, f"worker {worker.id} is being terminated")
    pending = worker.pending(TagsUpdateRequested)
    if not pending and {**worker.tags, **command.tags} == worker.tags:
        return []  # while anything is pending it is not satisfied, though it may look so
    wanted = dict(worker.tags)
    for operation in pending:
        assert isinstance(operation.intent, TagsUpdateRequested)  # noqa: S101 - `pending` chose it by that
        wanted.update(operation.intent.tags)
    _check_tag_count({**wanted, **command.tags})
    return [TagsUpdateRequested(operation_id=command_id, tags=command.tags)]


def _check_tag_count(tags: Mapping[str, str]) -> None:
    counted = [key for key in tags if not key.startswith("aws:")]
    if len(counted) > MAX_TAGS:
        raise _rejected(
            ProblemCode.VALIDATION_FAILED,
            f"{len(counted)} tags, the reserved and default ones included; EC2 allows {MAX_TAGS}",
        )


def _update_status(
    worker: Worker, policy: Policy, now: datetime, looked_up: LookupResult | None
) -> list[WorkerEvent] | Lookup:
    instance = worker.instance
    assert instance is not None  # noqa: S101 - `_with_instance` saw it
    if looked_up is None:
        return InstanceLookup(
            aws_region=worker.aws_region,
            instance_id=instance.instance_id,
            seen_revision=worker.observed_revision,
        )
    if looked_up.problem:
        raise _Rejected(looked_up.problem, "failed")
    if (
        looked_up.instance is None
        and worker.launched_at
        and now - worker.launched_at < policy.visibility_grace
    ):
        raise _failed(
            ProblemCode.EC2_INSTANCE_NOT_FOUND,
            f"instance {instance.instance_id} of worker {worker.id} is not visible in EC2 yet",
            retryable=True,
        )
    return _observe(worker, looked_up.instance)


# -- what the adapter reports -----------------------------------------------------------------------------


def decide_report(
    report: WorkerReport, worker: Worker, *, known: Container[str] = ()
) -> Record | NoChange | Reject:
    """What an outcome or an observation adds: nothing if it is known or superseded.

    ``known``: operations that the worker had, beside the pending ones. Rejected is what names any other.
    """
    try:
        events = _reported(report, worker, known)
    except _Rejected as rejected:
        return rejected.decision
    return Record(events) if events else NoChange()


def _reported(report: WorkerReport, worker: Worker, known: Container[str]) -> list[WorkerEvent]:
    if worker.terminated:
        return []
    if isinstance(report, InstanceObserved):
        return _observe(worker, report.instance) if report.seen_revision >= worker.observed_revision else []
    operation = worker.operations.get(report.operation_id)
    if operation is None:
        if report.operation_id in known:
            return []
        raise _rejected(
            ProblemCode.VALIDATION_FAILED, f"worker {worker.id} has no operation {report.operation_id!r}"
        )
    match report:
        case OperationSucceeded():
            return _success(operation, report, worker)
        case OperationOutstanding():
            return [] if operation.overdue_at else [OperationOverdue(operation_id=report.operation_id)]
        case AttemptRefused():
            if operation.refusal:
                return []
            return [OperationRefused(operation_id=report.operation_id, problem=report.problem)]
        case OperationFailed():
            failure = _failure(operation, report.problem)
            if isinstance(failure, LaunchFailed) and worker.pending(TerminationRequested):
                return [failure, *_end(worker, worker.pending(TerminationRequested)[0].command_id)]
            return [failure]
    assert_never(report)


def _success(operation: Operation, report: OperationSucceeded, worker: Worker) -> list[WorkerEvent]:
    operation_id, kind, instance = operation.command_id, operation.kind, report.instance
    if kind is TERMINATE:
        return _end(worker, operation_id, report.warning)
    if instance is None:
        raise _rejected(
            ProblemCode.VALIDATION_FAILED, f"report on {operation_id!r} lacks the instance it is about"
        )
    succeeded = kind.succeeded(operation_id, instance)
    if kind is not LAUNCH or instance.state is not InstanceState.TERMINATED:
        return [succeeded]
    terminations = worker.pending(TerminationRequested)
    return [succeeded, *_end(worker, terminations[0].command_id if terminations else None)]


def _failure(operation: Operation, problem: Problem) -> Failure:
    return operation.kind.failure(operation_id=operation.command_id, problem=problem)


def _end(worker: Worker, operation_id: str | None, warning: str | None = None) -> list[WorkerEvent]:
    """The termination, before which every other open intent gets its outcome."""
    gone = Problem.of(ProblemCode.WORKER_TERMINATED, f"worker {worker.id} was terminated meanwhile")
    return [
        *(
            _failure(operation, gone)
            for operation in worker.pending(StartRequested, StopRequested, TagsUpdateRequested)
        ),
        WorkerTerminated(operation_id=operation_id, warning=warning),
    ]


def _observe(worker: Worker, instance: Ec2Instance | None) -> list[WorkerEvent]:
    recorded = worker.instance
    if recorded is None:
        return []
    if instance is None or instance.state is InstanceState.TERMINATED:
        terminations = worker.pending(TerminationRequested)
        return _end(worker, terminations[0].command_id if terminations else None)
    seen = InstanceStateObserved(
        instance_state=instance.state,
        instance_status_check=instance.instance_status_check,
        ec2_system_status_check=instance.ec2_system_status_check,
        public_ip=instance.public_ip,
        private_ip=instance.private_ip,
        drift=instance.state is not recorded.state and not _expected(worker, recorded.state, instance.state),
    )
    known = (
        recorded.state,
        recorded.instance_status_check,
        recorded.ec2_system_status_check,
        recorded.public_ip,
        recorded.private_ip,
    )
    now = (
        seen.instance_state,
        seen.instance_status_check,
        seen.ec2_system_status_check,
        seen.public_ip,
        seen.private_ip,
    )
    return [] if known == now else [seen]


def _expected(worker: Worker, before: InstanceState, after: InstanceState) -> bool:
    """Whether what was decided explains that the instance went from one state to another."""
    if (before, after) in (
        (InstanceState.PENDING, InstanceState.RUNNING),
        (InstanceState.STOPPING, InstanceState.STOPPED),
    ):
        return True
    match after:
        case InstanceState.PENDING | InstanceState.RUNNING:
            return bool(worker.pending(StartRequested))
        case InstanceState.STOPPING | InstanceState.STOPPED:
            return bool(worker.pending(StopRequested))
        case _:
            return bool(worker.pending(TerminationRequested))
