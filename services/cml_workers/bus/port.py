"""The message bus as handlers see it: a message comes in, messages go out, a verdict settles it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cml_contracts.envelope import JSON
from cml_contracts.topology import Exchange
from cml_workers.failures import ConfigurationError

ATTEMPT_HEADER = "x-cml-attempt"
"""How often a message was put aside before."""


class BusUnavailableError(ConnectionError):
    """The broker did not confirm. The message may or may not have arrived: publish it again."""


class BusConfigurationError(ConfigurationError):
    """The broker does not let us in, or we do not trust it; says what to mend."""


class UnroutableError(Exception):
    """No queue takes the message; for a reply: the caller is gone."""


class CallerRefusesError(Exception):
    """The queue that awaits the reply does not take it, for now or for ever: its owner limits it."""


class TopologyError(BusConfigurationError):
    """The broker's exchanges or queues are not as they must be; says which, and how to mend it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it was delivered. ``attempt``: how often it was put aside before.

    ``user_id``: the user that the broker vouches for, also when the message was put aside meanwhile.
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
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish; persistent, confirmed, and returned if no queue takes it.

    ``exchange`` None is the default exchange, whose routing key is a queue's name.
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


class Publish(Protocol):
    """Hands a message to the broker and returns once the broker has confirmed it.

    Raises:
        BusUnavailableError: not confirmed; repeat.
        UnroutableError: mandatory, and no queue takes it.
        CallerRefusesError: a reply, and the caller's queue refuses it.
    """

    async def __call__(self, message: Outgoing, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Done:
    """The message is dealt with."""


@dataclass(frozen=True, slots=True)
class Later:
    """Put the message aside and deliver it again after ``seconds``; None: longer from attempt to attempt."""

    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Dead:
    """The message itself is broken: keep it in the dead-letter queue with the reason."""

    reason: str


Verdict = Done | Later | Dead
Handler = Callable[[Message], Awaitable[Verdict]]
