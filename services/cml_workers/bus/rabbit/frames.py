"""A message as AMQP 0-9-1 has it on the connection: https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, 2.3.5 and 4.2.

By hand, as the relay publishes thousands a second: the library looks at each property, and at its type, again for every message.
"""

import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from struct import Struct
from typing import Any, cast

from aiormq import spec
from aiormq.abc import ChannelFrame

from cml_workers.bus.port import Outgoing

_HEADER, _BODY = 2, 3
"""Types of frames."""
_FRAME = Struct(">BHI")
"""Type, channel, and bytes of the payload, which is followed by ``_END``."""
_END = b"\xce"
_CONTENT = Struct(">HHQH")
"""Class, weight, bytes of the body, and which properties follow."""
_SECONDS = Struct(">Q")
_TYPE, _HEADERS, _DELIVERY, _CORRELATION, _REPLY = 1 << 15, 1 << 13, 1 << 12, 1 << 10, 1 << 9
_ID, _TIME, _KIND, _USER, _APPLICATION = 1 << 7, 1 << 6, 1 << 5, 1 << 4, 1 << 3
"""Flags of the properties, in the order in which they follow."""
_PERSISTENT = b"\x02"
_NO_HEADERS = b"\0\0\0\0"


def frames(
    message: Outgoing, *, message_id: str, user_id: str | None, app_id: str, channel: int, most: int
) -> bytes:
    """``most``: bytes of the body in one frame. Raises ValueError, TypeError for what AMQP cannot say."""
    header = _header(message, message_id, user_id, app_id)
    return b"".join(
        (
            _publish(
                channel,
                message.exchange.name if message.exchange else "",
                message.routing_key,
                message.mandatory,
            ),
            _FRAME.pack(_HEADER, channel, len(header)),
            header,
            _END,
            *_body(message.body, channel, most),
        )
    )


@lru_cache(1_000)
def _publish(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    publish = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    return ChannelFrame.marshall(channel, [publish]).payload


def _table(headers: Mapping[str, object]) -> bytes:
    """Behind the flags: nothing else is there."""
    return spec.Basic.Properties(headers=cast("Any", dict(headers))).marshal()[2:]


def _header(message: Outgoing, message_id: str, user_id: str | None, app_id: str) -> bytes:
    properties = {
        _TYPE: _repeated(message.content_type),
        _HEADERS: _table(message.headers) if message.headers else _NO_HEADERS,
        _DELIVERY: _PERSISTENT,
        _CORRELATION: _short(message.correlation_id),
        _REPLY: _short(message.reply_to),
        _ID: _short(message_id),
        _TIME: _SECONDS.pack(int(time.time())),
        _KIND: _repeated(message.type),
        _USER: _repeated(user_id),
        _APPLICATION: _repeated(app_id),
    }
    flags = sum([flag for flag, data in properties.items() if data])
    return _CONTENT.pack(spec.Basic.frame_id, 0, len(message.body), flags) + b"".join(properties.values())


def _body(body: bytes, channel: int, most: int) -> Iterator[bytes]:
    for start in range(0, len(body), most):
        part = body[start : start + most]
        yield _FRAME.pack(_BODY, channel, len(part))
        yield part
        yield _END


def _short(text: str | None) -> bytes:
    """Nothing, where there is no text."""
    if not text:
        return b""
    data = text.encode()
    if len(data) > 255:
        raise ValueError(f"{text[:50]!r}... has {len(data)} bytes; AMQP allows 255")
    return bytes((len(data),)) + data


_repeated = lru_cache(1_000)(_short)
"""Of what many messages have."""
