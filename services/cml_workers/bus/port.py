"""The message bus as handlers see it: a message comes in, messages go out, a verdict settles it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from cml_contracts.envelope import JSON
from cml_contracts.topology import Exchange
from cml_workers.foundation.failures import ConfigurationError


class BusUnavailableError(ConnectionError):
    """The broker did not confirm. The message may or may not have arrived: publish it again."""


class NotTakenError(BusUnavailableError):
    """A queue that the message goes to did not take it, as it is full or its node is down; the other queues have it."""


class BusConfigurationError(ConfigurationError):
    """The broker does not let us in, or we do not trust it; says what to fix."""


class UnroutableError(Exception):
    """No queue takes the message: one of ours is missing; of a dead letter: the queue it died in is gone."""


NOT_THE_MESSAGES_FAULT = (ConnectionError, ConfigurationError, UnroutableError)
"""What a handler raises that no message causes: it is retried for as long as this lasts, and is never a dead letter for it."""


class CallerRefusesError(Exception):
    """The queue that awaits the reply does not take it: its owner limits it."""


class NoKeyError(Exception):
    """A message cannot be published again for its sender: its consumer would not believe it; says which key is missing."""


class TopologyError(BusConfigurationError):
    """The broker's exchanges or queues are not as they must be; says which, and how to fix it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it was delivered.

    ``attempt``: how often it was retried before; ``deliveries``: how often it was delivered since, this time included, not
    counting those that ended without a failure where the broker knows (RabbitMQ 4.3).
    ``user_id``: the user that the broker vouches for, also of a retried message.
    ``received_at``: when one of our roles first had it, also of a retried message, UTC; None: just now.
    """

    body: bytes
    type: str
    routing_key: str = ""
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    headers: Mapping[str, object] = field(default_factory=dict)
    content_type: str | None = None
    user_id: str | None = None
    redelivered: bool = False
    deliveries: int = 1
    attempt: int = 0
    received_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish; persistent, confirmed, and returned if no queue takes it.

    ``exchange`` None is the default exchange, whose routing key is a queue's name. ``behind``: the id of a message that is published and not
    confirmed, which it must not come before; it is not published, and BusUnavailableError is raised, where that one may be lost.
    ``user_id``: whom the broker is to vouch for, ourselves; the bus supplies it between roles.
    """

    exchange: Exchange | None
    routing_key: str
    body: bytes
    type: str
    message_id: str
    correlation_id: str | None = None
    reply_to: str | None = None
    content_type: str | None = JSON
    headers: Mapping[str, object] = field(default_factory=dict)
    user_id: str | None = None
    mandatory: bool = True
    behind: str | None = None


class Publish(Protocol):
    """Hands a message to the broker; what is awaited is done once the broker has confirmed it.

    Raises, when it is awaited:
        BusUnavailableError: not confirmed; repeat. NotTakenError, if one of several queues is the reason.
        UnroutableError: mandatory, and no queue takes it.
        CallerRefusesError: a reply, and the caller's queue refuses it.
    """

    def __call__(self, message: Outgoing, /) -> Awaitable[None]: ...


class Routed(Protocol):
    """Whether the broker has routed a message that is published and not confirmed yet. False: it may not have reached the broker.

    When this is True, whatever is published from now on comes behind the message in every queue that has both.

    Raises BusUnavailableError: the broker does not answer.
    """

    async def __call__(self, message: Outgoing, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class Ack:
    """The message is handled."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Deliver the message again after ``seconds``; None: after a delay that grows with the attempts."""

    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The message itself is broken: keep it in the dead-letter queue with the reason.

    ``cause``: the kind of reason, by which dead letters are counted; a problem's code where there is one.
    """

    reason: str
    cause: str = "Refused"


Verdict = Ack | Retry | DeadLetter
Handler = Callable[[Message], Awaitable[Verdict]]
