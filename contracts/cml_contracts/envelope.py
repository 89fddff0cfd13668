"""How contracts travel: commands with their address, events as CloudEvents in structured mode.

CloudEvents 1.0.2: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
(there is no binding for AMQP 0-9-1, so structured mode it is).
"""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import AfterValidator, Field, SerializeAsAny, model_validator

from cml_contracts.commands import COMMANDS, CommandId, WorkerCommand, as_property
from cml_contracts.events import EVENTS, EventMetadata, ReplyAddress, WorkerEvent
from cml_contracts.model import Tolerant

CLOUDEVENTS_JSON = "application/cloudevents+json"
JSON = "application/json"
MAX_BODY = 64 * 1024
"""Bytes a command or query message may have."""
MAX_INTERNAL_BODY = 1024 * 1024
"""Bytes of a message within the system: it carries a command with what EC2 said of it, or an event."""

_STREAM_PREFIX = "cml_worker-"


def stream_of(worker_id: UUID) -> str:
    """The name of the worker's event stream."""
    return f"{_STREAM_PREFIX}{worker_id}"


def worker_of(stream: str) -> UUID:
    """Whose stream it is. Raises ValueError for a stream that is no worker's."""
    if not stream.startswith(_STREAM_PREFIX):
        raise ValueError(f"{stream!r} is not a worker's stream")
    return UUID(stream.removeprefix(_STREAM_PREFIX))


WORKER_STREAMS = _STREAM_PREFIX


class UnknownEventError(ValueError):
    """The event's type is newer than this reader."""


def decode_event(event_type: str, data: bytes | str) -> WorkerEvent:
    """The event from its stored JSON. Raises UnknownEventError, or ValidationError if it is malformed."""
    event = EVENTS.get(event_type)
    if event is None:
        raise UnknownEventError(f"event type {event_type!r} is not known to this version")
    return event.model_validate_json(data)


def _addressable(address: ReplyAddress) -> ReplyAddress:
    as_property(address.reply_to)
    as_property(address.correlation_id or "")
    return address


Property = Annotated[str, AfterValidator(as_property)]
"""A text that has been, or will be, a property of an AMQP message."""


class CommandMessage(Tolerant):
    """A command with everything that came with it on the bus."""

    command_id: CommandId
    command: Annotated[SerializeAsAny[WorkerCommand], Field(union_mode="left_to_right")]
    command_type: str
    correlation_id: Property
    actor: str | None = None
    user: Property | None = None
    traceparent: Property | None = None
    reply: Annotated[ReplyAddress, AfterValidator(_addressable)] | None = None

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
    def worker_id(self) -> UUID:
        return self.command.worker(self.command_id)


class EventEnvelope(Tolerant):
    """An event as subscribers and operators see it; ``event`` is None for a type newer than the reader."""

    id: UUID
    source: str
    type: str
    worker_id: UUID
    revision: int
    time: datetime
    command_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    actor: str | None = None
    reason: str | None = None
    traceparent: str | None = None
    data: dict[str, Any]

    @classmethod
    def of(
        cls,
        source: str,
        worker_id: UUID,
        revision: int,
        metadata: EventMetadata,
        event_type: str,
        data: dict[str, Any],
    ) -> Self:
        """The public face of a stored event: everything but the caller's reply address."""
        return cls(
            id=metadata.event_id,
            source=source,
            type=event_type,
            worker_id=worker_id,
            revision=revision,
            data=data,
            **metadata.model_dump(exclude={"event_id", "reply"}),
        )

    @property
    def event(self) -> WorkerEvent | None:
        known = EVENTS.get(self.type)
        return known.model_validate(self.data) if known else None

    def to_cloudevent(self) -> dict[str, Any]:
        """The JSON object of CloudEvents' structured mode."""
        attributes = {
            "specversion": "1.0",
            "id": str(self.id),
            "source": self.source,
            "type": self.type,
            "subject": str(self.worker_id),
            "time": self.time.isoformat(),
            "datacontenttype": JSON,
            "streamrevision": self.revision,
            "commandid": self.command_id,
            "correlationid": self.correlation_id,
            "causationid": self.causation_id,
            "actor": self.actor,
            "reason": self.reason,
            "traceparent": self.traceparent,
            "data": self.data,
        }
        return {name: value for name, value in attributes.items() if value is not None}

    @classmethod
    def from_cloudevent(cls, attributes: dict[str, Any]) -> Self:
        """The envelope from CloudEvents JSON. Raises ValidationError."""
        return cls.model_validate(
            {
                **attributes,
                "worker_id": attributes.get("subject"),
                "revision": attributes.get("streamrevision"),
                "command_id": attributes.get("commandid"),
                "correlation_id": attributes.get("correlationid"),
                "causation_id": attributes.get("causationid"),
            }
        )
