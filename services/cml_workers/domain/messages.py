"""The messages between lifecycle and the EC2 adapter: lookups before a decision, reports after an intent.

These are internal to the system; other services have no use for them. What becomes part of an event is checked
all the same: an event that the read model could not hold would stop it without end.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, SerializeAsAny, model_validator

from cml_contracts.commands import COMMANDS, WorkerCommand
from cml_contracts.instance import Ec2Instance
from cml_contracts.model import Tolerant
from cml_contracts.results import Problem
from cml_contracts.texts import (
    MAX_REGION,
    MAX_TAG_KEY,
    MAX_TAG_VALUE,
    CommandId,
    InstanceId,
    Region,
    Text,
    as_property,
)
from cml_workers.domain.history import Redrive, ReplyAddress, sender_of
from cml_workers.domain.operations import of_user

MAX_INTERNAL_BODY = 1024 * 1024
"""Bytes of a message within the system: it carries a command with what EC2 said of it, or an event."""

MOST_ATTEMPTS = 2**31


def _addressable(address: ReplyAddress) -> ReplyAddress:
    as_property(address.reply_to)
    as_property(address.correlation_id or "")
    return address


Property = Annotated[str, AfterValidator(as_property)]
"""A text that has been, or will be, a property of an AMQP message."""


class CommandMessage(Tolerant):
    """A command with everything that came with it on the bus.

    ``taken``: another user has used its id first, so its operation has an id of its own. It is found out each time that the command comes.
    """

    command_id: CommandId
    command: Annotated[SerializeAsAny[WorkerCommand], Field(union_mode="left_to_right")]
    command_type: str
    correlation_id: Property
    actor: str | None = None
    user: Property | None = None
    traceparent: Property | None = None
    reply: Annotated[ReplyAddress, AfterValidator(_addressable)] | None = None
    redrive: Redrive | None = None
    taken: bool = False

    @model_validator(mode="before")
    @classmethod
    def _command_of_its_type(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and isinstance(fields.get("command"), dict):
            command = COMMANDS.get(str(fields.get("command_type")))
            if command is None:
                raise ValueError("command_type is not known")
            return {**fields, "command": command.model_validate(fields["command"], strict=False)}
        return fields

    @property
    def sender(self) -> str | None:
        """Whose the id is. See ``sender_of``."""
        return sender_of(self.user, self.redrive)

    @property
    def own_id(self) -> str:
        """What its operation is called where another user has used the id first."""
        return of_user(self.command_id, self.sender)

    @property
    def operation_id(self) -> str:
        return self.own_id if self.taken else self.command_id

    @property
    def worker_id(self) -> UUID:
        return self.command.worker(self.operation_id)


def _recordable(instance: Ec2Instance) -> Ec2Instance:
    if any(len(key) > MAX_TAG_KEY or len(value) > MAX_TAG_VALUE for key, value in instance.tags.items()):
        raise ValueError("a tag is longer than EC2 allows")
    if len(instance.aws_region) > MAX_REGION:
        raise ValueError("no region has such a long name")
    return instance


Seen = Annotated[Ec2Instance, AfterValidator(_recordable)]
"""An instance as EC2 can show it."""


class ImageLookup(Tolerant):
    """Which image has this name in this region? ``owner``: whose; None: one of the deployment's image owners."""

    aws_region: Region
    ami_name: Text
    owner: str | None = None


class InstanceLookup(Tolerant):
    """How does EC2 show this instance now?

    ``seen_revision``: the last event about the instance when the lookup was requested; a result that a later
    event made stale is not used.
    """

    aws_region: Region
    instance_id: InstanceId
    seen_revision: int


Lookup = ImageLookup | InstanceLookup


class _Lookup(Tolerant):
    """Its fields have other names on the wire, which stay."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)


class LookupRequested(_Lookup):
    """A command cannot be decided before EC2 has been asked."""

    TYPE: ClassVar = "cml.lookup.requested.v1"
    origin: CommandMessage
    lookup: Lookup = Field(alias="question")


class LookupResult(Tolerant):
    """EC2's answer; all None: there is no such image or instance.

    ``problem``: EC2 would not say.
    """

    image_id: str | None = None
    instance: Seen | None = None
    problem: Problem | None = None


class LookupAnswered(_Lookup):
    """The command comes back with what EC2 said."""

    TYPE: ClassVar = "cml.report.lookup_answered.v1"
    origin: CommandMessage
    lookup: Lookup = Field(alias="question")
    looked_up: LookupResult = Field(alias="finding")


class OperationSucceeded(Tolerant):
    """AWS did it. ``instance``: as described afterwards, None when EC2 does not know it any more.

    ``seen_revision``: the last event about the instance when it was acted on; None in reports of versions that did not say.
    ``generation``: of a launch, here and in the two below: one operation may launch in one place after the other.
    """

    TYPE: ClassVar = "cml.report.operation_succeeded.v1"
    worker_id: UUID
    operation_id: str
    seen_revision: int | None = None
    instance: Seen | None = None
    warning: str | None = None
    generation: int | None = None


class AttemptRefused(Tolerant):
    """AWS definitely did not do it this time, and will not as asked; what an earlier attempt did is looked up next."""

    TYPE: ClassVar = "cml.report.attempt_refused.v1"
    worker_id: UUID
    operation_id: str
    problem: Problem
    generation: int | None = None


class AttemptDelayed(Tolerant):
    """AWS did not do it this time, and is asked again at ``next_at``; after so many ``attempts`` at the operation."""

    TYPE: ClassVar = "cml.report.attempt_delayed.v1"
    worker_id: UUID
    operation_id: str
    problem: Problem
    attempts: Annotated[int, Field(ge=1, le=MOST_ATTEMPTS)]
    next_at: AwareDatetime
    generation: int | None = None


class OperationFailed(Tolerant):
    """AWS definitely did not do it."""

    TYPE: ClassVar = "cml.report.operation_failed.v1"
    worker_id: UUID
    operation_id: str
    problem: Problem
    generation: int | None = None


class InstanceObserved(Tolerant):
    """How EC2 shows the instance; None: gone, looked for twice after the grace for new instances.

    ``seen_revision``: the last event about the instance when EC2 was asked; an observation that a later
    event made stale is not recorded.
    """

    TYPE: ClassVar = "cml.report.instance_observed.v1"
    worker_id: UUID
    seen_revision: int
    instance: Seen | None = None


class OperationOutstanding(Tolerant):
    """An intent has gone without an outcome for longer than the deployment's deadline."""

    TYPE: ClassVar = "cml.report.operation_outstanding.v1"
    worker_id: UUID
    operation_id: str


class Reminder(Tolerant):
    """Something of this worker may have been forgotten: read its stream. A trigger, as an event is.

    ``recheck_since``: when a call was done of which an earlier attempt may be carried out late, behind whatever comes
    next: compare the instance with what is recorded until no such call can come any more.
    """

    TYPE: ClassVar = "cml.reminder.v1"
    worker_id: UUID
    recheck_since: AwareDatetime | None = None


WorkerReport = (
    OperationSucceeded
    | AttemptRefused
    | AttemptDelayed
    | OperationFailed
    | InstanceObserved
    | OperationOutstanding
)
"""What concerns a worker's stream."""

Report = LookupAnswered | WorkerReport

REPORTS: Mapping[str, type[Report]] = {report.TYPE: report for report in Report.__args__}
