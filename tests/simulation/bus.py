"""A message broker in memory with the topology that ships: it repeats, reorders, delays and loses what is unconfirmed."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cml_contracts.topology import EC2_WAKES, EVENTS, QUEUES, Queue
from cml_workers.bus.port import (
    BusUnavailableError,
    Dead,
    Done,
    Handler,
    Later,
    Message,
    Outgoing,
    UnroutableError,
    Verdict,
)
from cml_workers.bus.rabbit import MAX_FAULTS, retry_delay
from cml_workers.failures import ConfigurationError
from simulation.world import Process, World

LONGEST_DELAY = 400.0
"""Seconds a message may be on its way."""
CROWD = 25
"""Messages under way above which no ack is lost: what is put aside and redelivered doubles each time."""
DELIVERY_LIMIT = 4
"""Lower than in production, so that innocent messages become dead letters, too."""


@dataclass(eq=False)
class Delivery:
    """A message in a queue; ``owner``: the consumer that has it, unsettled."""

    message: Message
    deliveries: int = 0
    faults: int = 0
    owner: "Consumer | None" = None


@dataclass(eq=False)
class Consumer:
    process: Process
    handler: Handler
    prefetch: int
    holding: int = 0
    connected: bool = True


@dataclass(eq=False)
class QueueState:
    queue: Queue
    waiting: list[Delivery] = field(default_factory=list)
    taken: list[Delivery] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)

    @property
    def single(self) -> bool:
        return bool(self.queue.arguments.get("x-single-active-consumer"))


class Broker:
    """Exchanges, queues, consumers; settles deliveries as ``RabbitBus`` does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.queues = {queue.name: QueueState(queue) for queue in QUEUES}
        self.on_reply: Callable[[Outgoing], object] = lambda _: None
        self.on_event: Callable[[Outgoing], object] = lambda _: None
        self.dead: list[tuple[str, Message, str]] = []
        """Queue, message and reason."""
        self.put_aside = 0
        self.delayed = 0
        self.single_active = True
        world.on_death.append(self._lost)

    # -- publishing ---------------------------------------------------------------------------------------

    def route(self, message: Outgoing) -> bool:
        """Put it into every queue that takes it; False if none does."""
        if message.exchange is None:
            if message.routing_key.startswith("client."):
                self.on_reply(message)
                return True
            names = [message.routing_key]
        else:
            if message.exchange == EVENTS:
                self.on_event(message)
            names = [
                state.queue.name
                for state in self.queues.values()
                for binding in state.queue.bindings
                if binding.exchange == message.exchange and _matches(binding.routing_key, message.routing_key)
            ]
        for name in names:
            self._enqueue(self.queues[name], Delivery(_received(message)))
        return bool(names)

    def _enqueue(self, state: QueueState, delivery: Delivery) -> None:
        delivery.owner = None
        seconds = self.world.random.random() * 0.2
        if self.world.happens("delayed", state.queue.name):
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
            self._enqueue(self.queues[name], Delivery(replace(message, attempt=0, redelivered=False)))

    # -- consuming ----------------------------------------------------------------------------------------

    def consume(self, process: Process, queue: Queue, handler: Handler, *, prefetch: int) -> None:
        """Have the queue's messages handled by the process, also after it has lost its connection."""
        state = self.queues[queue.name]

        def connect() -> None:
            state.consumers.append(Consumer(process, handler, prefetch))
            self.dispatch(state)

        process.on_return.append(connect)
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
            if state.queue is EC2_WAKES and self.world.happens("lost", state.queue.name, 0.3):
                continue  # purged, or dead-lettered and never redriven: reminders make up for it
            delivery.owner = consumer
            consumer.holding += 1
            state.taken.append(delivery)
            consumer.process.start(self._deliver(state, consumer, delivery))

    async def _deliver(self, state: QueueState, consumer: Consumer, delivery: Delivery) -> None:
        process = consumer.process
        await process.step(f"delivered by {state.queue.name}")
        bus = BusOfProcess(process, self)
        try:
            verdict = await consumer.handler(delivery.message)
        except (ConnectionError, ConfigurationError):
            verdict = Later()
        except Exception as error:  # noqa: BLE001 - as RabbitBus does
            delivery.faults += 1
            self.world.trace(process.name, f"fails: {error!r}")
            verdict = Dead(f"handler failed: {error!r}") if delivery.faults >= MAX_FAULTS else Later()
        try:
            await self._settle(state, delivery, verdict, bus)
        except BusUnavailableError:
            self._give_back(state, consumer, delivery)
            return
        await process.step(f"acks {state.queue.name}")
        if self._crowd < CROWD and self.world.happens("lost ack", state.queue.name):
            self._give_back(state, consumer, delivery)
            return
        self.ack(state, consumer, delivery)

    def ack(self, state: QueueState, consumer: Consumer, delivery: Delivery) -> None:
        """The message is gone, unless its connection was lost meanwhile."""
        if delivery.owner is consumer and delivery in state.taken:
            state.taken.remove(delivery)
            consumer.holding -= 1
            self.dispatch(state)

    async def _settle(
        self, state: QueueState, delivery: Delivery, verdict: Verdict, bus: "BusOfProcess"
    ) -> None:
        match verdict:
            case Done():
                return
            case Later(seconds):
                if not state.queue.retries:
                    return
                again = replace(delivery.message, attempt=delivery.message.attempt + 1, redelivered=False)
                await bus.confirmed("put aside")
                wait = retry_delay(seconds, delivery.message.attempt)
                self.put_aside += 1
                self.world.loop.call_later(wait, self._come_back, state, again, delivery.faults)
            case Dead(reason):
                await bus.confirmed("dead letter")
                self.dead.append((state.queue.name, delivery.message, reason))

    def _come_back(self, state: QueueState, message: Message, faults: int) -> None:
        self.put_aside -= 1
        self._enqueue(state, Delivery(message, faults=faults))

    def _give_back(self, state: QueueState, consumer: Consumer, delivery: Delivery) -> None:
        if delivery.owner is not consumer or delivery not in state.taken:
            return
        state.taken.remove(delivery)
        consumer.holding -= 1
        delivery.deliveries += 1
        if delivery.deliveries > DELIVERY_LIMIT:
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
        return self.delayed + self.put_aside + sum(len(each.waiting) for each in self.queues.values())

    @property
    def quiet(self) -> bool:
        """Nothing is in a queue, in somebody's hands or put aside."""
        return (
            not self.put_aside
            and not self.delayed
            and not any(each.waiting or each.taken for each in self.queues.values())
        )


class BusOfProcess:
    """``Publish`` as a process has it."""

    def __init__(self, process: Process, broker: Broker) -> None:
        self._process = process
        self._world = process.world
        self._broker = broker

    async def __call__(self, message: Outgoing, /) -> None:
        kind = message.exchange.name if message.exchange else "reply"
        await self._process.step(f"publishes to {kind}")
        if self._world.happens("dropped, not confirmed", "publish"):
            raise BusUnavailableError("not confirmed")
        if not self._broker.route(message) and message.mandatory:
            raise UnroutableError(message.routing_key)
        if self._world.happens("taken, not confirmed", "publish"):
            raise BusUnavailableError("not confirmed")
        await self._process.step(f"published to {kind}")

    async def confirmed(self, what: str) -> None:
        """A message of the bus's own."""
        await self._process.step(what)
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
