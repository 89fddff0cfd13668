"""An AMQP channel: carries out its methods on the broker's state and answers them."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from struct import Struct
from typing import Final, Protocol

from pamqp import base
from pamqp.commands import Basic, Channel, Confirm, Exchange, Queue, Tx

from cml_embedded.amqp.broker import REPLY_TO, Broker
from cml_embedded.amqp.errors import AmqpError, Code, refused
from cml_embedded.amqp.message import Message, Properties, Queued, short_string
from cml_embedded.amqp.queue import Consumer
from cml_embedded.amqp.queue import Queue as StoredQueue

MAX_MESSAGE: Final = 128 * 1024 * 1024
"""Bytes of a body; RabbitMQ 3.x has 128 MiB, 4.x 16 MiB."""

_METHOD: Final = Struct(">HH")
_TAG_AND_FLAG: Final = Struct(">QB")
_COUNT: Final = Struct(">I")
_CODE: Final = Struct(">H")
_DELIVER: Final = _METHOD.pack(60, 60)
_GET_OK: Final = _METHOD.pack(60, 71)
_RETURN: Final = _METHOD.pack(60, 50)


class Wire(Protocol):
    """The connection as its channels see it."""

    user: str
    cancels_consumers: bool
    """Whether the client understands ``basic.cancel`` from the server."""

    @property
    def writable(self) -> bool: ...
    def send(self, channel: int, frame: base.Frame) -> None: ...
    def send_content(self, channel: int, method: bytes, properties: Properties, body: bytes) -> None: ...
    def confirms_due(self, channel: "ServerChannel") -> None:
        """Have ``flush_confirms`` called before the next write."""


@dataclass(slots=True)
class _Unacked:
    queued: Queued
    queue: StoredQueue
    consumer: Consumer | None


@dataclass(slots=True)
class _Incoming:
    """A message on its way in: the method came, header and body follow."""

    publish: Basic.Publish
    properties: Properties | None = None
    size: int = 0
    parts: list[bytes] = field(default_factory=list)
    received: int = 0


class ServerChannel:
    """Raises ``AmqpError`` from ``method``, ``header`` and ``body``; the connection then closes what it must."""

    def __init__(self, number: int, broker: Broker, wire: Wire) -> None:
        self.number = number
        self._broker = broker
        self._wire = wire
        self._consumers: dict[str, Consumer] = {}
        self._unacked: dict[int, _Unacked] = {}
        self._last_tag = 0
        self._prefetch = 0
        self._channel_prefetch = 0
        self._last_queue = ""
        self._incoming: _Incoming | None = None
        self._reply_consumer: tuple[str, str] | None = None
        """Consumer tag and address of direct reply-to."""
        self._confirming = False
        self._published = 0
        self._unconfirmed: dict[int, None] = {}
        self._confirmed: list[int] = []
        self._held_replies = 0
        self._closed = False

    # ---- deliveries

    @property
    def open_to_deliveries(self) -> bool:
        full = 0 < self._channel_prefetch <= len(self._unacked)
        return not full and self._wire.writable

    def deliver(self, consumer: Consumer, queued: Queued) -> None:
        tag = self._next_tag()
        if not consumer.no_ack:
            self._unacked[tag] = _Unacked(queued, consumer.queue, consumer)
        message = queued.message
        self._wire.send_content(
            self.number,
            _DELIVER
            + short_string(consumer.tag)
            + _TAG_AND_FLAG.pack(tag, queued.returns > 0)
            + short_string(message.exchange)
            + short_string(message.routing_key),
            _told_returns(queued, consumer.queue),
            message.body,
        )

    def deliver_reply(self, message: Message) -> None:
        """A message for this channel's direct reply-to consumer."""
        if self._reply_consumer is None:
            return
        self._wire.send_content(
            self.number,
            _DELIVER
            + short_string(self._reply_consumer[0])
            + _TAG_AND_FLAG.pack(self._next_tag(), 0)
            + short_string(message.exchange)
            + short_string(message.routing_key),
            message.properties,
            message.body,
        )

    def consumer_cancelled(self, consumer: Consumer) -> None:
        self._consumers.pop(consumer.tag, None)
        if self._wire.cancels_consumers:
            self._wire.send(self.number, Basic.Cancel(consumer_tag=consumer.tag, nowait=True))

    def resume(self) -> None:
        """The connection can take more."""
        for queue in {consumer.queue for consumer in self._consumers.values()}:
            queue.dispatch()

    def detach(self) -> None:
        """Stop consuming; before ``release``, on all channels of a connection that ends."""
        self._closed = True
        if self._reply_consumer:
            self._broker.close_reply_address(self._reply_consumer[1])
            self._reply_consumer = None
        for consumer in self._consumers.values():
            consumer.queue.unsubscribe(consumer)

    def release(self) -> None:
        """Give back what is unacknowledged, and let other consumers have it."""
        queues = {consumer.queue for consumer in self._consumers.values()}
        self._consumers.clear()
        unacked, self._unacked = self._unacked, {}
        self._return(unacked.values())
        for queue in queues:
            queue.dispatch()

    def _next_tag(self) -> int:
        self._last_tag += 1
        return self._last_tag

    # ---- confirms

    def flush_confirms(self) -> None:
        """Acknowledge what was published; in one frame when nothing before it is outstanding."""
        confirmed, self._confirmed = sorted(self._confirmed), []
        for sequence in confirmed:
            del self._unconfirmed[sequence]
        if not confirmed or self._closed:
            return
        if len(confirmed) > 1 and next(iter(self._unconfirmed), self._published + 1) > confirmed[-1]:
            self._wire.send(self.number, Basic.Ack(delivery_tag=confirmed[-1], multiple=True))
            return
        for sequence in confirmed:
            self._wire.send(self.number, Basic.Ack(delivery_tag=sequence))

    def _confirm(self, sequence: int) -> None:
        self._confirmed.append(sequence)
        self._wire.confirms_due(self)

    # ---- publishing

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
            raise refused(f"message size {incoming.size} is larger than configured max size {MAX_MESSAGE}")
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

    def _complete(self, incoming: _Incoming, properties: Properties) -> None:
        self._incoming = None
        publish = incoming.publish
        if properties.text("reply_to") == REPLY_TO:
            if self._reply_consumer is None:
                raise refused("fast reply consumer does not exist")
            properties = properties.with_text("reply_to", self._reply_consumer[1])
        user = properties.text("user_id")
        if user is not None and user != self._wire.user:
            raise refused(f"user_id property set to '{user}' but authenticated user was '{self._wire.user}'")
        message = Message(publish.exchange, publish.routing_key, properties, b"".join(incoming.parts))
        try:
            _ = message.ttl
        except ValueError as error:
            raise refused(f"invalid expiration '{error}'") from error
        if self._confirming:
            self._published += 1
            self._unconfirmed[self._published] = None
        published = self._broker.publish(message)
        if publish.mandatory and not published.routed:
            self._wire.send_content(
                self.number,
                _RETURN
                + _CODE.pack(Code.NO_ROUTE)
                + short_string("NO_ROUTE")
                + short_string(message.exchange)
                + short_string(message.routing_key),
                properties,
                message.body,
            )
        if not self._confirming:
            return
        sequence = self._published
        if not published.accepted:
            del self._unconfirmed[sequence]
            self._wire.send(self.number, Basic.Nack(delivery_tag=sequence, requeue=False))
        elif published.persisted:
            self._broker.journal.after_commit(lambda: self._confirm(sequence))
        else:
            self._confirm(sequence)

    # ---- methods

    def method(self, frame: base.Frame) -> None:  # noqa: PLR0915 - the list of methods, flat
        if self._incoming is not None:
            raise AmqpError(Code.UNEXPECTED_FRAME, "expected content header, got method frame instead")
        match frame:
            case Basic.Publish():
                if frame.immediate:
                    raise AmqpError(Code.NOT_IMPLEMENTED, "immediate=true")
                self._broker.exchange(frame.exchange)
                self._incoming = _Incoming(frame)
            case Basic.Ack():
                self._settle(self._take(frame.delivery_tag, multiple=frame.multiple))
            case Basic.Nack():
                self._refuse(self._take(frame.delivery_tag, multiple=frame.multiple), requeue=frame.requeue)
            case Basic.Reject():
                self._refuse(self._take(frame.delivery_tag, multiple=False), requeue=frame.requeue)
            case Basic.Consume():
                self._consume(frame)
            case Basic.Cancel():
                self._cancel(frame)
            case Basic.Get():
                self._get(frame)
            case Basic.Qos():
                self._qos(frame)
            case Basic.Recover():
                self._recover(requeue=frame.requeue)
                self._reply(Basic.RecoverOk())
            case Basic.RecoverAsync():
                self._recover(requeue=frame.requeue)
            case Queue.Declare():
                self._declare(frame)
            case Queue.Bind():
                name = self._named(frame.queue)
                key = frame.routing_key if frame.queue or frame.routing_key else name
                self._broker.bind("queue", name, frame.exchange, key, self._wire)
                self._changed(Queue.BindOk(), nowait=frame.nowait)
            case Queue.Unbind():
                name = self._named(frame.queue)
                self._broker.unbind("queue", name, frame.exchange, frame.routing_key, self._wire)
                self._changed(Queue.UnbindOk())
            case Queue.Purge():
                count = self._queue(frame.queue).purge()
                self._changed(Queue.PurgeOk(message_count=count), nowait=frame.nowait)
            case Queue.Delete():
                self._delete(frame)
            case Exchange.Declare():
                self._declare_exchange(frame)
            case Exchange.Delete():
                self._broker.delete_exchange(frame.exchange, if_unused=frame.if_unused)
                self._changed(Exchange.DeleteOk(), nowait=frame.nowait)
            case Exchange.Bind():
                self._broker.bind("exchange", frame.destination, frame.source, frame.routing_key, self._wire)
                self._changed(Exchange.BindOk(), nowait=frame.nowait)
            case Exchange.Unbind():
                self._broker.unbind(
                    "exchange", frame.destination, frame.source, frame.routing_key, self._wire
                )
                self._changed(Exchange.UnbindOk(), nowait=frame.nowait)
            case Confirm.Select():
                self._confirming = True
                self._reply(Confirm.SelectOk(), nowait=frame.nowait)
            case Channel.Flow():
                if not frame.active:
                    raise AmqpError(Code.NOT_IMPLEMENTED, "active=false")
                self._reply(Channel.FlowOk(active=True))
            case Tx.Select() | Tx.Commit() | Tx.Rollback():
                raise AmqpError(Code.NOT_IMPLEMENTED, "the embedded broker has no transactions")
            case _:
                raise AmqpError(Code.COMMAND_INVALID, "unimplemented method")

    def _reply(self, frame: base.Frame, *, nowait: bool = False) -> None:
        """Answer; after the answers that still wait for a commit."""
        if nowait:
            return
        if self._held_replies:
            self._changed(frame)
        else:
            self._wire.send(self.number, frame)

    def _changed(self, frame: base.Frame, *, nowait: bool = False) -> None:
        """Answer once the change is on disk."""
        if nowait:
            return

        def answer() -> None:
            self._held_replies -= 1
            if not self._closed:
                self._wire.send(self.number, frame)

        self._held_replies += 1
        self._broker.journal.after_commit(answer)

    def _named(self, queue: str) -> str:
        if queue or self._last_queue:
            return queue or self._last_queue
        raise AmqpError(Code.NOT_FOUND, "no previously declared queue")

    def _queue(self, name: str) -> StoredQueue:
        return self._broker.queue(self._named(name), self._wire)

    def _declare(self, frame: Queue.Declare) -> None:
        if frame.queue.startswith(REPLY_TO):
            if not self._broker.has_reply_address(frame.queue):
                raise AmqpError(Code.NOT_FOUND, f"no queue '{frame.queue}' in vhost '/'")
            self._reply(Queue.DeclareOk(frame.queue, 0, 1), nowait=frame.nowait)
            return
        if frame.passive:
            queue = self._queue(frame.queue)
            queue.touch()
        else:
            queue = self._broker.declare_queue(
                frame.queue,
                durable=frame.durable,
                exclusive=frame.exclusive,
                auto_delete=frame.auto_delete,
                arguments=frame.arguments or {},
                owner=self._wire,
            )
        self._last_queue = queue.name
        reply = Queue.DeclareOk(queue.name, len(queue), len(queue.consumers))
        if queue.persistent and not frame.passive:
            self._changed(reply, nowait=frame.nowait)
        else:
            self._reply(reply, nowait=frame.nowait)

    def _declare_exchange(self, frame: Exchange.Declare) -> None:
        if frame.passive:
            self._broker.exchange(frame.exchange)
            self._reply(Exchange.DeclareOk(), nowait=frame.nowait)
            return
        self._broker.declare_exchange(
            frame.exchange,
            frame.exchange_type,
            durable=frame.durable,
            auto_delete=frame.auto_delete,
            internal=frame.internal,
            arguments=frame.arguments or {},
        )
        self._changed(Exchange.DeclareOk(), nowait=frame.nowait)

    def _delete(self, frame: Queue.Delete) -> None:
        name = self._named(frame.queue)
        count = 0
        if name in self._broker.queues:
            queue = self._queue(name)
            if frame.if_unused and queue.consumers:
                raise refused(f"{queue} in use")
            if frame.if_empty and len(queue):
                raise refused(f"{queue} not empty")
            count = len(queue)
            self._broker.delete_queue(queue)
        self._changed(Queue.DeleteOk(message_count=count), nowait=frame.nowait)

    def _consume(self, frame: Basic.Consume) -> None:
        reply_tag = self._reply_consumer[0] if self._reply_consumer else None
        if frame.consumer_tag and (frame.consumer_tag in self._consumers or frame.consumer_tag == reply_tag):
            raise AmqpError(Code.NOT_ALLOWED, f"attempt to reuse consumer tag '{frame.consumer_tag}'")
        tag = frame.consumer_tag or f"amq.ctag-{secrets.token_urlsafe(16)}"
        if frame.queue == REPLY_TO:
            if not frame.no_ack:
                raise refused("reply consumer cannot acknowledge")
            if self._reply_consumer:
                raise refused("reply consumer already set")
            self._reply_consumer = (tag, self._broker.open_reply_address(self))
            self._reply(Basic.ConsumeOk(consumer_tag=tag), nowait=frame.nowait)
            return
        queue = self._queue(frame.queue)
        if queue.quorum and self._channel_prefetch:
            raise AmqpError(Code.NOT_IMPLEMENTED, f"{queue} does not support global qos")
        priority = (frame.arguments or {}).get("x-priority")
        consumer = Consumer(
            tag,
            self,
            queue,
            no_ack=frame.no_ack,
            exclusive=frame.exclusive,
            prefetch=self._prefetch,
            priority=priority if isinstance(priority, int) else 0,
        )
        queue.subscribe(consumer)
        self._consumers[tag] = consumer
        self._reply(Basic.ConsumeOk(consumer_tag=tag), nowait=frame.nowait)
        queue.dispatch()

    def _cancel(self, frame: Basic.Cancel) -> None:
        if self._reply_consumer and self._reply_consumer[0] == frame.consumer_tag:
            self._broker.close_reply_address(self._reply_consumer[1])
            self._reply_consumer = None
        tag = frame.consumer_tag or ""
        consumer = self._consumers.pop(tag, None)
        if consumer:
            consumer.queue.unsubscribe(consumer)
        self._reply(Basic.CancelOk(consumer_tag=tag), nowait=frame.nowait)
        if consumer:
            consumer.queue.dispatch()

    def _get(self, frame: Basic.Get) -> None:
        queue = self._queue(frame.queue)
        queued = queue.get(no_ack=frame.no_ack)
        if queued is None:
            self._reply(Basic.GetEmpty())
            return
        tag = self._next_tag()
        if not frame.no_ack:
            self._unacked[tag] = _Unacked(queued, queue, None)
        message = queued.message
        self._wire.send_content(
            self.number,
            _GET_OK
            + _TAG_AND_FLAG.pack(tag, queued.returns > 0)
            + short_string(message.exchange)
            + short_string(message.routing_key)
            + _COUNT.pack(len(queue)),
            _told_returns(queued, queue),
            message.body,
        )

    def _qos(self, frame: Basic.Qos) -> None:
        if frame.prefetch_size:
            raise AmqpError(Code.NOT_IMPLEMENTED, f"prefetch_size!=0 ({frame.prefetch_size})")
        if frame.global_:
            self._channel_prefetch = frame.prefetch_count
        else:
            self._prefetch = frame.prefetch_count
            self._channel_prefetch = 0
        self._reply(Basic.QosOk())
        self.resume()

    # ---- settling

    def _take(self, tag: int | None, *, multiple: bool) -> list[_Unacked]:
        """What the tag stands for; it is not unacknowledged any more."""
        tag = tag or 0
        if tag not in self._unacked and not (multiple and tag == 0):
            raise refused(f"unknown delivery tag {tag}")
        tags = [known for known in self._unacked if tag == 0 or known <= tag] if multiple else [tag]
        taken = [self._unacked.pop(known) for known in tags]
        for unacked in taken:
            if unacked.consumer:
                unacked.consumer.holding -= 1
        return taken

    def _settle(self, taken: list[_Unacked]) -> None:
        for unacked in taken:
            unacked.queue.acknowledged(unacked.queued)
        self._freed(taken)

    def _refuse(self, taken: list[_Unacked], *, requeue: bool) -> None:
        if requeue:
            self._return(taken)
        else:
            for unacked in taken:
                unacked.queue.rejected(unacked.queued)
        self._freed(taken)

    def _recover(self, *, requeue: bool) -> None:
        if not requeue:
            raise AmqpError(Code.NOT_IMPLEMENTED, "requeue=false")
        taken = self._take(0, multiple=True)
        self._return(taken)
        self._freed(taken)

    def _return(self, unacked: Iterable[_Unacked]) -> None:
        by_queue: dict[StoredQueue, list[_Unacked]] = {}
        for one in unacked:
            by_queue.setdefault(one.queue, []).append(one)
        for queue, returned in by_queue.items():
            queue.returned([one.queued for one in returned])

    def _freed(self, taken: list[_Unacked]) -> None:
        """There is room for more."""
        queues = {unacked.queue for unacked in taken}
        if self._channel_prefetch:
            queues |= {consumer.queue for consumer in self._consumers.values()}
        for queue in queues:
            queue.dispatch()


def _told_returns(queued: Queued, queue: StoredQueue) -> Properties:
    """A quorum queue tells how often a message came back."""
    if queue.quorum and queued.returns:
        return queued.message.properties.with_headers({"x-delivery-count": queued.returns})
    return queued.message.properties
