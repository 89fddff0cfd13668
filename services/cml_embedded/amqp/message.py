"""Messages and their properties, which are passed on byte by byte as they were sent."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from struct import Struct
from typing import Final, Literal

from pamqp import common, decode, encode

Reason = Literal["rejected", "expired", "delivery_limit"]

_HEAD: Final = Struct(">HHQH")  # class, weight, body size, property flags
_BASIC_CLASS: Final = 60
_SHORT_STRING: Final = 0
_TABLE: Final = -1
# In wire order; the first is the highest flag. A positive number is a width in bytes.
_WIDTHS: Final = {
    "content_type": _SHORT_STRING,
    "content_encoding": _SHORT_STRING,
    "headers": _TABLE,
    "delivery_mode": 1,
    "priority": 1,
    "correlation_id": _SHORT_STRING,
    "reply_to": _SHORT_STRING,
    "expiration": _SHORT_STRING,
    "message_id": _SHORT_STRING,
    "timestamp": 8,
    "type": _SHORT_STRING,
    "user_id": _SHORT_STRING,
    "app_id": _SHORT_STRING,
    "cluster_id": _SHORT_STRING,
}
_FIELDS: Final = tuple(
    (1 << (15 - index), name, width) for index, (name, width) in enumerate(_WIDTHS.items())
)
_PERSISTENT: Final = b"\x02"


def now_ms() -> int:
    """Milliseconds since the epoch: expiry has to survive a restart."""
    return time.time_ns() // 1_000_000


def short_string(text: str) -> bytes:
    """A length byte and at most 255 bytes of UTF-8."""
    raw = text.encode()
    return bytes((len(raw),)) + raw


class Properties:
    """The fields of a content header, undecoded, so that what is not changed is forwarded as it was."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, bytes]) -> None:
        self._fields = fields

    @classmethod
    def parse(cls, header: bytes) -> tuple[int, "Properties"]:
        """The body size in bytes, and the properties, of a content header frame's payload.

        Raises:
            ValueError: not a content header of class basic.
        """
        fields: dict[str, bytes] = {}
        try:
            class_id, _, size, flags = _HEAD.unpack_from(header)
            at = _HEAD.size
            for flag, name, width in _FIELDS:
                if flags & flag:
                    if width == _SHORT_STRING:
                        end = at + 1 + header[at]
                    elif width == _TABLE:
                        end = at + 4 + int.from_bytes(header[at : at + 4], "big")
                    else:
                        end = at + width
                    fields[name] = header[at:end]
                    at = end
        except Exception as error:
            raise ValueError("malformed content header") from error
        if class_id != _BASIC_CLASS or flags & 3 or at != len(header):
            raise ValueError("malformed content header")
        return size, cls(fields)

    def header(self, size: int) -> bytes:
        """The payload of a content header frame for a body of ``size`` bytes."""
        flags = 0
        parts = [b""]
        for flag, name, _ in _FIELDS:
            if (raw := self._fields.get(name)) is not None:
                flags |= flag
                parts.append(raw)
        parts[0] = _HEAD.pack(_BASIC_CLASS, 0, size, flags)
        return b"".join(parts)

    @property
    def persistent(self) -> bool:
        return self._fields.get("delivery_mode") == _PERSISTENT

    def text(self, name: str) -> str | None:
        """A short string field, None when it was not sent."""
        raw = self._fields.get(name)
        return None if raw is None else raw[1:].decode()

    @property
    def headers(self) -> common.FieldTable:
        raw = self._fields.get("headers")
        return decode.field_table(raw)[1] if raw else {}

    def with_text(self, name: str, value: str) -> "Properties":
        return Properties({**self._fields, name: short_string(value)})

    def without(self, name: str) -> "Properties":
        return Properties({key: raw for key, raw in self._fields.items() if key != name})

    def with_headers(self, added: common.FieldTable) -> "Properties":
        """With these headers added or replaced; the others keep their very bytes (and their types)."""
        entries = _entries(self._fields.get("headers", b""))
        entries |= {name: encode.encode_table_value(value) for name, value in added.items()}
        table = b"".join(short_string(name) + raw for name, raw in entries.items())
        return Properties({**self._fields, "headers": len(table).to_bytes(4, "big") + table})


def _entries(table: bytes) -> dict[str, bytes]:
    """Name and encoded value of each entry of a field table."""
    entries: dict[str, bytes] = {}
    at = 4
    while at < len(table):
        key_end = at + 1 + table[at]
        used, _ = decode.embedded_value(table[key_end:])
        entries[table[at + 1 : key_end].decode()] = table[key_end : key_end + used]
        at = key_end + used
    return entries


@dataclass(frozen=True, slots=True)
class Message:
    """A message as published: one object, however many queues hold it."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes

    @property
    def ttl(self) -> int | None:
        """The message's own time to live in milliseconds.

        Raises:
            ValueError: the expiration is not a whole number.
        """
        text = self.properties.text("expiration")
        if text is None:
            return None
        if not text.isascii() or not text.isdigit():
            raise ValueError(text)
        return int(text)


@dataclass(slots=True)
class Queued:
    """A message in one queue. ``id`` is its place in the queue, for good.

    ``returns``: how often it came back unacknowledged. ``expires_at``: milliseconds since the epoch.
    """

    id: int
    message: Message
    durable: bool
    expires_at: int | None = None
    returns: int = 0


@dataclass(frozen=True, slots=True)
class Death:
    """Why and where a message becomes a dead letter, and where it goes."""

    reason: Reason
    queue: str
    exchange: str
    routing_key: str | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


def dead_letter(message: Message, death: Death) -> Message:
    """The message as its dead-letter exchange gets it, with its history in the ``x-death`` header.

    See https://www.rabbitmq.com/docs/dlx#effects: one entry for each queue and reason, the latest first,
    counting; the message's own expiration is taken off.
    """
    old = message.properties.headers
    history = old.get("x-death")
    deaths = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    same = [d for d in deaths if (d.get("queue"), d.get("reason")) == (death.queue, death.reason)]
    latest: dict[str, common.FieldValue] = (
        {**same[0], "count": _count(same[0].get("count")) + 1}
        if same
        else {
            "count": 1,
            "reason": death.reason,
            "queue": death.queue,
            "time": death.at,
            "exchange": message.exchange,
            "routing-keys": [message.routing_key],
        }
    )
    if not same and (expiration := message.properties.text("expiration")) is not None:
        latest["original-expiration"] = expiration
    headers: dict[str, common.FieldValue] = {
        "x-death": [latest, *(entry for entry in deaths if entry not in same)],
        "x-last-death-reason": death.reason,
        "x-last-death-queue": death.queue,
        "x-last-death-exchange": message.exchange,
    }
    if not deaths:
        headers |= {
            "x-first-death-reason": death.reason,
            "x-first-death-queue": death.queue,
            "x-first-death-exchange": message.exchange,
        }
    return replace(
        message,
        exchange=death.exchange,
        routing_key=message.routing_key if death.routing_key is None else death.routing_key,
        properties=message.properties.without("expiration").with_headers(headers),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def in_cycle(message: Message, queue: str) -> bool:
    """Whether the message was in ``queue`` before and came round without any client rejecting it."""
    history = message.properties.headers.get("x-death")
    deaths = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    for entry in deaths:
        if entry.get("reason") == "rejected":
            return False
        if entry.get("queue") == queue:
            return True
    return False
