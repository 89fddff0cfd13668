"""A message that the AMQP library cannot read becomes a dead letter, and does not end the connection.

RabbitMQ passes properties and routing keys on as they came: bytes that are no UTF-8, timestamps beyond the year 9999,
deeply nested tables. The library closes the connection on them, and as the message is delivered again, one message would
close its consumer's connection until its delivery limit. Read tolerantly, it arrives without its properties and with a
header that says why.
"""

from typing import Any

from aiormq import spec

UNREADABLE_HEADER = "x-cml-unreadable"
"""Why a message has no property but this one."""
MAX_PROPERTIES = 16 * 1024
"""Bytes of properties that are read: the library takes quadratic time, and we publish them again, with more."""

_read_properties = spec.Basic.Properties.unmarshal
_read_delivery = spec.Basic.Deliver.unmarshal


def read_tolerantly() -> None:
    """From now on, in this process: the library knows no other way."""
    spec.Basic.Properties.unmarshal = _properties  # type: ignore[method-assign]
    spec.Basic.Deliver.unmarshal = _delivery  # type: ignore[method-assign]


def _properties(self: Any, flags: int, data: bytes) -> None:
    problem = _read_or_problem(self, flags, data)
    if problem is not None:
        for name in self.__slots__:
            setattr(self, name, None)
        self.headers = {UNREADABLE_HEADER: problem[:200]}


def _read_or_problem(properties: Any, flags: int, data: bytes) -> str | None:
    if len(data) > MAX_PROPERTIES:
        return f"{len(data)} bytes; at most {MAX_PROPERTIES} are read"
    try:
        _read_properties(properties, flags, data)
    except Exception as error:  # noqa: BLE001 - overflow, recursion, Unicode, struct: each ends the connection
        return f"{type(error).__name__}: {error}"
    return None if properties.delivery_mode in (None, 1, 2) else "delivery_mode is neither 1 nor 2"


def _delivery(self: Any, data: bytes) -> None:
    try:
        _read_delivery(self, data)
    except UnicodeDecodeError:  # the routing key comes last, and nothing before it is the sender's
        self.routing_key = ""
