"""The exchanges that other services use; the queues behind them are internal."""

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
