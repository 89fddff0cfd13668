"""The exchanges that other services use, and the names of their own queues; the queues behind the exchanges are internal."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange of the broker."""

    name: str
    kind: Literal["topic", "fanout"] = "topic"


COMMANDS_EXCHANGE = Exchange("cml.commands")
QUERIES_EXCHANGE = Exchange("cml.queries")
EVENTS_EXCHANGE = Exchange("cml.events")
OPERATOR_EXCHANGE = Exchange("cml.operator")
"""Requests about dead letters; the broker's permissions say who may write here."""


def own_exchange(shared: Exchange, user: str) -> Exchange:
    """The one that takes the place of ``cml.commands`` or ``cml.queries`` for one sender: nobody else's messages are in the queue behind it."""
    return Exchange(f"{shared.name}.{user}", shared.kind)


REPLIES = "cml.replies."
SUBSCRIBERS = "cml.subscribers."


def reply_queue(user: str, name: str) -> str:
    """The name of a queue in which a user of the broker gets replies. ``name``: letters, digits, ``-`` and ``_``, no dot."""
    return f"{REPLIES}{user}.{name}"


def subscriber_queue(user: str, name: str) -> str:
    """The name of a queue in which a user of the broker gets events."""
    return f"{SUBSCRIBERS}{user}.{name}"
