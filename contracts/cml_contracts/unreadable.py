"""What comes to a client's queue and cannot be read: it is stepped over, logged, counted, and shown to the application.

Nobody but the system can write to a queue with a user's own name, but a queue that was shared once, or has another name, may
contain anything.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from aio_pika.abc import AbstractIncomingMessage
from pydantic import ValidationError

from cml_contracts.envelope import EventEnvelope

log = logging.getLogger(__name__)

PROBLEMS = 3
"""As many of what is wrong with a message are named."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message that is no event and no result, and why not. ``user``: whom the broker vouches for as its sender, if anybody."""

    queue: str
    why: str
    body: bytes
    type: str | None
    message_id: str | None
    user: str | None


class SteppedOver:
    """Counts the messages that were stepped over."""

    def __init__(self, on_unreadable: Callable[[Unreadable], None] | None) -> None:
        self.count = 0
        self._on_unreadable = on_unreadable

    def add(self, queue: str, message: AbstractIncomingMessage, error: ValueError) -> None:
        """Whatever the application's function raises goes through; the message is settled by then."""
        self.count += 1
        why = _described(error)
        log.warning("a message in %s is stepped over, as it cannot be read: %s", queue, why)
        if self._on_unreadable is not None:
            self._on_unreadable(
                Unreadable(queue, why, message.body, message.type, message.message_id, message.user_id)
            )


def event_in(message: AbstractIncomingMessage) -> EventEnvelope:
    """The event, of which ``event`` can be asked without an error. Raises ValueError."""
    try:
        attributes = json.loads(message.body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(attributes, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - one error for all that is unreadable
    envelope = EventEnvelope.from_cloudevent(attributes)
    _ = envelope.event
    return envelope


def _described(error: ValueError) -> str:
    """Without what the message contains: it may be hostile, or secret."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_input=False)[:PROBLEMS]
        return "; ".join(f"{'.'.join(map(str, each['loc'][:1]))}: {each['msg']}" for each in problems)[:500]
    if isinstance(error, UnicodeDecodeError | json.JSONDecodeError):
        return "it is no JSON"
    return str(error)[:500]
