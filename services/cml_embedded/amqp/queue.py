"""A queue: its messages in order, its consumers, and the rules of who gets what when."""

import asyncio
import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from pamqp import common

from cml_embedded.amqp.arguments import QueueRules, rules
from cml_embedded.amqp.errors import AmqpError, Code, refused, resource
from cml_embedded.amqp.journal import Journal
from cml_embedded.amqp.message import Message, Queued, Reason, now_ms

_UNDELIVERABLE_RETRY: Final = 1.0
"""Seconds until a dead letter without a taker is tried again (RabbitMQ: three minutes)."""


class Channel(Protocol):
    """The far end of a consumer."""

    @property
    def open_to_deliveries(self) -> bool:
        """Whether the channel as a whole can take one more."""

    def deliver(self, consumer: "Consumer", queued: Queued) -> None: ...
    def consumer_cancelled(self, consumer: "Consumer") -> None:
        """The queue is gone."""


@dataclass(eq=False, slots=True)
class Consumer:
    """``prefetch``: messages it may hold unacknowledged, 0 for any number; ``holding``: how many it does."""

    tag: str
    channel: Channel
    queue: "Queue"
    no_ack: bool = False
    exclusive: bool = False
    prefetch: int = 0
    priority: int = 0
    holding: int = 0

    @property
    def ready(self) -> bool:
        room = self.no_ack or not self.prefetch or self.holding < self.prefetch
        return room and self.channel.open_to_deliveries


class Host(Protocol):
    """What a queue needs of its broker."""

    @property
    def journal(self) -> Journal: ...
    @property
    def stopping(self) -> bool: ...
    def next_id(self) -> int: ...
    def dead_letter(self, queue: "Queue", message: Message, reason: Reason) -> bool:
        """Send it to the dead-letter exchange; False: nobody took it."""

    def delete_queue(self, queue: "Queue") -> None: ...


class Queue:
    """Messages are delivered in the order of their ids; one that comes back takes its old place.

    Raises:
        AmqpError: the arguments, or their combination with the queue's kind, are refused.
    """

    def __init__(
        self,
        host: Host,
        name: str,
        *,
        durable: bool,
        auto_delete: bool,
        owner: object | None,
        arguments: common.FieldTable,
    ) -> None:
        self.name = name
        self.durable = durable
        self.auto_delete = auto_delete
        self.owner = owner
        """The connection an exclusive queue belongs to."""
        self.arguments = arguments
        self.rules: QueueRules = rules(name, arguments)
        if self.quorum:
            for wrong, what in (
                (auto_delete, "auto-delete"),
                (owner is not None, "exclusive-owner"),
                (not durable, "non-durable"),
            ):
                if wrong:
                    raise refused(f"invalid property '{what}' for {self}")
        self.consumers: deque[Consumer] = deque()
        self.deleted = False
        self._host = host
        self._fresh: deque[Queued] = deque()
        self._returned: list[tuple[int, Queued]] = []
        self._bytes = 0
        self._held: dict[int, Queued] = {}
        self._undeliverable: list[tuple[Queued, Reason]] = []
        self._active: Consumer | None = None
        self._loop = asyncio.get_running_loop()
        self._expiry: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._disuse: asyncio.TimerHandle | None = None
        self.touch()

    def __str__(self) -> str:
        return resource("queue", self.name)

    def __len__(self) -> int:
        """Messages ready for delivery."""
        return len(self._fresh) + len(self._returned)

    @property
    def quorum(self) -> bool:
        return self.rules.kind == "quorum"

    @property
    def persistent(self) -> bool:
        """Whether the queue itself survives a restart."""
        return self.durable and self.owner is None

    def put(self, message: Message) -> bool:
        """Append; False if the queue is full and rejects."""
        if self.rules.overflow != "drop-head" and self._full(len(message.body)):
            if self.rules.overflow == "reject-publish-dlx":
                self._host.dead_letter(self, message, "maxlen")
            return False
        ttl = min((ttl for ttl in (self.rules.ttl, message.ttl) if ttl is not None), default=None)
        queued = Queued(
            id=self._host.next_id(),
            message=message,
            durable=self.persistent and (self.quorum or message.properties.persistent),
            expires_at=None if ttl is None else now_ms() + ttl,
        )
        if queued.durable:
            self._host.journal.added(self.name, queued)
        self._fresh.append(queued)
        self._bytes += len(message.body)
        self.dispatch()
        while self.rules.overflow == "drop-head" and self._over():
            self._die(self._pop(), "maxlen")
        return True

    def restore(self, queued: Queued) -> None:
        """Take a message from a former broker, in order."""
        self._fresh.append(queued)
        self._bytes += len(queued.message.body)

    def restored(self) -> None:
        """All messages are back: bury those that came back once too often."""
        limit = self.rules.delivery_limit
        if limit is not None and any(queued.returns > limit for queued in self._fresh):
            everything, self._fresh = self._fresh, deque()
            self._bytes = 0
            for queued in everything:
                if queued.returns > limit:
                    self._die(queued, "delivery_limit")
                else:
                    self.restore(queued)
        self.dispatch()

    def get(self, *, no_ack: bool) -> Queued | None:
        """The first message, for a client that asks."""
        if self.quorum and self.rules.single_active:
            raise AmqpError(
                Code.RESOURCE_LOCKED,
                f"cannot obtain access to locked {self}. basic.get operations are not supported by quorum "
                "queues with single active consumer",
            )
        self.touch()
        self._expire()
        if not len(self):
            return None
        queued = self._pop()
        self._hand_out(queued, no_ack=no_ack)
        self._watch_expiry()
        return queued

    def acknowledged(self, queued: Queued) -> None:
        if self._held.pop(queued.id, None):
            self._forget(queued)

    def rejected(self, queued: Queued) -> None:
        if self._held.pop(queued.id, None):
            self._die(queued, "rejected")

    def returned(self, messages: Iterable[Queued]) -> None:
        """Put messages back to where they were; each counts as a failed delivery."""
        limit = self.rules.delivery_limit
        for queued in messages:
            if self._held.pop(queued.id, None) is None:
                continue
            queued.returns += 1
            if limit is not None and queued.returns > limit:
                self._die(queued, "delivery_limit")
                continue
            if queued.durable:
                self._host.journal.marked(queued, delivered=False)
            heapq.heappush(self._returned, (queued.id, queued))
            self._bytes += len(queued.message.body)
        self.dispatch()

    def purge(self) -> int:
        count = len(self)
        while len(self):
            self._forget(self._pop())
        return count

    def subscribe(self, consumer: Consumer) -> None:
        taken = any(other.exclusive for other in self.consumers)
        if taken or (consumer.exclusive and (self.consumers or self.rules.single_active)):
            raise AmqpError(Code.ACCESS_REFUSED, f"{self} in exclusive use")
        self.consumers.append(consumer)

    def unsubscribe(self, consumer: Consumer) -> None:
        """Without ``dispatch``: what the consumer holds may have to come back first."""
        if consumer not in self.consumers:
            return
        self.consumers.remove(consumer)
        if consumer is self._active:
            self._active = None
        self.touch()
        if self.auto_delete and not self.consumers:
            self._host.delete_queue(self)

    def dispatch(self) -> None:
        """Deliver as much as the consumers can take, in turns, the ones of higher priority first."""
        if self.deleted or self._host.stopping:
            return
        now = now_ms()
        while len(self) and (consumer := self._next_consumer()):
            queued = self._pop()
            if queued.expires_at is not None and queued.expires_at < now:
                self._die(queued, "expired")
                continue
            self._hand_out(queued, no_ack=consumer.no_ack)
            if not consumer.no_ack:
                consumer.holding += 1
            consumer.channel.deliver(consumer, queued)
        self._watch_expiry()

    def close(self) -> None:
        """The queue is deleted: so is all it has, and its consumers are told."""
        self.deleted = True
        self.stop_timers()
        for queued in (*self._fresh, *(q for _, q in self._returned), *self._held.values()):
            self._forget(queued)
        for queued, _ in self._undeliverable:
            self._forget(queued)
        self._fresh.clear()
        self._returned.clear()
        self._held.clear()
        consumers, self.consumers = self.consumers, deque()
        for consumer in consumers:
            consumer.channel.consumer_cancelled(consumer)

    def stop_timers(self) -> None:
        for timer in (self._expiry, self._retry, self._disuse):
            if timer:
                timer.cancel()

    def touch(self) -> None:
        """The queue was used: its ``x-expires`` starts anew."""
        if self.rules.expires is not None:
            if self._disuse:
                self._disuse.cancel()
            self._disuse = self._loop.call_later(self.rules.expires / 1000, self._disused)

    def _disused(self) -> None:
        if self.consumers:
            self.touch()
        else:
            self._host.delete_queue(self)

    def _next_consumer(self) -> Consumer | None:
        if self.rules.single_active:
            if self._active is None and self.consumers:
                self._active = max(self.consumers, key=lambda consumer: consumer.priority)
            return self._active if self._active and self._active.ready else None
        best: Consumer | None = None
        for consumer in self.consumers:
            if (best is None or consumer.priority > best.priority) and consumer.ready:
                best = consumer
        if best and len(self.consumers) > 1:
            self.consumers.remove(best)
            self.consumers.append(best)
        return best

    def _hand_out(self, queued: Queued, *, no_ack: bool) -> None:
        if no_ack:
            self._forget(queued)
            return
        self._held[queued.id] = queued
        if queued.durable:
            self._host.journal.marked(queued, delivered=True)

    def _head(self) -> Queued | None:
        if self._returned:
            return self._returned[0][1]
        return self._fresh[0] if self._fresh else None

    def _pop(self) -> Queued:
        queued = heapq.heappop(self._returned)[1] if self._returned else self._fresh.popleft()
        self._bytes -= len(queued.message.body)
        return queued

    def _full(self, size: int) -> bool:
        """Whether one more does not fit. A quorum queue notices only once it is over its limit."""
        length, allowed, bytes_allowed = len(self), self.rules.max_length, self.rules.max_bytes
        if self.quorum:
            return self._over()
        too_long = allowed is not None and length + 1 > allowed
        return too_long or (bytes_allowed is not None and self._bytes + size > bytes_allowed)

    def _over(self) -> bool:
        too_long = self.rules.max_length is not None and len(self) > self.rules.max_length
        return too_long or (self.rules.max_bytes is not None and self._bytes > self.rules.max_bytes)

    def _die(self, queued: Queued, reason: Reason) -> None:
        taken = self._host.dead_letter(self, queued.message, reason)
        if taken or not self.rules.at_least_once or self.rules.dead_letter_exchange is None:
            self._forget(queued)
            return
        self._undeliverable.append((queued, reason))
        if self._retry is None:
            self._retry = self._loop.call_later(_UNDELIVERABLE_RETRY, self._bury_again)

    def _bury_again(self) -> None:
        self._retry = None
        waiting, self._undeliverable = self._undeliverable, []
        for queued, reason in waiting:
            self._die(queued, reason)

    def _forget(self, queued: Queued) -> None:
        if queued.durable:
            self._host.journal.removed(queued)

    def _expire(self) -> None:
        """Only the head of the line expires, as in RabbitMQ."""
        now = now_ms()
        while (head := self._head()) and head.expires_at is not None and head.expires_at <= now:
            self._die(self._pop(), "expired")

    def _watch_expiry(self) -> None:
        head = self._head()
        if head is None or head.expires_at is None:
            return
        due = self._loop.time() + max(0, head.expires_at - now_ms()) / 1000
        if self._expiry:
            if self._expiry.when() <= due:
                return
            self._expiry.cancel()
        self._expiry = self._loop.call_at(due, self._expiry_due)

    def _expiry_due(self) -> None:
        self._expiry = None
        self._expire()
        self._watch_expiry()
