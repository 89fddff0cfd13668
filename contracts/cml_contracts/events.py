"""What happened to a worker: past tense, additive within a version, decodable without end.

An *intent* (``...Requested``) is a recorded request that AWS must act on; an *outcome* is the recorded fact that
completes it. Both carry the ``operation_id``, which is the id of the command that requested it; where another user had used that id
before, it is followed by a space and a hash of the user.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from cml_contracts.instance import Ec2Instance, InstanceState, LaunchParameters, LaunchPlace, StateReason
from cml_contracts.model import Tolerant
from cml_contracts.results import Outcome, Problem


class WorkerCreated(Tolerant):
    """``owner``: None: who created it."""

    TYPE: ClassVar = "cml.worker.created.v1"
    name: str
    aws_region: str
    instance_type: str
    ami_id: str
    ami_name: str | None = None
    cml_version: str | None = None
    tags: Mapping[str, str] = {}
    created_by: str
    profile: str | None = None
    owner: str | None = None


class WorkerRecreated(WorkerCreated):
    """Its launch failed, and it is launched again, as described now; it keeps its owner.

    ``generation``: the number of its launch, which a ``LaunchRequested`` of the same generation follows.
    """

    TYPE: ClassVar = "cml.worker.recreated.v1"
    generation: int


class WorkerImported(Tolerant):
    """An instance that was launched elsewhere is this worker's, as soon as it bears our tags: ``TagsUpdateRequested`` follows.

    ``owner``: None: who imported it.
    """

    TYPE: ClassVar = "cml.worker.imported.v1"
    operation_id: str
    name: str
    instance: Ec2Instance
    created_by: str
    owner: str | None = None


class ImportFailed(Tolerant):
    """The instance did not get our tags, and is not the worker's any more. It may be imported again."""

    TYPE: ClassVar = "cml.worker.import_failed.v1"
    operation_id: str
    problem: Problem


class LaunchRequested(Tolerant):
    """``alternatives``: the places to launch in next, in their order, where EC2 has no room in the one of ``launch``.

    Each is requested by another event of the same operation, with the next generation and its own token.
    """

    TYPE: ClassVar = "cml.worker.launch_requested.v1"
    operation_id: str
    launch: LaunchParameters
    alternatives: tuple[LaunchPlace, ...] = ()


class InstanceLaunched(Tolerant):
    TYPE: ClassVar = "cml.worker.instance_launched.v1"
    operation_id: str
    instance: Ec2Instance


class LaunchFailed(Tolerant):
    """There is no instance. Also after ``InstanceLaunched``, if the instance ended by itself before it ever ran."""

    TYPE: ClassVar = "cml.worker.launch_failed.v1"
    operation_id: str
    problem: Problem


class StartRequested(Tolerant):
    TYPE: ClassVar = "cml.worker.start_requested.v1"
    operation_id: str


class InstanceStarting(Tolerant):
    """EC2 accepted the start; ``instance`` as described right after."""

    TYPE: ClassVar = "cml.worker.instance_starting.v1"
    operation_id: str
    instance: Ec2Instance


class StartFailed(Tolerant):
    """It does not run. Also after ``InstanceStarting``, if the instance fell back by itself before it ran."""

    TYPE: ClassVar = "cml.worker.start_failed.v1"
    operation_id: str
    problem: Problem


class StopRequested(Tolerant):
    TYPE: ClassVar = "cml.worker.stop_requested.v1"
    operation_id: str


class InstanceStopping(Tolerant):
    """EC2 accepted the stop; ``instance`` as described right after."""

    TYPE: ClassVar = "cml.worker.instance_stopping.v1"
    operation_id: str
    instance: Ec2Instance


class StopFailed(Tolerant):
    TYPE: ClassVar = "cml.worker.stop_failed.v1"
    operation_id: str
    problem: Problem


class TerminationRequested(Tolerant):
    TYPE: ClassVar = "cml.worker.termination_requested.v1"
    operation_id: str


class WorkerTerminated(Tolerant):
    """The instance is gone, or there never was one. Final.

    ``operation_id`` None: EC2 or somebody else terminated it. ``warning``: it was gone before our request.
    ``reason``: why, in EC2's words; the two fields behind it are what EC2 said (``Ec2Instance``).
    """

    TYPE: ClassVar = "cml.worker.terminated.v1"
    operation_id: str | None = None
    warning: str | None = None
    reason: str | None = None
    state_reason: StateReason | None = None
    state_transition_reason: str | None = None


class TerminationFailed(Tolerant):
    TYPE: ClassVar = "cml.worker.termination_failed.v1"
    operation_id: str
    problem: Problem


class TagsUpdateRequested(Tolerant):
    TYPE: ClassVar = "cml.worker.tags_update_requested.v1"
    operation_id: str
    tags: Mapping[str, str]


class TagsUpdated(Tolerant):
    """``tags``: all tags of the instance after the change."""

    TYPE: ClassVar = "cml.worker.tags_updated.v1"
    operation_id: str
    tags: Mapping[str, str]


class TagsUpdateFailed(Tolerant):
    TYPE: ClassVar = "cml.worker.tags_update_failed.v1"
    operation_id: str
    problem: Problem


class InstanceStateObserved(Tolerant):
    """EC2 shows the instance otherwise than was recorded; only on change.

    ``changed``: the fields that differ, by their names here; empty in events of versions that did not say. Type, tags and
    reasons are given where they changed, and then None or empty means that there are none any more; the others as EC2 shows
    them, with None for status checks that were not asked for.
    ``drift``: nothing that was decided explains the change.
    """

    TYPE: ClassVar = "cml.worker.instance_state_observed.v1"
    instance_state: InstanceState
    instance_status_check: str | None = None
    ec2_system_status_check: str | None = None
    public_ip: str | None = None
    private_ip: str | None = None
    instance_type: str | None = None
    tags: Mapping[str, str] | None = None
    state_reason: StateReason | None = None
    state_transition_reason: str | None = None
    changed: tuple[str, ...] = ()
    drift: bool = False


class OperationRefused(Tolerant):
    """EC2 refused for good: no more attempts. The outcome follows when it is known whether an earlier one succeeded."""

    TYPE: ClassVar = "cml.worker.operation_refused.v1"
    operation_id: str
    problem: Problem


class OperationDelayed(Tolerant):
    """EC2 did not do it this time, and is asked again. The operation stays pending, and its outcome will follow.

    ``problem``: EC2's answer, or that there was none; ``attempts``: so far; ``next_at``: when the next one is due. Recorded for
    each new reason and whenever the attempts have doubled, so most attempts leave no event.
    """

    TYPE: ClassVar = "cml.worker.operation_delayed.v1"
    operation_id: str
    problem: Problem
    attempts: int
    next_at: datetime


class OperationOverdue(Tolerant):
    """A deadline passed without an outcome. The operation stays pending, and its outcome will follow."""

    TYPE: ClassVar = "cml.worker.operation_overdue.v1"
    operation_id: str


class CommandRejected(Tolerant):
    """A command was rejected, or failed before it had an intent; the worker is unchanged."""

    TYPE: ClassVar = "cml.command.rejected.v1"
    operation_id: str
    command_type: str
    outcome: Outcome
    problem: Problem


class CommandSkipped(Tolerant):
    """A no-op: the desired state was already there; the worker is unchanged."""

    TYPE: ClassVar = "cml.command.skipped.v1"
    operation_id: str
    command_type: str
    data: Any = None


WorkerEvent = (
    WorkerCreated
    | WorkerRecreated
    | WorkerImported
    | ImportFailed
    | LaunchRequested
    | InstanceLaunched
    | LaunchFailed
    | StartRequested
    | InstanceStarting
    | StartFailed
    | StopRequested
    | InstanceStopping
    | StopFailed
    | TerminationRequested
    | WorkerTerminated
    | TerminationFailed
    | TagsUpdateRequested
    | TagsUpdated
    | TagsUpdateFailed
    | InstanceStateObserved
    | OperationRefused
    | OperationDelayed
    | OperationOverdue
    | CommandRejected
    | CommandSkipped
)

Intent = LaunchRequested | StartRequested | StopRequested | TerminationRequested | TagsUpdateRequested

EVENTS: Mapping[str, type[WorkerEvent]] = {event.TYPE: event for event in WorkerEvent.__args__}
