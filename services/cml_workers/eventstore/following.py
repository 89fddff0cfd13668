"""Following the event store for as long as the process lives, whatever happens to the connection."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

import structlog

from cml_workers.eventstore.port import (
    CaughtUp,
    Checkpoint,
    EventStore,
    StoredEvent,
)

log = structlog.get_logger(__name__)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 15.0
"""Seconds before following again, after the first failure and after many."""


@dataclass(slots=True)
class Following:
    """How far a follower has come: what readiness and lag are told by."""

    position: str | None = None
    """The last one handled."""
    last_event_at: datetime | None = None
    """When the last event handled was recorded, UTC."""
    caught_up: bool = False
    """Nothing was left to handle, and the connection has held since."""
    attempts: int = 0
    """Failures in a row; 0 while items arrive."""


def backoff(attempt: int, *, spread: Callable[[], float] = random.random) -> float:
    """Seconds to wait after failure ``attempt`` in a row, from 1: doubling, capped, half of it jitter."""
    pause = min(FIRST_PAUSE * 2.0 ** min(attempt - 1, 30), LONGEST_PAUSE)
    return pause * (0.5 + 0.5 * spread())


async def follow_from(
    store: EventStore,
    saved: Callable[[], Awaitable[str | None]],
    handle: Callable[[StoredEvent | Checkpoint | CaughtUp], Awaitable[None]],
    *,
    prefix: str = "",
    following: Following | None = None,
    backoff: Callable[[int], float] = backoff,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Hand every item behind the ``saved`` position to ``handle``; return when the store is closed.

    ``saved`` is asked again after each failure, so what was handled but not saved is handled again.

    Raises:
        StoreConfigurationError: trying again is of no use.
        Exception: whatever ``saved`` and ``handle`` raise, but for a ConnectionError (the store or what
            ``handle`` writes to does not answer), after which we follow again.
    """
    following = following or Following()
    while True:
        try:
            async with aclosing(store.follow(after=await saved(), prefix=prefix)) as items:
                async for item in items:
                    await handle(item)
                    _advance(following, item)
            return
        except ConnectionError as error:
            following.caught_up = False
            following.attempts += 1
            pause = backoff(following.attempts)
            log.warning(
                "following the event store again", cause=str(error), attempt=following.attempts, seconds=pause
            )
        await sleep(pause)


def _advance(following: Following, item: StoredEvent | Checkpoint | CaughtUp) -> None:
    following.attempts = 0
    match item:
        case StoredEvent():
            following.position = item.position
            following.last_event_at = item.recorded_at
        case Checkpoint(position):
            following.position = position
        case CaughtUp():
            following.caught_up = True
