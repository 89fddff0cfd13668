"""Exchanges and their bindings: which queues does a routing key reach."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from pamqp import common

DestinationKind = Literal["queue", "exchange"]

KINDS: Final = ("direct", "fanout", "topic")
PREDECLARED: Final = {"": "direct", "amq.direct": "direct", "amq.fanout": "fanout", "amq.topic": "topic"}


@dataclass(frozen=True, slots=True)
class Binding:
    """From an exchange to a queue, or to another exchange."""

    exchange: str
    kind: DestinationKind
    destination: str
    routing_key: str


@dataclass(slots=True)
class Exchange:
    name: str
    kind: str
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: common.FieldTable = field(default_factory=dict)
    bindings: dict[Binding, None] = field(default_factory=dict)

    @property
    def alternate(self) -> str | None:
        """Where messages go that no binding takes."""
        name = self.arguments.get("alternate-exchange")
        return name if isinstance(name, str) else None

    def matching(self, routing_key: str) -> Iterator[Binding]:
        match self.kind:
            case "fanout":
                yield from self.bindings
            case "topic":
                words = _words(routing_key)
                yield from (b for b in self.bindings if topic_matches(_words(b.routing_key), words))
            case _:
                yield from (b for b in self.bindings if b.routing_key == routing_key)


def _words(key: str) -> list[str]:
    """An empty key has no word at all."""
    return key.split(".") if key else []


def topic_matches(pattern: list[str], words: list[str]) -> bool:
    """``*`` stands for exactly one word, ``#`` for any number of them."""
    if not pattern:
        return not words
    head, *rest = pattern
    if head == "#":
        return not rest or any(topic_matches(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and topic_matches(rest, words[1:])
