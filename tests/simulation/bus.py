"""A message broker in memory with the topology that ships: it repeats, reorders, delays and loses what is unconfirmed."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from cml_contracts.topology import EVENTS_EXCHANGE
from cml_workers.bus.delivery import Requeue, handled, settle
from cml_workers.bus.port import (
    Ack,
    BusUnavailableError,
    DeadLetter,
    Handler,
    Message,
    Outgoing,
    Retry,
    UnroutableError,
    Verdict,
)
from cml_workers.bus.rabbit.consuming import UNSETTLED_PAUSE
from cml_workers.bus.topology import EC2_TRIGGERS, PROBES, QUEUES, Queue
from cml_workers.domain.messages import LookupRequested, Reminder
from cml_workers.foundation.outages import NO_OUTAGES, Dependency, Outages
from simulation import nets
from simulation.delivery import HANDLED, Consumer, Delivery, QueueState, took_effect
from simulation.world import Process, World

CLIENTS = "cml.replies."
"""What the reply addresses of callers begin with."""
LONGEST_DELAY = 400.0
"""Seconds a message may be on its way."""
CROWD = 25
"""Messages under way above which no ack is lost: what is retried and redelivered doubles each time."""
DELIVERY_LIMIT = 4
"""Lower than in production, so that innocent messages become dead letters, too."""


class GivenToAnotherError(Exception):
    """The consumer was lost while the message waited for a part."""


class Broker:
    """Exchanges, queues, consumers; settles deliveries as ``RabbitBus`` does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.queues = {queue.name: QueueState(queue) for queue in QUEUES if queue is not PROBES}
        self.on_reply: Callable[[Outgoing], object] = lambda _: None
        self.on_event: Callable[[Outgoing], object] = lambda _: None
        self.on_lookup: Callable[[Outgoing], object] = lambda _: None
        self.dead: list[tuple[str, Message, str]] = []
        """Queue, message and reason."""
        self.retrying = 0
        self.delayed = 0
        self.single_active = True
        self.subscribed: list[Outgoing] = []
        """What lies in the queue of a subscriber to all events, which nobody consumes."""
        self._published: set[str] = set()
        self._handled: set[tuple[str, str]] = set()
        world.on_loss.append(self._lost)

    # -- publishing ---------------------------------------------------------------------------------------

    def route(self, message: Outgoing) -> bool:
        """Put it into every queue that takes it; False if none does."""
        if message.exchange is None:
            if message.routing_key.startswith(CLIENTS):
                self._new(f"{message.routing_key} {message.correlation_id}", "replied")
                self.on_reply(message)
                return True
            names = [message.routing_key]
        else:
            if message.exchange == EVENTS_EXCHANGE:
                self.on_event(message)
                self.to_subscriber(message)
            names = [
                state.queue.name
                for state in self.queues.values()
                for binding in state.queue.bindings
                if binding.exchange == message.exchange and _matches(binding.routing_key, message.routing_key)
            ]
        for name in names:
            self._enqueue(self.queues[name], Delivery(_received(message)))
        self._new(message.message_id, f"published {message.type}")
        if message.type == LookupRequested.TYPE:
            self.on_lookup(message)
        return bool(names)

    def _new(self, message_id: str, what: str) -> None:
        if message_id not in self._published:
            self._published.add(message_id)
            took_effect(self.world, what)

    def to_subscriber(self, message: Outgoing) -> None:
        """The queue of a subscriber to all events takes it."""
        self.subscribed.append(message)

    def _enqueue(self, state: QueueState, delivery: Delivery) -> None:
        delivery.owner = None
        seconds = self.world.random.random() * 0.2
        if self.world.happens("delayed", state.queue.name, lasts=LONGEST_DELAY):
            seconds += self.world.random.random() * LONGEST_DELAY
        self.delayed += 1
        self.world.loop.call_later(seconds, self._arrived, state, delivery)

    def _arrived(self, state: QueueState, delivery: Delivery) -> None:
        self.delayed -= 1
        state.waiting.append(delivery)
        self.dispatch(state)

    def redrive(self) -> None:
        """Every dead letter goes back to the queue it died in, as an operator sees to it."""
        dead, self.dead = self.dead, []
        for name, message, _ in dead:
            self._enqueue(
                self.queues[name], Delivery(replace(message, attempt=0, redelivered=False), redriven=True)
            )

    # -- consuming ----------------------------------------------------------------------------------------

    def consume(
        self,
        process: Process,
        queue: Queue,
        handler: Handler,
        *,
        prefetch: int,
        outages: Outages = NO_OUTAGES,
    ) -> None:
        """Have the queue's messages handled by the process, also after it has lost its connection."""
        state = self.queues[queue.name]

        def connect() -> None:
            state.consumers.append(Consumer(process, handler, prefetch, outages))
            self.dispatch(state)

        process.on_return.append(connect)
        if process.connected:  # or it has lost its connection before it got as far
            connect()

    def dispatch(self, state: QueueState) -> None:
        """Hand out what can be, in whatever order."""
        while state.waiting:
            candidates = state.consumers[:1] if state.single and self.single_active else state.consumers
            free = [each for each in candidates if each.holding < each.prefetch]
            if not free:
                return
            consumer = self.world.random.choice(free)
            place = self.world.random.randrange(len(state.waiting))
            if place:
                self.world.seen["reordered", state.queue.name] += 1
            delivery = state.waiting.pop(place)
            if state.queue is EC2_TRIGGERS and self.world.happens("lost", state.queue.name, 0.3):
                continue  # purged, or dead-lettered and never redriven: reminders make up for it
            delivery.owner = consumer
            consumer.holding += 1
            state.taken.append(delivery)
            consumer.process.start(self._deliver(state, consumer, delivery))

    async def _deliver(self, state: QueueState, consumer: Consumer, delivery: Delivery) -> None:
        process = consumer.process
        HANDLED.set(delivery)
        delivery.effects = 0
        await process.step(f"delivered by {state.queue.name}")
        bus = BusOfProcess(process, self)

        async def handle() -> Verdict:
            try:
                return await consumer.handler(delivery.message)
            except Exception as error:
                self.world.trace(process.name, f"raises {error!r}")
                delivery.after_error |= isinstance(error, ConnectionError)
                raise

        async def wait(part: Dependency) -> None:
            assert part.over is not None
            await asyncio.shield(part.over)
            await process.living()
            if delivery.owner is not consumer or delivery not in state.taken:
                raise GivenToAnotherError

        try:
            ended = await handled(handle, consumer.outages, wait)
        except GivenToAnotherError:
            return
        settlement = settle(state.queue, ended, attempt=delivery.message.attempt, faults=delivery.faults)
        verdict, delivery.faults = settlement.verdict, settlement.faults
        if isinstance(verdict, Requeue):
            self.world.loop.call_later(UNSETTLED_PAUSE, self._give_back, state, consumer, delivery)
            return
        try:
            await self._settle(state, delivery, verdict, bus)
        except BusUnavailableError:
            self._give_back(state, consumer, delivery)
            return
        await process.step(f"acks {state.queue.name}")
        if self._crowd < CROWD and self.world.happens("lost ack", state.queue.name):
            self._give_back(state, consumer, delivery)
            return
        if not isinstance(verdict, Retry):
            self._recognised(state, delivery)
        self.ack(state, consumer, delivery)

    def ack(self, state: QueueState, consumer: Consumer, delivery: Delivery) -> None:
        """The message is gone, unless its connection was lost meanwhile."""
        if delivery.owner is consumer and delivery in state.taken:
            state.taken.remove(delivery)
            consumer.holding -= 1
            self.dispatch(state)

    def _recognised(self, state: QueueState, delivery: Delivery) -> None:
        """A message that was handled before, and of which nothing new came this time, was recognised."""
        key = state.queue.name, delivery.message.message_id or ""
        if key in self._handled and not delivery.effects and delivery.message.type != Reminder.TYPE:
            self.world.nets[nets.DUPLICATE, delivery.message.type] += 1
        self._handled.add(key)

    async def _settle(
        self, state: QueueState, delivery: Delivery, verdict: Verdict, bus: "BusOfProcess"
    ) -> None:
        match verdict:
            case Ack():
                return
            case Retry(wait):
                assert wait is not None  # the delivery policy has chosen one
                again = replace(delivery.message, attempt=delivery.message.attempt + 1, redelivered=False)
                await bus.confirmed("retry")
                self.retrying += 1
                later = Delivery(again, faults=delivery.faults, after_error=delivery.after_error)
                self.world.loop.call_later(wait, self._come_back, state, later)
            case DeadLetter(reason):
                await bus.confirmed("dead letter")
                self.dead.append((state.queue.name, delivery.message, reason))

    def _come_back(self, state: QueueState, delivery: Delivery) -> None:
        self.retrying -= 1
        self._enqueue(state, delivery)

    def _give_back(self, state: QueueState, consumer: Consumer, delivery: Delivery) -> None:
        if delivery.owner is not consumer or delivery not in state.taken:
            return
        state.taken.remove(delivery)
        consumer.holding -= 1
        delivery.deliveries += 1
        if delivery.deliveries > DELIVERY_LIMIT:
            if "x-dead-letter-exchange" in state.queue.arguments:
                self.dead.append((state.queue.name, delivery.message, "delivery limit"))
            return
        delivery.message = replace(delivery.message, redelivered=True)
        self.world.seen["redelivered", state.queue.name] += 1
        self._enqueue(state, delivery)

    def _lost(self, process: Process) -> None:
        """A connection is gone: what it held goes to the next consumer."""
        for state in self.queues.values():
            for consumer in [each for each in state.consumers if each.process is process]:
                state.consumers.remove(consumer)
                for delivery in [each for each in state.taken if each.owner is consumer]:
                    self._give_back(state, consumer, delivery)

    @property
    def _crowd(self) -> int:
        return self.delayed + self.retrying + sum(len(each.waiting) for each in self.queues.values())

    @property
    def quiet(self) -> bool:
        """Nothing is in a queue, in a handler or in a retry queue."""
        return (
            not self.retrying
            and not self.delayed
            and not any(each.waiting or each.taken for each in self.queues.values())
        )


class BusOfProcess:
    """``Publish`` as a process has it."""

    def __init__(self, process: Process, broker: Broker) -> None:
        self._process = process
        self._world = process.world
        self._broker = broker
        self._routed: set[str] = set()
        """The ids of what was routed and is not confirmed."""

    async def routed(self, message: Outgoing) -> bool:
        """See ``Routed``."""
        await self._process.step("asks whether it was routed")
        if not self._process.connected:
            raise BusUnavailableError("no connection")
        return message.message_id in self._routed

    async def __call__(self, message: Outgoing, /) -> None:
        kind = message.exchange.name if message.exchange else "reply"
        await self._process.step(f"publishes to {kind}")
        if not self._process.connected:
            raise BusUnavailableError("no connection")
        if message.behind and message.behind not in self._routed:
            raise BusUnavailableError("the message before it may be lost")
        if self._world.happens("dropped, not confirmed", "publish"):
            raise BusUnavailableError("not confirmed")
        if not self._broker.route(message) and message.mandatory:
            raise UnroutableError(message.routing_key)
        if self._world.happens("taken, not confirmed", "publish"):
            raise BusUnavailableError("not confirmed")
        self._routed.add(message.message_id)
        try:
            await self._process.step(f"published to {kind}")
        finally:
            self._routed.discard(message.message_id)

    async def confirmed(self, what: str) -> None:
        """A message of the bus's own."""
        await self._process.step(what)
        if not self._process.connected:
            raise BusUnavailableError("no connection")
        if self._world.happens("dropped, not confirmed", what):
            raise BusUnavailableError("not confirmed")


def _matches(pattern: str, key: str) -> bool:
    """Topic exchanges, as far as the topology uses them."""
    return pattern in ("", "#", key) or (pattern.endswith(".#") and key.startswith(pattern[:-1]))


def _received(message: Outgoing) -> Message:
    return Message(
        body=message.body,
        type=message.type,
        routing_key=message.routing_key,
        message_id=message.message_id or None,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        headers=dict(message.headers),
        content_type=message.content_type,
        user_id=message.user_id,
    )
