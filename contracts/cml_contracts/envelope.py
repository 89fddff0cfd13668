"""How events travel: as CloudEvents in structured mode.

CloudEvents 1.0.2: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
(there is no binding for AMQP 0-9-1, so structured mode it is).
"""

from datetime import datetime
from typing import Any, Self
from uuid import UUID

from cml_contracts.events import EVENTS, WorkerEvent
from cml_contracts.model import Tolerant

CLOUDEVENTS_JSON = "application/cloudevents+json"
JSON = "application/json"
MAX_BODY = 64 * 1024
"""Bytes a command or query message may have."""
MAX_REPLY = 1024 * 1024
"""Bytes a reply has at most. A broker closes the channel of whoever publishes more than its ``max_message_size``, which must be larger."""
MAX_PAGE = 768 * 1024
"""Bytes of what a page lists: it ends there, with a cursor for the next one, also where it has fewer than were asked for."""


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
