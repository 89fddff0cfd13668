"""What survives the broker's end: exchanges, bindings, queues and messages."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pamqp import common

from cml_embedded.amqp.exchanges import Binding, Exchange
from cml_embedded.amqp.message import Queued


class DataInUseError(Exception):
    """Another broker runs on the same data folder."""


@dataclass(frozen=True, slots=True)
class StoredQueue:
    name: str
    auto_delete: bool
    arguments: common.FieldTable


@dataclass(slots=True)
class Stored:
    """What a former broker left behind; messages in order, each with its queue's name."""

    exchanges: list[Exchange] = field(default_factory=list)
    queues: list[StoredQueue] = field(default_factory=list)
    bindings: list[Binding] = field(default_factory=list)
    messages: list[tuple[str, Queued]] = field(default_factory=list)


class Journal(Protocol):
    """Records every change to what is durable; ``after_commit`` says when all so far is on disk, ``close`` blocks."""

    def load(self) -> Stored: ...
    def exchange_declared(self, exchange: Exchange) -> None: ...
    def exchange_deleted(self, name: str) -> None: ...
    def queue_declared(self, name: str, arguments: common.FieldTable, *, auto_delete: bool) -> None: ...
    def queue_deleted(self, name: str) -> None: ...
    def bound(self, binding: Binding) -> None: ...
    def unbound(self, binding: Binding) -> None: ...
    def added(self, queue: str, queued: Queued) -> None: ...
    def marked(self, queued: Queued, *, delivered: bool) -> None:
        """Handed to a consumer, or come back from it (``queued.returns`` counts that)."""

    def removed(self, queued: Queued) -> None: ...
    def after_commit(self, done: Callable[[], None]) -> None:
        """Have ``done`` called in the event loop once all changes so far are on disk."""

    def close(self) -> None:
        """Write what is left; blocks."""


class InMemoryJournal:
    """The journal of a broker without a data folder: nothing survives it."""

    def load(self) -> Stored:
        return Stored()

    def exchange_declared(self, exchange: Exchange) -> None: ...
    def exchange_deleted(self, name: str) -> None: ...
    def queue_declared(self, name: str, arguments: common.FieldTable, *, auto_delete: bool) -> None: ...
    def queue_deleted(self, name: str) -> None: ...
    def bound(self, binding: Binding) -> None: ...
    def unbound(self, binding: Binding) -> None: ...
    def added(self, queue: str, queued: Queued) -> None: ...
    def marked(self, queued: Queued, *, delivered: bool) -> None: ...
    def removed(self, queued: Queued) -> None: ...

    def after_commit(self, done: Callable[[], None]) -> None:
        done()

    def close(self) -> None: ...
