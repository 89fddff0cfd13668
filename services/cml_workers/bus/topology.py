"""The exchanges and queues of the system, as data; nothing else is declared.

Quorum queues with an explicit delivery limit (RabbitMQ 4 would set 20 by itself, 3.x none) and
at-least-once dead-lettering (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering), which needs
``overflow=reject-publish``. Retries wait in queues of one fixed delay each, because a per-message TTL
blocks the head of the line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cml_contracts.topology import (
    COMMANDS_EXCHANGE,
    EVENTS_EXCHANGE,
    OPERATOR_EXCHANGE,
    QUERIES_EXCHANGE,
    Exchange,
    own_exchange,
)
from cml_workers.domain.messages import Reminder
from cml_workers.domain.operations import TRIGGERS

DELIVERY_LIMIT = 20
"""Redeliveries before a message counts as poison; a crash uses up one of each prefetched message."""

RETRY_DELAYS = (1, 5, 30)
"""Seconds after which a message can be retried."""


@dataclass(frozen=True, slots=True)
class Binding:
    exchange: Exchange
    routing_key: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue.

    ``retries``: it has retry queues beside it, one for each of ``RETRY_DELAYS``. ``former``: bindings of earlier versions;
    whoever publishes to their exchange takes them away, as it is the one that sends the same another way now. ``replaces``: the
    queue of an earlier version that had its bindings; arguments cannot be changed, so other ones need another name. ``shared``:
    of one sender's own queue, the one of all: whatever is published again of its messages is published as of that one.
    """

    name: str
    bindings: tuple[Binding, ...] = ()
    arguments: Mapping[str, str | int | bool] = field(default_factory=dict)
    retries: bool = False
    former: tuple[Binding, ...] = ()
    replaces: str | None = None
    shared: "Queue | None" = None

    def retry_queue(self, delay: int) -> str:
        """The name of the queue in which messages wait ``delay`` seconds to come back to this one."""
        return f"{self.name}.retry.{delay}s"


INTERNAL_EXCHANGE = Exchange("cml.internal")
TRIGGERS_EXCHANGE = Exchange("cml.triggers")
"""The events that are triggers, a second time: subscribers' queues are bound to ``cml.events``, where one can keep a confirm back."""
BETWEEN_ROLES = (INTERNAL_EXCHANGE, TRIGGERS_EXCHANGE)
"""What is published here has the property ``user_id``: whoever consumes it has to know which role it comes from."""
DEAD_LETTER_EXCHANGE = Exchange("cml.dead-letters")
"""Who may read the queue of this name may not bind from the exchange: only of a topic exchange RabbitMQ has such a right. It was a fanout."""

_QUORUM: Mapping[str, str | int | bool] = {"x-queue-type": "quorum"}
_WORK: Mapping[str, str | int | bool] = {
    **_QUORUM,
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-dead-letter-exchange": DEAD_LETTER_EXCHANGE.name,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}

LIFECYCLE_COMMANDS = Queue("cml.lifecycle.commands", (Binding(COMMANDS_EXCHANGE, "#"),), _WORK, retries=True)
LIFECYCLE_REPORTS = Queue(
    "cml.lifecycle.reports", (Binding(INTERNAL_EXCHANGE, "cml.report.#"),), _WORK, retries=True
)

EC2_TRIGGERS = Queue(
    "cml.ec2.wakes",
    (
        *(Binding(TRIGGERS_EXCHANGE, event.TYPE) for event in TRIGGERS),
        Binding(INTERNAL_EXCHANGE, Reminder.TYPE),
    ),
    {**_WORK, "x-single-active-consumer": True},
    retries=True,
    former=tuple(Binding(EVENTS_EXCHANGE, event.TYPE) for event in TRIGGERS),
)
"""Events after which AWS has to be acted on: an intent, an outcome others waited for, an unsettled state; reminders."""
EC2_LOOKUPS = Queue("cml.ec2.lookups", (Binding(INTERNAL_EXCHANGE, "cml.lookup.#"),), _WORK, retries=True)

_ASKED: Mapping[str, str | int | bool] = {
    **_QUORUM,
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-message-ttl": 60_000,
}
PROJECTOR_QUERIES = Queue(
    "cml.projector.queries.v2",
    (Binding(QUERIES_EXCHANGE, "#"),),
    _ASKED,
    replaces="cml.projector.queries",
)
"""An answer is of use only while its caller waits: old queries expire."""

PROJECTOR_OPERATOR = Queue(
    "cml.projector.operator.v2",
    (Binding(OPERATOR_EXCHANGE, "#"),),
    _ASKED,
    replaces="cml.projector.operator",
)
"""Likewise: a request of an operator who no longer waits has no late effect."""

DEAD_LETTER_QUEUE = Queue(
    "cml.dead-letters",
    (Binding(DEAD_LETTER_EXCHANGE, "#"),),
    {**_QUORUM, "x-delivery-limit": 1000},
    retries=True,
)
"""Dead letters on their way into the archive."""

PROBES = Queue("cml.probes", (Binding(TRIGGERS_EXCHANGE, "cml.probe"),), {**_QUORUM, "x-message-ttl": 1000})
"""Shows the relay whether RabbitMQ takes messages at all: nobody reads it, and what is in it expires."""

EXCHANGES = (
    COMMANDS_EXCHANGE,
    QUERIES_EXCHANGE,
    EVENTS_EXCHANGE,
    INTERNAL_EXCHANGE,
    TRIGGERS_EXCHANGE,
    DEAD_LETTER_EXCHANGE,
    OPERATOR_EXCHANGE,
)
HANDLED = (
    LIFECYCLE_COMMANDS,
    LIFECYCLE_REPORTS,
    EC2_TRIGGERS,
    EC2_LOOKUPS,
    PROJECTOR_QUERIES,
    PROJECTOR_OPERATOR,
    DEAD_LETTER_QUEUE,
)
"""The queues that are read."""
QUEUES = (*HANDLED, PROBES)
PUBLIC = frozenset({LIFECYCLE_COMMANDS.name, PROJECTOR_QUERIES.name, PROJECTOR_OPERATOR.name})
"""Queues of what other programs say; what is in the others only our roles say."""
SHARED = (LIFECYCLE_COMMANDS, PROJECTOR_QUERIES)
"""The public queues beside which a sender has queues of its own."""


def own_queues(user: str) -> tuple[Queue, ...]:
    """Those of one sender. A name of a user has no dot, so none of them is a retry queue."""
    return tuple(
        replace(
            queue,
            name=f"{queue.name}.{user}",
            bindings=tuple(
                Binding(own_exchange(each.exchange, user), each.routing_key) for each in queue.bindings
            ),
            retries=False,
            replaces=None,
            shared=queue,
        )
        for queue in SHARED
    )


def counts_as(name: str) -> str | None:
    """The name of the queue of ours that this is, or that the own queue of a sender stands beside; None if it is neither."""
    if name in {queue.name for queue in QUEUES}:
        return name
    shared = name.rpartition(".")[0]
    return shared if shared in {queue.name for queue in SHARED} else None


def retry_arguments(queue: Queue, delay: int) -> dict[str, str | int | bool]:
    """The arguments of the queue in which messages for ``queue`` wait ``delay`` seconds."""
    return {
        **_QUORUM,
        "x-message-ttl": delay * 1000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue.name,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
