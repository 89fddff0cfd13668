"""Anchors: the event by which a follower recognises the store that its checkpoint was saved with.

A position says nothing of whose it is. Another store, or an older copy of this one, has other events at it, or none: a follower
that went on there would miss events without a word, or fail without end.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self
from uuid import UUID

import structlog

from cml_workers.eventstore.port import (
    EventStore,
    StoreConfigurationError,
    StoredEvent,
    StreamDeletedError,
    StreamNotFoundError,
)

log = structlog.get_logger(__name__)

MISSING_LOOKS = 10
"""How often, a second apart, an event is looked for before it is taken for missing, as a replica may lag."""
LOOKS_AGAIN = 15.0
"""Seconds between looks after that: an operator may have done something about it."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last event at a checkpoint or before it."""

    event_id: UUID
    stream: str
    revision: int
    position: str

    @classmethod
    def of(cls, event: StoredEvent) -> Self:
        """That event's."""
        return cls(event.event_id, event.stream, event.revision, event.position)

    @classmethod
    def parsed(cls, text: str | None) -> Self | None:
        """What ``str`` made of it; checkpoints of earlier versions have none."""
        if text is None:
            return None
        event_id, stream, revision, position = json.loads(text)
        return cls(UUID(event_id), stream, revision, position)

    def __str__(self) -> str:
        return json.dumps([str(self.event_id), self.stream, self.revision, self.position])


@dataclass(frozen=True, slots=True)
class Mismatch:
    """``reason``: why the checkpoint is another store's; ``is_certain``: no replica that lags would show this."""

    reason: str
    is_certain: bool


async def mismatch(store: EventStore, anchor: Anchor | None, position: str | None = None) -> Mismatch | None:
    """Why a checkpoint with this anchor is not one of this store; None if it is, or if nobody can know.

    ``position``: the checkpoint's, by which one without an anchor is judged. Raises StoreUnavailableError, StoreConfigurationError.
    """
    if anchor is None:
        return None if position is None else await _beyond_the_end(store, position)
    event = f"event {anchor.event_id} ({anchor.stream}, revision {anchor.revision})"
    try:
        found = await store.read(anchor.stream, after=anchor.revision - 1, limit=1)
        if not found and (await store.last(anchor.stream)).revision >= anchor.revision:
            return None  # it went while we looked
    except StreamDeletedError:  # by an operator, who may: it was there
        return None
    except StreamNotFoundError:
        found = []
    if not found:
        return Mismatch(f"it was saved behind {event}, which this event store does not have", False)
    if found[0].event_id != anchor.event_id:
        return Mismatch(f"it was saved behind {event}, and this event store has another one there", True)
    there = found[0].position
    if store.is_after(there, anchor.position) or store.is_after(anchor.position, there):
        return Mismatch(f"it was saved behind {event}, which is elsewhere in this event store", True)
    return None


async def _beyond_the_end(store: EventStore, position: str) -> Mismatch | None:
    """All that is known without an anchor: in a store that has less, it is another one's, or an older copy's."""
    end = await store.end()
    try:
        if end is not None and not store.is_after(position, end):
            return None
    except StoreConfigurationError as error:
        return Mismatch(str(error), True)
    return Mismatch(f"it is at {position}, and this event store ends at {end or 'its beginning'}", False)


class Recognition:
    """Keeps a follower from a checkpoint that is another store's. ``whose``: the follower's; ``remedy``: what to do if this store is the right one."""

    def __init__(self, whose: str, remedy: str, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._whose = whose
        self._remedy = remedy
        self._sleep = sleep
        self._looks = 0
        self.problem: str | None = None
        """What is wrong, and what to do; None if nothing is known to be."""

    async def passes(self, anchor: Anchor | None, store: EventStore, position: str | None = None) -> bool:
        """Whether to go on with the checkpoint; if not, load it again: by now it may be another one. As ``mismatch``."""
        found = await mismatch(store, anchor, position)
        if found is None:
            if self.problem is not None:
                log.info("the checkpoint is this event store's", follower=self._whose)
            self._looks, self.problem = 0, None
            return True
        self._looks += 1
        if found.is_certain or self._looks >= MISSING_LOOKS:
            before = self.problem
            self.problem = f"{elsewhere(self._whose, found)}; {or_else(self._remedy)}"
            if before != self.problem:
                log.error("nothing is followed", follower=self._whose, cause=self.problem)
        await self._sleep(1.0 if self.problem is None else LOOKS_AGAIN)
        return False


def elsewhere(whose: str, found: Mismatch) -> str:
    """What is wrong."""
    return f"the checkpoint of {whose} is another event store's: {found.reason}"


def or_else(remedy: str) -> str:
    """What to do about it."""
    return f"configure the event store that it was saved with; or, if this is the right one, restored from a backup, {remedy}"
