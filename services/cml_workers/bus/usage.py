"""What one connection uses of the topology: it asks the broker for that and for nothing else.

So a role starts with the least rights, and whatever else of the broker is down.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cml_contracts.topology import Exchange
from cml_workers.bus.topology import (
    DEAD_LETTER_EXCHANGE,
    EXCHANGES,
    HANDLED,
    QUEUES,
    RETRY_DELAYS,
    Queue,
    own_queues,
    retry_arguments,
)


@dataclass(frozen=True, slots=True)
class Usage:
    """The queues it consumes, and the exchanges it publishes to itself.

    ``internal``: the types of its messages to other roles, which are the routing keys it publishes to ``INTERNAL_EXCHANGE`` with.
    Replies, retries and redrives go to queues by name, through the default exchange, which is always there.
    """

    consumes: tuple[Queue, ...] = ()
    publishes: tuple[Exchange, ...] = ()
    internal: tuple[str, ...] = ()

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All that it publishes to: whoever consumes also dead-letters."""
        dead_letters = (DEAD_LETTER_EXCHANGE,) if self.consumes else ()
        return tuple(dict.fromkeys((*self.publishes, *dead_letters)))

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of what it consumes, and of the queues in which its retries wait."""
        return tuple(name for queue in self.consumes for name in (queue.name, *retry_queues(queue)))

    @property
    def declares(self) -> tuple[Queue, ...]:
        """What it consumes, and every queue that what it publishes goes to: nothing is lost before that is consumed."""
        return tuple(
            queue
            for queue in (*QUEUES, *(each for each in self.consumes if each.shared))
            if queue in self.consumes or any(binding.exchange in self.exchanges for binding in queue.bindings)
        )

    def with_own(self, senders: Iterable[str]) -> "Usage":
        """The same, and beside what it consumes the senders' own queues."""
        own = (
            queue for user in sorted(senders) for queue in own_queues(user) if queue.shared in self.consumes
        )
        return replace(self, consumes=(*self.consumes, *own))

    @property
    def of_all(self) -> "Usage":
        """The same without any sender's own queues: what is needed to start."""
        return replace(self, consumes=tuple(each for each in self.consumes if each.shared is None))


EVERYTHING = Usage(consumes=HANDLED, publishes=EXCHANGES)


def retry_queues(queue: Queue) -> Mapping[str, Mapping[str, str | int | bool]]:
    """The queues in which messages wait to come back to ``queue``: name and arguments."""
    delays = RETRY_DELAYS if queue.retries else ()
    return {queue.retry_queue(delay): retry_arguments(queue, delay) for delay in delays}
