"""The CMLWorker aggregate: its state.

Of its operations a worker holds the pending ones; what became of the others is said by ``domain/ledger.py``. How each event
changes it: ``domain/fold.py``.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple, assert_never
from uuid import UUID

from cml_contracts.events import Intent, TagsUpdateRequested
from cml_contracts.instance import NAME_TAG, CMLWorkerInstanceDto, Ec2Instance, InstanceState, WorkerStatus
from cml_contracts.results import Delay, Problem
from cml_workers.domain.history import EventMetadata
from cml_workers.domain.operations import KIND_OF, Kind


class Operation(NamedTuple):
    """One command's request that has no outcome yet.

    ``requested`` surrounds the request: who, when, and where the reply goes; ``refusal``: EC2's, after which nobody
    tries again; ``delay``: why it is not done yet; ``overdue_at``: when a deadline passed meanwhile.
    """

    command_id: str
    intent: Intent
    requested: EventMetadata
    refusal: Problem | None = None
    delay: Delay | None = None
    overdue_at: datetime | None = None

    @property
    def kind(self) -> Kind:
        """What the catalogue says of it."""
        return KIND_OF[type(self.intent)]

    @property
    def tags(self) -> Mapping[str, str]:
        """What a tag update asks for; empty of everything else."""
        return self.intent.tags if isinstance(self.intent, TagsUpdateRequested) else {}


class Worker(NamedTuple):
    """A worker: the fold of its events; a tuple, as that is copied fastest.

    ``instance`` is what EC2 showed last; ``observed_revision`` is the event that showed it, ``observed_at`` its time.
    ``given_name``: the one it was created or imported with. ``revision`` -1: nothing is recorded yet.
    ``operations``: the pending ones by their command's id, oldest first.
    ``generation``: the number of its last launch, 0 before the first and where it was imported.
    ``beginning``: the launch or start that EC2 accepted last, until the instance is seen running.
    """

    id: UUID
    revision: int = -1
    given_name: str = ""
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
    generation: int = 0
    launched_at: datetime | None = None
    observed_revision: int = -1
    observed_at: datetime | None = None
    launch_problem: Problem | None = None
    terminated: bool = False
    operations: Mapping[str, Operation] = MappingProxyType({})
    beginning: Operation | None = None

    @property
    def name(self) -> str:
        """The Name tag of its instance, whoever wrote it; the given name where there is none, or an empty one."""
        return _named(self.tags, self.given_name)

    @property
    def exists(self) -> bool:
        """Whether it was ever created or imported."""
        return self.created_at is not None

    def is_new(self, now: datetime, grace: timedelta) -> bool:
        """Whether its instance was launched so short a time ago that EC2 may not show it yet."""
        return self.launched_at is not None and now - self.launched_at < grace

    def operation(self, command_id: str) -> Operation | None:
        """The command's operation, if its outcome is open or may still be corrected."""
        if self.beginning is not None and self.beginning.command_id == command_id:
            return self.beginning
        return self.operations.get(command_id)

    def pending(self, *intents: type[Intent]) -> list[Operation]:
        """The operations that still have no outcome to an intent of these types, oldest first."""
        return [operation for operation in self.operations.values() if isinstance(operation.intent, intents)]

    @property
    def delay(self) -> Delay | None:
        """What its oldest operation waits for that EC2 has not carried out yet."""
        return next((each.delay for each in self.operations.values() if each.delay), None)

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
        return CMLWorkerInstanceDto.of(
            self.id, _named(instance.tags, self.given_name), self.ami_name, instance
        )


def _named(tags: Mapping[str, str], given_name: str) -> str:
    return tags.get(NAME_TAG) or given_name


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
