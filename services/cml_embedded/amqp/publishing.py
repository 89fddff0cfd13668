"""The publishing side of a channel: messages on their way in, confirms on their way out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from pamqp.commands import Basic

from cml_embedded.amqp.broker import REPLY_TO, Broker
from cml_embedded.amqp.errors import AmqpError, Code, precondition_failed, unsupported
from cml_embedded.amqp.message import Message, Properties, short_string
from cml_embedded.amqp.wire import Wire

MAX_MESSAGE: Final = 128 * 1024 * 1024
"""Bytes of a body; RabbitMQ 3.x has 128 MiB, 4.x 16 MiB."""

_RETURN: Final = Struct(">HHH").pack(60, 50, Code.NO_ROUTE) + short_string("NO_ROUTE")


@dataclass(slots=True)
class _Incoming:
    """A message on its way in: the method came, header and body follow."""

    publish: Basic.Publish
    properties: Properties | None = None
    size: int = 0
    parts: list[bytes] = field(default_factory=list)
    received: int = 0


class Publishing:
    """``reply_address``: where the channel gets direct replies, if it consumes them."""

    def __init__(
        self, channel: int, broker: Broker, wire: Wire, reply_address: Callable[[], str | None]
    ) -> None:
        self.confirming = False
        self.closed = False
        self._channel = channel
        self._broker = broker
        self._wire = wire
        self._reply_address = reply_address
        self._incoming: _Incoming | None = None
        self._published = 0
        self._unconfirmed: dict[int, None] = {}
        self._confirmed: list[int] = []

    @property
    def under_way(self) -> bool:
        """Whether a header or body must come next."""
        return self._incoming is not None

    def begin(self, publish: Basic.Publish) -> None:
        if publish.immediate:
            raise unsupported("immediate")
        self._broker.exchange(publish.exchange)
        self._incoming = _Incoming(publish)

    def header(self, payload: bytes) -> None:
        incoming = self._incoming
        if incoming is None or incoming.properties is not None:
            raise AmqpError(Code.UNEXPECTED_FRAME, "expected method frame, got header frame instead")
        try:
            incoming.size, incoming.properties = Properties.parse(payload)
        except ValueError as error:
            raise AmqpError(Code.SYNTAX_ERROR, str(error)) from error
        if incoming.size > MAX_MESSAGE:
            self._incoming = None
            raise precondition_failed(
                f"message size {incoming.size} is larger than configured max size {MAX_MESSAGE}"
            )
        if incoming.size == 0:
            self._complete(incoming, incoming.properties)

    def body(self, payload: bytes) -> None:
        incoming = self._incoming
        if incoming is None or incoming.properties is None:
            raise AmqpError(Code.UNEXPECTED_FRAME, "expected method frame, got body frame instead")
        incoming.parts.append(payload)
        incoming.received += len(payload)
        if incoming.received > incoming.size:
            raise AmqpError(Code.FRAME_ERROR, "more body than announced")
        if incoming.received == incoming.size:
            self._complete(incoming, incoming.properties)

    def flush_confirms(self) -> None:
        """Acknowledge what was published; in one frame when nothing before it is outstanding."""
        confirmed, self._confirmed = sorted(self._confirmed), []
        for sequence in confirmed:
            del self._unconfirmed[sequence]
        if not confirmed or self.closed:
            return
        if len(confirmed) > 1 and next(iter(self._unconfirmed), self._published + 1) > confirmed[-1]:
            self._wire.send(self._channel, Basic.Ack(delivery_tag=confirmed[-1], multiple=True))
            return
        for sequence in confirmed:
            self._wire.send(self._channel, Basic.Ack(delivery_tag=sequence))

    def _complete(self, incoming: _Incoming, properties: Properties) -> None:
        self._incoming = None
        publish = incoming.publish
        message = Message(
            publish.exchange, publish.routing_key, self._checked(properties), b"".join(incoming.parts)
        )
        try:
            _ = message.ttl
        except ValueError as error:
            raise precondition_failed(f"invalid expiration '{error}'") from error
        if self.confirming:
            self._published += 1
            self._unconfirmed[self._published] = None
        published = self._broker.publish(message)
        if publish.mandatory and not published.routed:
            self._return(message)
        if not self.confirming:
            return
        sequence = self._published
        if not published.accepted:
            del self._unconfirmed[sequence]
            self._wire.send(self._channel, Basic.Nack(delivery_tag=sequence, requeue=False))
        elif published.persisted:
            self._broker.journal.after_commit(lambda: self._confirm(sequence))
        else:
            self._confirm(sequence)

    def _checked(self, properties: Properties) -> Properties:
        """With the address of direct replies; the user is who it says it is."""
        if properties.text("reply_to") == REPLY_TO:
            address = self._reply_address()
            if address is None:
                raise precondition_failed("fast reply consumer does not exist")
            properties = properties.with_text("reply_to", address)
        user = properties.text("user_id")
        if user is not None and user != self._wire.user:
            raise precondition_failed(
                f"user_id property set to '{user}' but authenticated user was '{self._wire.user}'"
            )
        return properties

    def _return(self, message: Message) -> None:
        self._wire.send_content(
            self._channel,
            _RETURN + short_string(message.exchange) + short_string(message.routing_key),
            message.properties,
            message.body,
        )

    def _confirm(self, sequence: int) -> None:
        self._confirmed.append(sequence)
        self._wire.confirms_due(self._channel)
