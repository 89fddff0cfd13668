"""The public commands. Sent as AMQP messages to ``cml.commands`` with ``TYPE`` as routing key and type.

The command's id is the AMQP ``message_id``: the idempotency key. The same message delivered again has no second
effect, and gets the same reply; the same id with another body is rejected.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, ValidationError

from cml_contracts.instance import RESERVED_TAG_PREFIX
from cml_contracts.model import Strict

MAX_TAGS = 50
"""Tags an EC2 resource can have, ours included (EC2 user guide, *Tag restrictions*)."""

MAX_TAG_KEY = 128
MAX_TAG_VALUE = 256
"""Characters, likewise."""
MAX_REGION = 32
MAX_COMMAND_ID = 200
MAX_PROPERTY = 255
"""Bytes of a property of an AMQP message (AMQP 0-9-1, *short string*)."""

_NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not contain control characters")
    return text


def _without_spaces(text: str) -> str:
    if " " in text:
        raise ValueError("must not contain spaces")
    return text


def as_property(text: str) -> str:
    """A text that has been, or will be, a property of an AMQP message. Raises ValueError."""
    if len(text.encode()) > MAX_PROPERTY:
        raise ValueError(f"must not have more than {MAX_PROPERTY} bytes, as an AMQP property")
    return text


def _usable_tags(tags: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in tags.items():
        if not 1 <= len(key) <= MAX_TAG_KEY:
            raise ValueError(
                f"tag key {key[:32]!r} has {len(key)} characters; 1 to {MAX_TAG_KEY} are allowed"
            )
        if len(value) > MAX_TAG_VALUE:
            raise ValueError(
                f"the value of tag {key!r} has {len(value)} characters; at most {MAX_TAG_VALUE} are allowed"
            )
        if key.lower().startswith("aws:") or key.lower().startswith(RESERVED_TAG_PREFIX):
            raise ValueError(f"tag key {key!r} begins with a reserved prefix (aws: or {RESERVED_TAG_PREFIX})")
        if not (key + value).isprintable():
            raise ValueError(f"tag {key!r} contains control characters")
    if len(tags) > MAX_TAGS:
        raise ValueError(f"{len(tags)} tags; at most {MAX_TAGS} are allowed")
    return tags


Text = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_printable)]
CommandId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_COMMAND_ID),
    AfterValidator(_printable),
    AfterValidator(_without_spaces),
    AfterValidator(as_property),
]
"""The AMQP ``message_id`` of a command."""
_COMMAND_ID: TypeAdapter[str] = TypeAdapter(CommandId)
Actor = Text
"""An opaque id of who sent it; no personal data."""
Reason = Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(_printable)]
Region = Annotated[
    str, StringConstraints(pattern=r"^[a-z]{2,3}(-[a-z]+)+-[0-9]{1,2}$", max_length=MAX_REGION)
]
InstanceType = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*\.[a-z0-9-]+$", max_length=64)]
AmiId = Annotated[str, StringConstraints(pattern=r"^ami-[0-9a-f]{8,17}$")]
InstanceId = Annotated[str, StringConstraints(pattern=r"^i-[0-9a-f]{8,17}$")]
Tags = Annotated[dict[str, str], AfterValidator(_usable_tags)]


def as_command_id(text: str) -> str:
    """The text, if it can be a command id. Raises ValueError."""
    try:
        return _COMMAND_ID.validate_python(text)
    except ValidationError as error:
        raise ValueError(
            f"a command id has 1 to {MAX_COMMAND_ID} printable characters without spaces, "
            f"and at most {MAX_PROPERTY} bytes"
        ) from error


class CreateCMLWorker(Strict):
    """Launch an instance for a new worker. Reply data: ``CMLWorkerInstanceDto``.

    The image is ``ami_id``, else the one named ``ami_name``, else the deployment's for the region.
    A client may choose ``worker_id``; otherwise it follows from the command id.
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
    """Import an existing instance; the same instance twice is the same worker. Reply data: the DTO."""

    TYPE: ClassVar = "cml.worker.import.v1"

    aws_region: Region
    instance_id: InstanceId
    created_by: Actor
    reason: Reason | None = None

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
