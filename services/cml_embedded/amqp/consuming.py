"""The consuming side of a channel: its consumers, and what they have not acknowledged."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from pamqp.commands import Basic

from cml_embedded.amqp.broker import REPLY_TO, Broker
from cml_embedded.amqp.consumer import Consumer
from cml_embedded.amqp.errors import AmqpError, Code, precondition_failed, unsupported
from cml_embedded.amqp.message import Message, Properties, Queued, short_string
from cml_embedded.amqp.queue import Queue
from cml_embedded.amqp.wire import Wire

_METHOD: Final = Struct(">HH")
_TAG_AND_FLAG: Final = Struct(">QB")
_COUNT: Final = Struct(">I")
_DELIVER: Final = _METHOD.pack(60, 60)
_GET_OK: Final = _METHOD.pack(60, 71)


@dataclass(slots=True)
class _Unacked:
    queued: Queued
    queue: Queue
    consumer: Consumer | None


@dataclass(frozen=True, slots=True)
class _Subscription:
    consumer: Consumer
    queue: Queue


@dataclass(frozen=True, slots=True)
class _ReplyConsumer:
    """The channel's consumer of direct replies."""

    tag: str
    address: str


class Consuming:
    """See ``consumer.Channel`` for what queues call."""

    def __init__(self, channel: int, broker: Broker, wire: Wire) -> None:
        self._channel = channel
        self._broker = broker
        self._wire = wire
        self._consumers: dict[str, _Subscription] = {}
        self._unacked: dict[int, _Unacked] = {}
        self._last_tag = 0
        self._prefetch = 0
        self._replies: _ReplyConsumer | None = None

    @property
    def reply_address(self) -> str | None:
        """Where the channel gets direct replies."""
        return self._replies.address if self._replies else None

    # ---- what queues call

    @property
    def open_to_deliveries(self) -> bool:
        return self._wire.writable

    def deliver(self, consumer: Consumer, queued: Queued) -> None:
        tag, queue = self._next_tag(), self._consumers[consumer.tag].queue
        if not consumer.no_ack:
            self._unacked[tag] = _Unacked(queued, queue, consumer)
        self._deliver(consumer.tag, tag, queued.message, _properties(queued, queue), queued.returns)

    def consumer_cancelled(self, consumer: Consumer) -> None:
        self._consumers.pop(consumer.tag, None)
        if self._wire.cancels_consumers:
            self._wire.send(self._channel, Basic.Cancel(consumer_tag=consumer.tag, nowait=True))

    def deliver_reply(self, message: Message) -> None:
        """A message for this channel's consumer of direct replies."""
        if self._replies is not None:
            self._deliver(self._replies.tag, self._next_tag(), message, message.properties)

    def _deliver(
        self, consumer: str, tag: int, message: Message, properties: Properties, returns: int = 0
    ) -> None:
        self._wire.send_content(
            self._channel,
            _DELIVER + short_string(consumer) + _TAG_AND_FLAG.pack(tag, returns > 0) + _origin(message),
            properties,
            message.body,
        )

    def _next_tag(self) -> int:
        self._last_tag += 1
        return self._last_tag

    # ---- consumers

    def consume(self, frame: Basic.Consume) -> str:
        """Add a consumer; its tag. Nothing is delivered before ``resume``."""
        used = {*self._consumers, *([self._replies.tag] if self._replies else [])}
        if frame.consumer_tag in used:
            raise AmqpError(Code.NOT_ALLOWED, f"attempt to reuse consumer tag '{frame.consumer_tag}'")
        if frame.exclusive:
            raise unsupported("exclusive consumers")
        tag = frame.consumer_tag or f"amq.ctag-{secrets.token_urlsafe(16)}"
        if frame.queue == REPLY_TO:
            if not frame.no_ack:
                raise precondition_failed("reply consumer cannot acknowledge")
            if self._replies:
                raise precondition_failed("reply consumer already set")
            self._replies = _ReplyConsumer(tag, self._broker.open_reply_address(self))
        else:
            queue = self._broker.queue(frame.queue, self._wire)
            consumer = Consumer(tag, self, no_ack=frame.no_ack, prefetch=self._prefetch)
            queue.subscribe(consumer)
            self._consumers[tag] = _Subscription(consumer, queue)
        return tag

    def cancel(self, tag: str | None) -> None:
        """Remove a consumer; what it holds stays unacknowledged."""
        if self._replies and self._replies.tag == tag:
            self._forget_replies()
        if subscription := self._consumers.pop(tag or "", None):
            subscription.queue.unsubscribe(subscription.consumer)
            subscription.queue.dispatch()

    def qos(self, frame: Basic.Qos) -> None:
        if frame.prefetch_size or frame.global_:
            raise unsupported("prefetch by size or for a whole channel")
        self._prefetch = frame.prefetch_count

    def resume(self) -> None:
        """There is room for more, or another consumer."""
        for queue in {subscription.queue for subscription in self._consumers.values()}:
            queue.dispatch()

    def detach(self) -> None:
        """Stop consuming; before ``release``, on all channels of a connection that ends."""
        self._forget_replies()
        for subscription in self._consumers.values():
            subscription.queue.unsubscribe(subscription.consumer)

    def release(self) -> None:
        """Give back what is unacknowledged, and let other consumers have it."""
        queues = {subscription.queue for subscription in self._consumers.values()}
        self._consumers.clear()
        unacked, self._unacked = self._unacked, {}
        _return(unacked.values())
        for queue in queues:
            queue.dispatch()

    def _forget_replies(self) -> None:
        if self._replies:
            self._broker.close_reply_address(self._replies.address)
            self._replies = None

    # ---- messages

    def get(self, frame: Basic.Get) -> bool:
        """Send the first message of the queue; False if there is none."""
        queue = self._broker.queue(frame.queue, self._wire)
        queued = queue.get(no_ack=frame.no_ack)
        if queued is None:
            return False
        tag = self._next_tag()
        if not frame.no_ack:
            self._unacked[tag] = _Unacked(queued, queue, None)
        self._wire.send_content(
            self._channel,
            _GET_OK
            + _TAG_AND_FLAG.pack(tag, queued.returns > 0)
            + _origin(queued.message)
            + _COUNT.pack(len(queue)),
            _properties(queued, queue),
            queued.message.body,
        )
        return True

    def acknowledge(self, tag: int | None, *, multiple: bool) -> None:
        taken = self._take(tag, multiple=multiple)
        for unacked in taken:
            unacked.queue.acknowledged(unacked.queued)
        _dispatch(taken)

    def reject(self, tag: int | None, *, requeue: bool, multiple: bool = False) -> None:
        taken = self._take(tag, multiple=multiple)
        if requeue:
            _return(taken)
        else:
            for unacked in taken:
                unacked.queue.rejected(unacked.queued)
        _dispatch(taken)

    def _take(self, tag: int | None, *, multiple: bool) -> list[_Unacked]:
        """What the tag stands for; it is not unacknowledged any more."""
        tag = tag or 0
        if tag not in self._unacked and not (multiple and tag == 0):
            raise precondition_failed(f"unknown delivery tag {tag}")
        tags = [known for known in self._unacked if tag == 0 or known <= tag] if multiple else [tag]
        taken = [self._unacked.pop(known) for known in tags]
        for unacked in taken:
            if unacked.consumer:
                unacked.consumer.holding -= 1
        return taken


def _return(unacked: Iterable[_Unacked]) -> None:
    by_queue: dict[Queue, list[Queued]] = {}
    for one in unacked:
        by_queue.setdefault(one.queue, []).append(one.queued)
    for queue, returned in by_queue.items():
        queue.returned(returned)


def _dispatch(taken: Iterable[_Unacked]) -> None:
    """There is room for more."""
    for queue in {unacked.queue for unacked in taken}:
        queue.dispatch()


def _origin(message: Message) -> bytes:
    return short_string(message.exchange) + short_string(message.routing_key)


def _properties(queued: Queued, queue: Queue) -> Properties:
    """A quorum queue says how often a message came back."""
    if queue.quorum and queued.returns:
        return queued.message.properties.with_headers({"x-delivery-count": queued.returns})
    return queued.message.properties
