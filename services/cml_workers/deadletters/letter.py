"""A dead letter as plain functions of its message: its identity, where and why it died, and its redrive."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from cml_contracts.envelope import MAX_BODY
from cml_workers.bus.deaths import count, death_of, kept
from cml_workers.bus.headers import FAULT_HEADER, OPERATOR_HEADER, OWN_HEADERS, REDRIVE_HEADER, USER_HEADER
from cml_workers.bus.port import Message, Outgoing
from cml_workers.bus.topology import BETWEEN_ROLES, HANDLED, PUBLIC
from cml_workers.domain.history import Redrive
from cml_workers.domain.messages import MAX_INTERNAL_BODY
from cml_workers.foundation.secrets import redacted

NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers/dead-letter")
"""Of the ids of dead letters."""
_BETWEEN_ROLES = frozenset(
    queue.name for queue in HANDLED if any(binding.exchange in BETWEEN_ROLES for binding in queue.bindings)
)
FROM_SENDERS = PUBLIC
"""The queues of what comes from outside; what the roles send each other may be what EC2 did."""
_OF_THE_BROKER = ("x-death", "x-first-death-", "x-last-death-")


@dataclass(frozen=True, slots=True)
class Letter:
    """A message and its last death. ``death`` identifies this death among others of the same message.

    ``whole_size``, ``whole_sha256``: of a body of which only the first bytes are kept; None of one that is kept whole.
    """

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
    whole_size: int | None = None
    whole_sha256: str | None = None

    @property
    def is_cut(self) -> bool:
        return self.whole_size is not None


def letter_of(message: Message) -> Letter:
    """The dead letter that a message of the dead-letter queue is.

    The same message (id, type, body and sender) that dies in the same queue again is the same dead letter, and so
    is one that was redriven, also if it was edited.
    """
    headers = message.headers
    death = death_of(headers)
    sha256 = hashlib.sha256(message.body).hexdigest()
    is_cut = len(message.body) > _longest(death.queue)
    redriven, _, number = str(headers.get(REDRIVE_HEADER, "")).partition("/")
    known = _uuid(redriven)
    identity = [
        death.queue,
        message.message_id,
        message.type,
        message.user_id,
        sha256,
    ]
    return Letter(
        id=known or uuid5(NAMESPACE, json.dumps(identity)),
        death=f"{number if known else ''}/{death.mark}",
        queue=death.queue,
        cause=death.cause,
        reason=redacted(death.reason),
        type=message.type,
        body=message.body[:MAX_BODY] if is_cut else message.body,
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        content_type=message.content_type,
        user=message.user_id,
        headers={name: _plain(value) for name, value in kept(headers).items() if name not in OWN_HEADERS},
        deliveries=death.deliveries,
        attempts=message.attempt,
        faults=count(headers.get(FAULT_HEADER)),
        whole_size=len(message.body) if is_cut else None,
        whole_sha256=sha256 if is_cut else None,
    )


def again(letter: Letter, number: int, own_user: str, redrive: Redrive) -> Outgoing:
    """The message of redrive ``number``, for the queue it died in, with its counters cleared, and whose redrive it is.

    In its sender's name, as a retry, or its editor's; to its queue alone, as other consumers have had it.
    """
    own = {name: value for name, value in letter.headers.items() if not name.startswith(_OF_THE_BROKER)}
    return Outgoing(
        exchange=None,
        routing_key=letter.queue,
        body=letter.body,
        type=letter.type,
        message_id=letter.message_id or "",
        correlation_id=letter.correlation_id,
        reply_to=letter.reply_to,
        content_type=letter.content_type,
        headers={
            **own,
            USER_HEADER: letter.user or "",
            REDRIVE_HEADER: f"{letter.id}/{number}",
            OPERATOR_HEADER: redrive.model_dump_json(),
        },
        user_id=own_user,
    )


def _longest(queue: str) -> int:
    """Bytes of a body that its queue's consumer reads: what is longer will never be handled, and is not kept whole."""
    return MAX_INTERNAL_BODY if queue in _BETWEEN_ROLES else MAX_BODY


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


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
