"""Exchanges and their bindings: which queues does a routing key reach."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

KINDS: Final = ("direct", "fanout", "topic")
DEFAULT: Final = ""
"""The default exchange: its routing key is a queue's name."""


@dataclass(frozen=True, slots=True)
class Binding:
    exchange: str
    queue: str
    routing_key: str


@dataclass(slots=True)
class Exchange:
    name: str
    kind: str
    durable: bool = True
    bindings: dict[Binding, None] = field(default_factory=dict)

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
