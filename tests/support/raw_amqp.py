"""Publishing what no well-behaved library sends: any bytes and any kind of value in properties and routing keys."""

from datetime import UTC, datetime
from typing import Any, Self

import aiormq
from aiormq import spec
from aiormq.abc import AbstractChannel, AbstractConnection


class Bytes(str):
    """A text whose bytes on the wire are these, whatever they are."""

    __slots__ = ("wire",)
    wire: bytes

    def __new__(cls, wire: bytes) -> Self:
        text = super().__new__(cls, wire.decode("latin-1"))
        text.wire = wire
        return text

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return self.wire


class Seconds(datetime):
    """A timestamp of any 64-bit number of seconds."""

    number: int

    @classmethod
    def of(cls, number: int) -> Self:
        moment = cls(2000, 1, 1, tzinfo=UTC)
        moment.number = number
        return moment

    def timestamp(self) -> float:
        return self.number


def nested(depth: int) -> bytes:
    """Headers, as on the wire: an array in an array in an array, deeper than a library could write."""
    array = b""
    for _ in range(depth):
        array = b"A" + len(array).to_bytes(4, "big") + array
    table = b"\x04deep" + array
    return len(table).to_bytes(4, "big") + table


class Unchecked(spec.Basic.Properties):
    """Properties of any value; bytes are what goes on the wire."""

    def encode_property(self, name: str, value: Any) -> bytes:
        return value if isinstance(value, bytes) else super().encode_property(name, value)


class RawAmqp:
    """A connection that publishes with confirms; properties are given by their AMQP names and never checked."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: AbstractConnection
        self._channel: AbstractChannel

    async def __aenter__(self) -> Self:
        self._connection = await aiormq.connect(self._url)
        self._channel = await self._connection.channel(publisher_confirms=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def publish(self, exchange: str, routing_key: str, body: bytes, **properties: Any) -> None:
        """Return once the broker has the message. Raises AMQPError if it does not want it."""
        unchecked = Unchecked()
        for name, value in properties.items():
            setattr(unchecked, name, value)
        await self._channel.basic_publish(
            body, exchange=exchange, routing_key=routing_key, properties=unchecked, timeout=30
        )
