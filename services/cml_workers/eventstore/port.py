"""The event store as the roles see it: one contract, which a conformance suite holds every adapter to."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from cml_workers.foundation.failures import ConfigurationError

NO_STREAM = -1
"""Expected version of a stream that must not exist yet."""


class StreamNotFoundError(Exception):
    """The stream has never been written to."""


class WrongExpectedVersionError(Exception):
    """Somebody else appended first: load, decide and append again."""


class StreamDeletedError(Exception):
    """The stream was deleted or truncated at the server: its events are gone, and only an operator can restore them."""


class StoreUnavailableError(ConnectionError):
    """The store did not answer.

    An append may or may not have been committed: repeat it with the same event ids.
    """


class StoreConfigurationError(ConfigurationError):
    """The store does not let us in as configured (address, credentials, certificate); says what to fix."""


class StoreForbiddenError(StoreConfigurationError):
    """Our user may not do this in the store."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to append; ``data`` and ``metadata`` are JSON."""

    event_id: UUID
    type: str
    data: bytes
    metadata: bytes


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as the store keeps it.

    ``revision``: its place in its stream, from 0, without gaps. ``position``: its place in the store;
    opaque, only to be given back to ``follow`` and ``is_after``.
    """

    event_id: UUID
    type: str
    data: bytes
    metadata: bytes
    stream: str
    revision: int
    position: str
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything up to ``position`` has been delivered; it may name a place without a matching event."""

    position: str


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The follower has seen all there is for now; this may come many times."""


Item = StoredEvent | Checkpoint | CaughtUp
"""What a follower gets."""


def traced(correlation_id: str | None, causation_id: str | None) -> dict[str, str]:
    """For an event's metadata: the names by which KurrentDB's own projections and tools find what belongs together."""
    ids = {"$correlationId": correlation_id, "$causationId": causation_id}
    return {name: each for name, each in ids.items() if each is not None}


def check_append(stream: str, events: Sequence[NewEvent], expected: int) -> None:
    """Raise for what no store accepts.

    Raises:
        ValueError: there is no event; ``expected`` is below NO_STREAM; or the name of the stream or of a type
            is empty, begins with "$" (the server's own), or is not valid UTF-8 (a lone surrogate).
    """
    if not events:
        raise ValueError("an append needs at least one event")
    if expected < NO_STREAM:
        raise ValueError(f"expected version {expected} is below NO_STREAM")
    for name in (stream, *(event.type for event in events)):
        if not name or name.startswith("$"):
            raise ValueError(f"{name!r} cannot name a stream or an event type")
        name.encode()


def check_trim(keep: int) -> None:
    """Raise ValueError for a stream that would be left without an event: it would begin again from revision 0."""
    if keep < 1:
        raise ValueError(f"a trimmed stream keeps at least one event, not {keep}")


class EventStore(Protocol):
    """Append-only streams and the one order of all of them.

    Safe for many concurrent callers of one event loop. Any call may raise StoreConfigurationError. Once
    closed, calls raise StoreUnavailableError, and ``follow`` ends at once.
    """

    async def append(self, stream: str, events: Sequence[NewEvent], *, expected: int) -> int:
        """Append all of ``events`` or none; return the revision of the last one.

        ``expected`` is the revision of the stream's last event, or NO_STREAM. Repeating an append with the
        same event ids at the same place returns the original success and stores nothing; a partial overlap
        is a conflict. If the caller is cancelled, the append may still be committed.

        Raises:
            ValueError: see ``check_append``; or the events are larger than the store takes.
            WrongExpectedVersionError: the stream is at another revision.
            StreamDeletedError: the stream may never be written to again.
            StoreUnavailableError: not known whether it was committed; repeat with the same event ids.
        """
        ...

    async def read(
        self, stream: str, *, after: int = NO_STREAM, limit: int | None = None
    ) -> list[StoredEvent]:
        """The stream's events of a revision above ``after``, in order, at most ``limit``.

        [] if the stream has none of them.

        Raises:
            ValueError: ``limit`` is below 1.
            StreamNotFoundError: the stream does not exist.
            StreamDeletedError: the stream existed, or has lost some of the events asked for.
            StoreUnavailableError: try again.
        """
        ...

    async def last(self, stream: str) -> StoredEvent:
        """The stream's last event, also where its first ones are gone.

        Raises:
            StreamNotFoundError: the stream does not exist.
            StreamDeletedError: the stream existed, and has no event left.
            StoreUnavailableError: try again.
        """
        ...

    async def trim(self, stream: str, keep: int) -> None:
        """Let all but the stream's last ``keep`` events go, now or later; those that come are no reason to keep more.

        A store may need a right for this that appending does not.

        Raises:
            ValueError: ``keep`` is below 1.
            StreamDeletedError: the stream is gone.
            StoreUnavailableError: try again.
        """
        ...

    def follow(self, *, after: str | None, prefix: str = "") -> AsyncGenerator[Item, None]:
        """Every event of the streams whose name begins with ``prefix``, in the order of commit, then live.

        Starts behind position ``after`` (None: at the beginning) and ends only by cancellation, by closing
        the iterator or the store, or by an error. At least once: a caller resumes from the last position it
        has *saved*. Checkpoints come now and then where matching events are rare.

        Raises:
            StoreUnavailableError: the subscription broke; follow again from the saved position.
            StoreConfigurationError: ``after`` is no position of this store.
        """
        ...

    async def end(self) -> str | None:
        """The position of the last event that is stored now, of whatever stream, or a later one; None: there is none.

        Raises StoreUnavailableError.
        """
        ...

    def is_after(self, position: str, other: str) -> bool:
        """Whether a position lies behind another one in the order of commit.

        Raises StoreConfigurationError for what is no position of this kind of store.
        """
        ...

    async def ping(self) -> None:
        """Return when the store answers.

        Raises:
            StoreUnavailableError: it does not, for now.
            StoreConfigurationError: it never will, as configured.
        """
        ...

    async def close(self) -> None:
        """Release connections, files and threads; followers end."""
        ...
