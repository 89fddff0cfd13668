"""A queue: its messages in order, its consumers, and who gets what when."""

import asyncio
import heapq
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

from pamqp import common

from cml_embedded.amqp.arguments import QueueRules, rules
from cml_embedded.amqp.consumer import Consumer
from cml_embedded.amqp.errors import AmqpError, Code, precondition_failed, resource
from cml_embedded.amqp.journal import Journal
from cml_embedded.amqp.message import Message, Queued, Reason, now_ms

_UNDELIVERABLE_RETRY: Final = 1.0
"""Seconds until a dead letter without a taker is tried again (RabbitMQ: three minutes)."""


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
                    raise precondition_failed(f"invalid property '{what}' for {self}")
        self.consumers: deque[Consumer] = deque()
        self.deleted = False
        self._host = host
        self._fresh: deque[Queued] = deque()
        self._returned: list[tuple[int, Queued]] = []
        self._held: dict[int, Queued] = {}
        self._undeliverable: list[tuple[Queued, Reason]] = []
        self._active: Consumer | None = None
        self._loop = asyncio.get_running_loop()
        self._expiry: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None

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
        if self._full():
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
        self.dispatch()
        return True

    def restore(self, queued: Queued) -> None:
        """Take a message from a former broker, in order."""
        self._fresh.append(queued)

    def restored(self) -> None:
        """All messages are back: dead-letter those that came back once too often."""
        limit = self.rules.delivery_limit
        if limit is not None:
            everything, self._fresh = self._fresh, deque()
            for queued in everything:
                if queued.returns > limit:
                    self._dead_letter(queued, "delivery_limit")
                else:
                    self._fresh.append(queued)
        self.dispatch()

    def get(self, *, no_ack: bool) -> Queued | None:
        """The first message, for a client that asks."""
        if self.quorum and self.rules.single_active:
            raise AmqpError(
                Code.RESOURCE_LOCKED,
                f"cannot obtain access to locked {self}. basic.get operations are not supported by quorum "
                "queues with single active consumer",
            )
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
            self._dead_letter(queued, "rejected")

    def returned(self, messages: Iterable[Queued]) -> None:
        """Put messages back to where they were; each counts as a failed delivery."""
        limit = self.rules.delivery_limit
        for queued in messages:
            if self._held.pop(queued.id, None) is None:
                continue
            queued.returns += 1
            if limit is not None and queued.returns > limit:
                self._dead_letter(queued, "delivery_limit")
                continue
            if queued.durable:
                self._host.journal.marked(queued, delivered=False)
            heapq.heappush(self._returned, (queued.id, queued))
        self.dispatch()

    def purge(self) -> int:
        count = len(self)
        while len(self):
            self._forget(self._pop())
        return count

    def subscribe(self, consumer: Consumer) -> None:
        self.consumers.append(consumer)

    def unsubscribe(self, consumer: Consumer) -> None:
        """Without ``dispatch``: what the consumer holds may have to come back first."""
        if consumer not in self.consumers:
            return
        self.consumers.remove(consumer)
        if consumer is self._active:
            self._active = None
        if self.auto_delete and not self.consumers:
            self._host.delete_queue(self)

    def dispatch(self) -> None:
        """Deliver as much as the consumers can take, in turns."""
        if self.deleted or self._host.stopping:
            return
        now = now_ms()
        while len(self) and (consumer := self._next_consumer()):
            queued = self._pop()
            if queued.expires_at is not None and queued.expires_at < now:
                self._dead_letter(queued, "expired")
                continue
            self._hand_out(queued, no_ack=consumer.no_ack)
            if not consumer.no_ack:
                consumer.holding += 1
            consumer.channel.deliver(consumer, queued)
        self._watch_expiry()

    def close(self) -> None:
        """The queue is deleted: so is all it has, and its consumers are notified."""
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
        for timer in (self._expiry, self._retry):
            if timer:
                timer.cancel()

    def _next_consumer(self) -> Consumer | None:
        if self.rules.single_active:
            if self._active is None and self.consumers:
                self._active = self.consumers[0]
            return self._active if self._active and self._active.ready else None
        ready = next((consumer for consumer in self.consumers if consumer.ready), None)
        if ready and len(self.consumers) > 1:
            self.consumers.remove(ready)
            self.consumers.append(ready)
        return ready

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
        return heapq.heappop(self._returned)[1] if self._returned else self._fresh.popleft()

    def _full(self) -> bool:
        """Whether it takes no more. A quorum queue notices only once it is over its limit."""
        limit = self.rules.max_length
        return limit is not None and len(self) >= (limit + 1 if self.quorum else limit)

    def _dead_letter(self, queued: Queued, reason: Reason) -> None:
        taken = self._host.dead_letter(self, queued.message, reason)
        if taken or not self.rules.at_least_once or self.rules.dead_letter_exchange is None:
            self._forget(queued)
            return
        self._undeliverable.append((queued, reason))
        if self._retry is None:
            self._retry = self._loop.call_later(_UNDELIVERABLE_RETRY, self._dead_letter_again)

    def _dead_letter_again(self) -> None:
        self._retry = None
        waiting, self._undeliverable = self._undeliverable, []
        for queued, reason in waiting:
            self._dead_letter(queued, reason)

    def _forget(self, queued: Queued) -> None:
        if queued.durable:
            self._host.journal.removed(queued)

    def _expire(self) -> None:
        """Only the head of the line expires, as in RabbitMQ."""
        now = now_ms()
        while (head := self._head()) and head.expires_at is not None and head.expires_at <= now:
            self._dead_letter(self._pop(), "expired")

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
