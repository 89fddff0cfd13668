"""A recorded event: what happened, its place in the worker's stream, and what surrounds it."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pydantic import ValidationError

from cml_contracts.commands import WorkerCommand
from cml_contracts.events import EVENTS, WorkerEvent
from cml_contracts.model import Tolerant


class ReplyAddress(Tolerant):
    """Where the caller awaits the result: AMQP ``reply_to`` and ``correlation_id`` of its message."""

    reply_to: str
    correlation_id: str | None = None


class Redrive(Tolerant):
    """An operator sent a command again from the dead letters. ``user``: whom the broker vouched for; ``by``: who they said they were.

    ``edited``: with another body or type, so the command is the operator's own; otherwise it is its sender's.
    """

    edited: bool
    user: str | None = None
    by: str | None = None


class EventMetadata(Tolerant):
    """What surrounds an event.

    ``command_id``: the command whose operation it belongs to; None for a plain observation.
    ``causation_id``: the message that was being handled; ``correlation_id``: the caller's thread of work.
    ``actor``: opaque id of who asked for it, None if unknown (drift); ``user``: the broker's user that sent it, if that
    was checked. ``fingerprint``: of the command's body, on the events that it caused itself; None on events of others
    and in streams that were written before there was one. ``redrive``: the operator who sent the command again, if one did.
    ``reply``, ``fingerprint`` and ``redrive`` stay in the store.
    """

    event_id: UUID
    time: datetime
    command_id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    actor: str | None = None
    user: str | None = None
    reason: str | None = None
    traceparent: str | None = None
    fingerprint: str | None = None
    redrive: Redrive | None = None
    reply: ReplyAddress | None = None

    @property
    def sender(self) -> str | None:
        """Whose the command's id is. See ``sender_of``."""
        return sender_of(self.user, self.redrive)


def sender_of(user: str | None, redrive: Redrive | None) -> str | None:
    """In whose name an id is used; None: nobody knows, and it is nobody else's then.

    An edited command has its operator's name, and the id of a sender who may send it again.
    """
    return None if redrive and redrive.edited else user


def is_anothers(sender: str | None, user: str | None) -> bool:
    """Whether an id that one has used is not the other's."""
    return None not in (sender, user) and sender != user


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event of a worker's stream with its place and circumstances."""

    revision: int
    event: WorkerEvent
    metadata: EventMetadata


class UnknownEventError(ValueError):
    """The event's type is newer than this reader."""


class UnreadableEventError(UnknownEventError):
    """An event of a worker is newer than this reader, or none of ours; says which."""


def decode_event(event_type: str, data: bytes | str) -> WorkerEvent:
    """The event from its stored JSON. Raises UnknownEventError, or ValidationError if it is malformed."""
    event = EVENTS.get(event_type)
    if event is None:
        raise UnknownEventError(f"event type {event_type!r} is not known to this version")
    return event.model_validate_json(data)


def described(error: Exception) -> str:
    """Why an event or a message cannot be read, without echoing what is in it."""
    if not isinstance(error, ValidationError):
        return str(error)[:300] if isinstance(error, ValueError) else type(error).__name__
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    what = [
        f"{'.'.join(str(part)[:64] for part in problem['loc']) or 'body'}: {problem['msg'][:200]}"
        for problem in problems[:5]
    ]
    more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    return "; ".join(what) + more


def fingerprint(command: WorkerCommand) -> str:
    """What a command id belongs to.

    The same in whatever order the sender writes, and in a later version, which may know more optional fields.
    """
    body = json.dumps(command.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(f"{command.TYPE}\n{body}".encode()).hexdigest()
