"""A dead letter as plain functions of its message: its identity, where and why it died, and its redrive."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from cml_workers.bus.headers import (
    CAUSE_HEADER,
    DEATH_HEADER,
    DELIVERIES_HEADER,
    FAULT_HEADER,
    OWN_HEADERS,
    QUEUE_HEADER,
    REASON_HEADER,
    REDRIVE_HEADER,
    USER_HEADER,
)
from cml_workers.bus.port import Message, Outgoing
from cml_workers.bus.topology import DELIVERY_LIMIT, QUEUES
from cml_workers.foundation.secrets import may_be_secret

_NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers/dead-letter")
_OF_THE_BROKER = ("x-death", "x-first-death-", "x-last-death-")
_BROKER_CAUSES: Mapping[str, tuple[str, str]] = {
    "delivery_limit": (
        "DeliveryLimit",
        f"delivered {DELIVERY_LIMIT + 1} times and never settled: it kills its consumer, or the consumer was killed each time",
    ),
    "rejected": ("Rejected", "rejected by its consumer"),
    "expired": ("Expired", "waited for too long"),
    "maxlen": ("QueueFull", "its queue was full"),
}


@dataclass(frozen=True, slots=True)
class Letter:
    """A message and its last death. ``death`` identifies this death among others of the same message."""

    id: UUID
    death: str
    queue: str
    cause: str
    reason: str
    type: str
    body: bytes
    message_id: str | None
    correlation_id: str | None
    reply_to: str | None
    content_type: str | None
    user: str | None
    headers: Mapping[str, Any]
    deliveries: int
    attempts: int
    faults: int


def letter_of(message: Message) -> Letter:
    """The dead letter that a message of the dead-letter queue is.

    The same message (id, type, body and sender) that dies in the same queue again is the same dead letter, and so
    is one that was redriven, also if it was edited.
    """
    headers = message.headers
    queue, cause, reason, death, deliveries = _death(headers)
    redriven, _, number = str(headers.get(REDRIVE_HEADER, "")).partition("/")
    known = _uuid(redriven)
    identity = [
        queue,
        message.message_id,
        message.type,
        message.user_id,
        hashlib.sha256(message.body).hexdigest(),
    ]
    return Letter(
        id=known or uuid5(_NAMESPACE, json.dumps(identity)),
        death=f"{number if known else ''}/{death}",
        queue=queue,
        cause=cause,
        reason=reason,
        type=message.type,
        body=message.body,
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        content_type=message.content_type,
        user=message.user_id,
        headers={name: _plain(value) for name, value in headers.items() if _may_be_kept(name)},
        deliveries=deliveries,
        attempts=message.attempt,
        faults=_count(headers.get(FAULT_HEADER)),
    )


def again(letter: Letter, number: int, own_user: str) -> Outgoing:
    """The message of redrive ``number``, for the queue it died in, with its counters cleared.

    In its sender's name, as a retry; to its queue alone, as other consumers have had it.
    """
    kept = {name: value for name, value in letter.headers.items() if not name.startswith(_OF_THE_BROKER)}
    return Outgoing(
        exchange=None,
        routing_key=letter.queue,
        body=letter.body,
        type=letter.type,
        message_id=letter.message_id or "",
        correlation_id=letter.correlation_id,
        reply_to=letter.reply_to,
        content_type=letter.content_type,
        headers={**kept, USER_HEADER: letter.user or "", REDRIVE_HEADER: f"{letter.id}/{number}"},
        user_id=own_user,
    )


def _death(headers: Mapping[str, object]) -> tuple[str, str, str, str, int]:
    """Queue, cause, reason, mark and deliveries: as the role wrote that dead-lettered it, or else the broker."""
    if QUEUE_HEADER in headers:
        return (
            str(headers[QUEUE_HEADER]),
            str(headers.get(CAUSE_HEADER, "Refused")),
            str(headers.get(REASON_HEADER, "")),
            str(headers.get(DEATH_HEADER, "")),
            _count(headers.get(DELIVERIES_HEADER)),
        )
    deaths = headers.get("x-death")
    queues = {queue.name for queue in QUEUES}
    for death in deaths if isinstance(deaths, list) else ():  # the latest first; a retry queue is no death
        if isinstance(death, dict) and death.get("queue") in queues:
            cause, reason = _BROKER_CAUSES.get(
                str(death.get("reason")), ("Unknown", str(death.get("reason")))
            )
            mark = f"{death.get('time')}/{death.get('count')}"
            deliveries = DELIVERY_LIMIT + 1 if death.get("reason") == "delivery_limit" else 1
            return str(death["queue"]), cause, reason, mark, deliveries
    return "", "Unknown", "published to the dead letters by another program", "", 1


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _may_be_kept(name: str) -> bool:
    return name not in OWN_HEADERS and not may_be_secret(name)


def _plain(value: object) -> Any:
    """The header as JSON has it."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(name): _plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case bytes():
            return value.decode(errors="backslashreplace")
        case _:
            return str(value)


def _count(header: object) -> int:
    """The count, within what an INTEGER of PostgreSQL holds, whatever a sender wrote."""
    return max(0, min(header, 2**31 - 1)) if isinstance(header, int) else 0
