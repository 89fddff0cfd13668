"""What a trigger says: which worker to look at. It never says what to do; that is read from the worker's stream."""

import json
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pydantic import ValidationError

from cml_contracts.envelope import EventEnvelope
from cml_workers.bus.codec import BadMessageError, read
from cml_workers.bus.port import Message
from cml_workers.domain.history import EventMetadata, Recorded
from cml_workers.domain.messages import MAX_INTERNAL_BODY, Reminder
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.worker_streams import Workers

_PUBLISHED = {"time", "command_id", "correlation_id", "causation_id", "actor", "reason", "traceparent"}


@dataclass(frozen=True, slots=True)
class Trigger:
    """``event``: as it was published; None for a reminder. ``recheck_since``: see ``Reminder``."""

    worker_id: UUID
    event: EventEnvelope | None = None
    recheck_since: datetime | None = None

    @property
    def region(self) -> str | None:
        """The region of a worker that is created; None where the event does not say it."""
        data = self.event.data if self.event else {}
        launch = data.get("launch")
        region = launch.get("aws_region") if isinstance(launch, dict) else data.get("aws_region")
        return region if isinstance(region, str) else None

    @property
    def is_durable(self) -> bool:
        """Whether nothing comes again by itself if this message is lost: the next reminder does."""
        return self.event is not None or self.recheck_since is not None


def read_trigger(message: Message) -> Trigger:
    """The trigger. Raises BadMessageError if it is neither a reminder nor a CloudEvent of a worker."""
    if message.type == Reminder.TYPE:
        reminder = read(message, {Reminder.TYPE: Reminder})
        return Trigger(reminder.worker_id, recheck_since=reminder.recheck_since)
    if len(message.body) > MAX_INTERNAL_BODY:
        raise BadMessageError(f"the body has {len(message.body)} bytes")
    try:
        event = EventEnvelope.from_cloudevent(json.loads(message.body))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BadMessageError(
            f"neither a reminder nor a CloudEvent of a worker: {type(error).__name__}"
        ) from error
    return Trigger(event.worker_id, event)


def advanced(workers: Workers, envelope: EventEnvelope) -> Worker | None:
    """The worker at hand, after the event of a trigger; None where that cannot be said without the stream."""
    worker = workers.at_hand(envelope.worker_id)
    if worker is None or worker.revision < envelope.revision - 1:
        return None
    if worker.revision >= envelope.revision:
        return worker
    try:
        event = envelope.event
    except ValidationError:
        return None
    if event is None:
        return None
    # It lacks what is not published: where the reply goes.
    metadata = EventMetadata(event_id=envelope.id, **envelope.model_dump(include=_PUBLISHED))
    return workers.advance(worker, Recorded(envelope.revision, event, metadata))
