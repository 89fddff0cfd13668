"""The exchanges and queues of the system, as data: declared from here, and nowhere else.

Quorum queues with an explicit delivery limit (RabbitMQ 4 would set 20 by itself, 3.x none) and
at-least-once dead-lettering (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering), which needs
``overflow=reject-publish``. Retries wait in queues of one fixed delay each, because a per-message TTL
blocks the head of the line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cml_contracts.events import (
    InstanceLaunched,
    InstanceStarting,
    InstanceStateObserved,
    InstanceStopping,
    LaunchRequested,
    OperationRefused,
    StartFailed,
    StartRequested,
    StopFailed,
    StopRequested,
    TagsUpdated,
    TagsUpdateFailed,
    TagsUpdateRequested,
    TerminationFailed,
    TerminationRequested,
    WorkerImported,
)
from cml_contracts.reports import Reminder

DELIVERY_LIMIT = 20
"""Redeliveries before a message counts as poison; a crash burns one of each prefetched message."""

RETRY_DELAYS = (1, 5, 30)
"""Seconds a message can be put aside."""


@dataclass(frozen=True, slots=True)
class Exchange:
    name: str
    kind: Literal["topic", "fanout"] = "topic"


@dataclass(frozen=True, slots=True)
class Binding:
    exchange: Exchange
    routing_key: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue; ``retries``: it has waiting queues beside it, one for each of ``RETRY_DELAYS``."""

    name: str
    bindings: tuple[Binding, ...] = ()
    arguments: Mapping[str, str | int | bool] = field(default_factory=dict)
    retries: bool = False

    def retry_queue(self, delay: int) -> str:
        """The name of the queue in which messages wait ``delay`` seconds to come back to this one."""
        return f"{self.name}.retry.{delay}s"


COMMANDS = Exchange("cml.commands")
QUERIES = Exchange("cml.queries")
EVENTS = Exchange("cml.events")
INTERNAL = Exchange("cml.internal")
DEAD_LETTERS = Exchange("cml.dead-letters", kind="fanout")
OPERATOR = Exchange("cml.operator")
"""Requests about dead letters; who may write here is for the broker's permissions to say."""

_QUORUM: Mapping[str, str | int | bool] = {"x-queue-type": "quorum"}
_WORK: Mapping[str, str | int | bool] = {
    **_QUORUM,
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-dead-letter-exchange": DEAD_LETTERS.name,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}

LIFECYCLE_COMMANDS = Queue("cml.lifecycle.commands", (Binding(COMMANDS, "#"),), _WORK, retries=True)
LIFECYCLE_REPORTS = Queue("cml.lifecycle.reports", (Binding(INTERNAL, "cml.report.#"),), _WORK, retries=True)

_WAKING = (
    LaunchRequested,
    StartRequested,
    StopRequested,
    TerminationRequested,
    TagsUpdateRequested,
    OperationRefused,
    InstanceLaunched,
    InstanceStarting,
    InstanceStopping,
    InstanceStateObserved,
    WorkerImported,
    TagsUpdated,
    TagsUpdateFailed,
    StartFailed,
    StopFailed,
    TerminationFailed,
)
EC2_WAKES = Queue(
    "cml.ec2.wakes",
    (*(Binding(EVENTS, event.TYPE) for event in _WAKING), Binding(INTERNAL, Reminder.TYPE)),
    {**_WORK, "x-single-active-consumer": True},
    retries=True,
)
"""Events after which AWS has to be acted on: an intent, an outcome others waited for, an unsettled state; reminders."""
EC2_LOOKUPS = Queue("cml.ec2.lookups", (Binding(INTERNAL, "cml.lookup.#"),), _WORK, retries=True)

PROJECTOR_QUERIES = Queue("cml.projector.queries", (Binding(QUERIES, "#"),), {"x-message-ttl": 60_000})
"""Answers are of use only while somebody waits: no quorum, and old questions fall away."""

OPERATOR_REQUESTS = Queue("cml.projector.operator", (Binding(OPERATOR, "#"),), {"x-message-ttl": 60_000})
"""Likewise: an operator who gave up waiting is not surprised by a late effect."""

DEAD_LETTER_QUEUE = Queue(
    "cml.dead-letters", (Binding(DEAD_LETTERS, ""),), {**_QUORUM, "x-delivery-limit": 1000}, retries=True
)
"""On their way into the database, from which operators deal with them."""

EXCHANGES = (COMMANDS, QUERIES, EVENTS, INTERNAL, DEAD_LETTERS, OPERATOR)
QUEUES = (
    LIFECYCLE_COMMANDS,
    LIFECYCLE_REPORTS,
    EC2_WAKES,
    EC2_LOOKUPS,
    PROJECTOR_QUERIES,
    OPERATOR_REQUESTS,
    DEAD_LETTER_QUEUE,
)


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
