"""The catalogue of operations: what belongs to each, said once. Everything else derives from it.

A new operation is a new ``Kind`` here; types and tests then say where a phase of it is missing.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from cml_contracts.commands import (
    CreateCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.events import (
    InstanceLaunched,
    InstanceStarting,
    InstanceStateObserved,
    InstanceStopping,
    Intent,
    LaunchFailed,
    LaunchRequested,
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
    WorkerEvent,
    WorkerImported,
    WorkerTerminated,
)
from cml_contracts.instance import Ec2Instance, InstanceState, WorkerStatus

Switched = InstanceStarting | InstanceStopping
Failure = LaunchFailed | StartFailed | StopFailed | TerminationFailed | TagsUpdateFailed


class Lane(Enum):
    """Operations of one lane are pending one at a time; a termination supersedes those of its lane."""

    POWER = "power"
    TAGS = "tags"


@dataclass(frozen=True, slots=True)
class Kind:
    """An operation: the command that asks for it, its intent, its two outcomes, its lane.

    ``succeeded``: the event of its success, given its command's id and the instance as it is then.
    ``participle``: what happens to a worker while it is pending; ``meanwhile``: its status, where that is not what EC2
    shows; ``explains``: the states in which it may bring the instance. ``leaves_instance``: by outcome, whether there still
    is an instance that the next action may be about.
    """

    command: type[WorkerCommand]
    intent: type[Intent]
    success: type[WorkerEvent]
    succeeded: Callable[[str, Ec2Instance], WorkerEvent]
    failure: type[Failure]
    lane: Lane
    participle: str
    meanwhile: WorkerStatus | None = None
    explains: frozenset[InstanceState] = frozenset()
    success_leaves_instance: bool = True
    failure_leaves_instance: bool = True


def _shows(event: type[InstanceLaunched | Switched]) -> Callable[[str, Ec2Instance], WorkerEvent]:
    return lambda operation_id, instance: event(operation_id=operation_id, instance=instance)


LAUNCH = Kind(
    CreateCMLWorker,
    LaunchRequested,
    InstanceLaunched,
    _shows(InstanceLaunched),
    LaunchFailed,
    Lane.POWER,
    "launched",
    failure_leaves_instance=False,
)
START = Kind(
    StartCMLWorker,
    StartRequested,
    InstanceStarting,
    _shows(InstanceStarting),
    StartFailed,
    Lane.POWER,
    "started",
    meanwhile=WorkerStatus.STARTING,
    explains=frozenset({InstanceState.PENDING, InstanceState.RUNNING}),
)
STOP = Kind(
    StopCMLWorker,
    StopRequested,
    InstanceStopping,
    _shows(InstanceStopping),
    StopFailed,
    Lane.POWER,
    "stopped",
    meanwhile=WorkerStatus.STOPPING,
    explains=frozenset({InstanceState.STOPPING, InstanceState.STOPPED}),
)
TERMINATE = Kind(
    TerminateCMLWorker,
    TerminationRequested,
    WorkerTerminated,
    lambda operation_id, _: WorkerTerminated(operation_id=operation_id),
    TerminationFailed,
    Lane.POWER,
    "terminated",
    meanwhile=WorkerStatus.STOPPING,
    explains=frozenset({InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED}),
    success_leaves_instance=False,
)
TAGS = Kind(
    UpdateCMLWorkerTags,
    TagsUpdateRequested,
    TagsUpdated,
    lambda operation_id, instance: TagsUpdated(operation_id=operation_id, tags=instance.tags),
    TagsUpdateFailed,
    Lane.TAGS,
    "tagged",
)

KINDS = (LAUNCH, START, STOP, TERMINATE, TAGS)
KIND_OF: Mapping[type[Intent], Kind] = {kind.intent: kind for kind in KINDS}

SWITCHES = (START, STOP)
"""What brings an instance from one state to another and back. A termination supersedes it at once: AWS need not be asked
for it any more."""
REVERSIBLE = (*SWITCHES, TAGS)
"""What a later operation may undo, and a call that comes late. It fails where the instance turns out to be terminated."""


_ADOPTION = " adopt"
"""No command's id contains a space, so this can be no other command's operation."""


def adoption_of(command_id: str) -> str:
    """The operation of an import that gives the instance our tags, by which it becomes ours."""
    return command_id + _ADOPTION


def is_adoption(operation_id: str) -> bool:
    return operation_id.endswith(_ADOPTION)


def command_of(operation_id: str) -> str:
    """The command that an operation is of; all but an adoption have its id."""
    return operation_id.removesuffix(_ADOPTION)


def of_user(command_id: str, user: str | None) -> str:
    """The id as one user's, whoever else uses it; ``user``: None where nobody vouches for one."""
    if user is None:
        return command_id
    return f"{command_id} {hashlib.sha256(user.encode()).hexdigest()[:32]}"


def as_sent(operation_id: str) -> str:
    """The id of its command as the sender wrote it, without what was added to it here."""
    return operation_id.partition(" ")[0]


def ids_of(operation_id: str) -> Mapping[str, str | None]:
    """For the log: the command as its sender knows it, and the operation where that has another id."""
    sent = as_sent(operation_id)
    return {"command_id": sent, "operation_id": None if operation_id == sent else operation_id}


def intents(kinds: Iterable[Kind]) -> tuple[type[Intent], ...]:
    """The intents of these kinds."""
    return tuple(kind.intent for kind in kinds)


TRIGGERS: tuple[type[WorkerEvent], ...] = (
    *(kind.intent for kind in KINDS),
    *(kind.success for kind in KINDS if kind.success_leaves_instance),
    *(kind.failure for kind in KINDS if kind.failure_leaves_instance),
    OperationRefused,
    InstanceStateObserved,
    WorkerImported,
)
"""Events after which AWS may have to be acted on or looked at: a request, an outcome that others waited for, an instance
between two states."""
