"""Messages as the library delivers them, as handlers see them, and as they are published again."""

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

from aio_pika.abc import AbstractIncomingMessage

from cml_workers.bus.deaths import death_of, kept
from cml_workers.bus.headers import (
    ATTEMPT_HEADER,
    CAUSE_HEADER,
    DEATH_HEADER,
    DELIVERIES_HEADER,
    OWN_HEADERS,
    QUEUE_HEADER,
    REASON_HEADER,
    RECEIVED_HEADER,
    SIGNATURE_HEADER,
    USER_HEADER,
)
from cml_workers.bus.port import DeadLetter, Message, Outgoing
from cml_workers.bus.topology import DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, DELIVERY_LIMIT, Queue
from cml_workers.bus.trust import Trust
from cml_workers.foundation.secrets import redacted

MAX_HEADER_NAME = 128
"""Bytes; the library truncates a longer one (AMQP 0-9-1, 4.2.5.5)."""
MAX_TABLE = 200
"""Characters that are kept of a header that is no plain value."""
MAX_REASON = 1000
"""Characters of a dead letter's reason, which may quote its error: headers must fit into one frame."""


def delivered(raw: AbstractIncomingMessage, queue: Queue, trust: Trust) -> tuple[Message, str | None]:
    """The message for its handler, with those of our own headers that are believed; and why it is refused."""
    headers: dict[str, object] = dict(raw.headers or {})
    redeliveries = _redeliveries(raw, headers)
    published = Message(
        body=raw.body,
        type=raw.type or raw.routing_key or "",
        routing_key=raw.routing_key or "",
        message_id=raw.message_id or None,
        correlation_id=raw.correlation_id or None,
        reply_to=raw.reply_to or None,
        headers=headers,
        content_type=raw.content_type or None,
        user_id=raw.user_id or None,
        redelivered=bool(raw.redelivered),
        deliveries=1 + redeliveries,
    )
    judgment = trust.judge(published, queue, raw.exchange or "")
    user: object = published.user_id
    if judgment.believed:
        user = headers.pop(USER_HEADER) or None
        headers.pop(SIGNATURE_HEADER, None)
    else:
        headers = {name: value for name, value in headers.items() if name not in OWN_HEADERS}
    message = replace(
        published,
        headers=headers,
        user_id=user if isinstance(user, str) else None,
        attempt=counter(headers.get(ATTEMPT_HEADER)),
        received_at=datetime.fromtimestamp(counter(headers.get(RECEIVED_HEADER)) or time.time(), UTC),
    )
    return message, judgment.refusal


def _redeliveries(raw: AbstractIncomingMessage, headers: dict[str, object]) -> int:
    """How often it came back to this queue because its handling failed; removes what the broker counted.

    With a message that was not redelivered this is what its sender wrote. From RabbitMQ 4.3 on, what the delivery limit
    dead-lettered comes as redelivered, with the count it died of; and ``x-acquired-count`` has, besides, how often it was
    given back without a failure.
    """
    count = counter(headers.pop("x-delivery-count", 0))
    headers.pop("x-acquired-count", None)
    if not raw.redelivered:
        return 0
    deaths = headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    died_of_it = isinstance(last, dict) and last.get("reason") == "delivery_limit"
    return count - DELIVERY_LIMIT - 1 if died_of_it and count > DELIVERY_LIMIT else count


def publishable(headers: Mapping[str, object]) -> dict[str, object]:
    """The headers to publish again: plain values; a table may not survive, so it becomes text."""
    return {
        name: value if isinstance(value, str | int | float) else repr(value)[:MAX_TABLE]
        for name, value in headers.items()
        if len(name.encode()) <= MAX_HEADER_NAME and name != "x-death"
    }


def to_retry_queue(
    message: Message, headers: Mapping[str, object], *, queue: Queue, delay: int, own_user: str
) -> Outgoing:
    """The same message for the retry queue of ``delay`` seconds; a dead letter keeps what is known of its death."""
    counted = {**_known(message, headers, queue), ATTEMPT_HEADER: message.attempt + 1}
    return _again(message, counted, own_user, into=queue.retry_queue(delay))


def to_own_queue(message: Message, headers: Mapping[str, object], *, queue: Queue, own_user: str) -> Outgoing:
    """The same message for the end of its queue: neither a retry nor a redelivery."""
    return _again(
        message,
        {**_known(message, headers, queue), ATTEMPT_HEADER: message.attempt},
        own_user,
        into=queue.name,
    )


def _known(message: Message, headers: Mapping[str, object], queue: Queue) -> dict[str, object]:
    died = death_of(message.headers).headers if queue is DEAD_LETTER_QUEUE else {}
    received = int(message.received_at.timestamp()) if message.received_at else 0
    return {**headers, **died, RECEIVED_HEADER: received}


def to_dead_letters(
    message: Message, headers: Mapping[str, object], verdict: DeadLetter, *, queue: Queue, own_user: str
) -> Outgoing:
    """The same message for the dead letters, with its reason."""
    died = {
        **kept(headers),
        QUEUE_HEADER: queue.name,
        CAUSE_HEADER: str(verdict.cause),
        REASON_HEADER: _printable(redacted(verdict.reason)[:MAX_REASON]),
        DELIVERIES_HEADER: message.deliveries,
        DEATH_HEADER: str(uuid4()),
    }
    return _again(message, died, own_user, into=None)


def _again(message: Message, headers: Mapping[str, object], own_user: str, *, into: str | None) -> Outgoing:
    """The same message into this queue, or (None) to the dead letters.

    The property ``user_id`` must name the publisher, which is us, so the sender's user goes into a header: see ``trust``.
    """
    return Outgoing(
        exchange=None if into else DEAD_LETTER_EXCHANGE,
        routing_key=into or message.routing_key,
        body=message.body,
        type=message.type,
        message_id=message.message_id or "",
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        content_type=message.content_type,
        headers={**headers, USER_HEADER: message.user_id or ""},
        user_id=own_user,
    )


def counter(header: object) -> int:
    """The value of a header that counts; 0 if it is no count."""
    return header if isinstance(header, int) and 0 <= header < 2**31 else 0


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
