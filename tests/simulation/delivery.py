"""A message on its way in the simulated broker: its queue, its consumer, and which safety nets have caught it."""

from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from cml_workers.bus.port import Handler, Message
from cml_workers.bus.topology import Queue
from cml_workers.domain.messages import Reminder
from cml_workers.foundation.outages import Outages
from simulation import nets
from simulation.world import Process, World

SENT_AGAIN = "x-sent-again"
"""The header of a command that its caller sends again, as no answer came."""


@dataclass(eq=False)
class Delivery:
    """A message in a queue; ``owner``: the consumer that has it, unsettled.

    ``after_error``: it was retried as a part was unavailable; ``redriven``: an operator took it from the dead letters.
    ``effects``: what the handling of it has brought about so far.
    """

    message: Message
    deliveries: int = 0
    faults: int = 0
    owner: "Consumer | None" = None
    after_error: bool = False
    redriven: bool = False
    effects: int = 0

    @property
    def nets(self) -> Iterator[str]:
        """The safety nets that have caught it."""
        if self.message.redelivered:
            yield nets.REDELIVERY
        if self.after_error:
            yield nets.RETRIED
        if self.redriven:
            yield nets.REDRIVE
        if SENT_AGAIN in self.message.headers:
            yield nets.SENT_AGAIN
        if self.message.type == Reminder.TYPE:
            yield nets.REMINDER


HANDLED: ContextVar[Delivery | None] = ContextVar("handled", default=None)
"""What the current task handles."""


def took_effect(world: World, what: str) -> None:
    """Something new came of what is being handled: whichever nets have caught the message saved it."""
    delivery = HANDLED.get()
    if delivery is not None:
        delivery.effects += 1
        for net in delivery.nets:
            world.nets[net, f"{delivery.message.type}: {what}"] += 1


@dataclass(eq=False)
class Consumer:
    process: Process
    handler: Handler
    prefetch: int
    outages: Outages
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
