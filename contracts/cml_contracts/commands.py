"""The public commands. Sent as AMQP messages to ``cml.commands`` with ``TYPE`` as routing key and type.

The command's id is the AMQP ``message_id``: the idempotency key. The same message delivered again has no second
effect, and gets the same reply; the same id with another body is rejected.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import Field

from cml_contracts.model import Strict
from cml_contracts.texts import (
    Actor,
    AmiId,
    InstanceId,
    InstanceType,
    ProfileName,
    Reason,
    Region,
    Tags,
    Text,
)

_NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers")


class CreateCMLWorker(Strict):
    """Launch an instance for a new worker. Reply data: ``CMLWorkerInstanceDto``.

    The reply comes as soon as EC2 has launched the instance. If that ends by itself before it ever ran, the create has failed:
    the operation shows it, and a second reply says so.

    The image is ``ami_id``, else the one named ``ami_name``, else the profile's for the region; everything else is as in the
    profile, and ``instance_type`` one of those that it launches. Without ``profile`` it is the deployment's default one.
    A client may choose ``worker_id``; otherwise it follows from the command id. A worker whose launch failed may be created
    again, in its region: a new command with its ``worker_id`` launches it under a new token. The worker is ``owner``'s; without one
    ``created_by``'s.
    """

    TYPE: ClassVar = "cml.worker.create.v1"

    name: Text
    aws_region: Region
    instance_type: InstanceType | None = None
    ami_id: AmiId | None = None
    ami_name: Text | None = None
    cml_version: Text | None = None
    tags: Tags = {}
    created_by: Actor
    worker_id: UUID | None = None
    reason: Reason | None = None
    profile: ProfileName | None = None
    owner: Actor | None = None

    def worker(self, command_id: str) -> UUID:
        """The worker that the command is for."""
        return self.worker_id or uuid5(_NAMESPACE, f"worker/{command_id}")

    @property
    def actor(self) -> str | None:
        return self.created_by


class _OfWorker(Strict):
    worker_id: UUID
    reason: Reason | None = None

    def worker(self, _command_id: str) -> UUID:
        """The worker that the command is for."""
        return self.worker_id


class StartCMLWorker(_OfWorker):
    """Start a stopped worker. Reply data: true."""

    TYPE: ClassVar = "cml.worker.start.v1"

    started_by: Actor | None = None

    @property
    def actor(self) -> str | None:
        return self.started_by


class StopCMLWorker(_OfWorker):
    """Stop a running worker, or one that is starting, as soon as it runs. Reply data: true."""

    TYPE: ClassVar = "cml.worker.stop.v1"

    stopped_by: Actor | None = None

    @property
    def actor(self) -> str | None:
        return self.stopped_by


class TerminateCMLWorker(_OfWorker):
    """Terminate the worker and its instance, which is final. Reply data: true."""

    TYPE: ClassVar = "cml.worker.terminate.v1"

    terminated_by: Actor | None = None

    @property
    def actor(self) -> str | None:
        return self.terminated_by


class UpdateCMLWorkerTags(_OfWorker):
    """Add or overwrite tags; no tag is removed. Reply data: all tags after the change."""

    TYPE: ClassVar = "cml.worker.update_tags.v1"

    tags: Annotated[Tags, Field(min_length=1)]
    updated_by: Actor | None = None

    @property
    def actor(self) -> str | None:
        return self.updated_by


class UpdateCMLWorkerStatus(_OfWorker):
    """Look up the instance in EC2 now, and record what changed. Reply data: instance_state and both status checks."""

    TYPE: ClassVar = "cml.worker.update_status.v1"

    @property
    def actor(self) -> str | None:
        return None


class ImportCMLWorker(Strict):
    """Import an existing instance; the same instance twice is the same worker. Reply data: the DTO.

    The worker is ``owner``'s; without one ``created_by``'s.
    """

    TYPE: ClassVar = "cml.worker.import.v1"

    aws_region: Region
    instance_id: InstanceId
    created_by: Actor
    reason: Reason | None = None
    owner: Actor | None = None

    def worker(self, _command_id: str) -> UUID:
        """The worker that the command is for: one for each instance, whoever imports it."""
        return uuid5(_NAMESPACE, f"instance/{self.aws_region}/{self.instance_id}")

    @property
    def actor(self) -> str | None:
        return self.created_by


WorkerCommand = (
    CreateCMLWorker
    | StartCMLWorker
    | StopCMLWorker
    | TerminateCMLWorker
    | UpdateCMLWorkerTags
    | UpdateCMLWorkerStatus
    | ImportCMLWorker
)

COMMANDS: Mapping[str, type[WorkerCommand]] = {
    command.TYPE: command
    for command in (
        CreateCMLWorker,
        StartCMLWorker,
        StopCMLWorker,
        TerminateCMLWorker,
        UpdateCMLWorkerTags,
        UpdateCMLWorkerStatus,
        ImportCMLWorker,
    )
}
