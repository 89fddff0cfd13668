"""Following the event store for as long as the process lives, whatever happens to the connection."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from cml_workers.eventstore.gaps import Gaps
from cml_workers.eventstore.port import (
    CaughtUp,
    Checkpoint,
    EventStore,
    Item,
    StoredEvent,
)
from cml_workers.foundation.outages import NO_OUTAGES, Outages
from cml_workers.foundation.tasks import ended

log = structlog.get_logger(__name__)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
"""Seconds before following again, after the first failure and after many."""
MOST = 200
"""Items that are handed over together."""
QUIET = 15.0
"""Seconds without an item after which the store is followed again, from the last one: it says whether that is the end, and a
subscription that is silent though there are events is over."""
MOST_PATIENCE = 4
"""How many times as long it may take at most where the one before it brought nothing either."""


@dataclass(slots=True)
class Following:
    """How far a follower has come, for readiness and lag."""

    position: str | None = None
    """The last one handled."""
    last_event_at: datetime | None = None
    """When the last event handled was recorded, UTC."""
    caught_up: bool = False
    """Nothing was left to handle, and the connection has held since."""
    attempts: int = 0
    """Failures in a row; 0 while items arrive."""
    moved_at: float | None = field(default=None, compare=False)
    """When it last handled an item, or began; by the clock of the event loop."""
    event_at: float | None = field(default=None, compare=False)
    """When it handled the last event, if that was not the end then; likewise."""


def backoff(attempt: int, *, spread: Callable[[], float] = random.random) -> float:
    """Seconds to wait after failure ``attempt`` in a row, from 1: doubling, capped, half of it jitter."""
    pause = min(FIRST_PAUSE * 2.0 ** min(attempt - 1, 30), LONGEST_PAUSE)
    return pause * (0.5 + 0.5 * spread())


async def follow_from(
    store: EventStore,
    saved: Callable[[], Awaitable[str | None]],
    handle: Callable[[Sequence[Item]], Awaitable[None]],
    *,
    prefix: str = "",
    most: int = MOST,
    whole: bool = True,
    following: Following | None = None,
    outages: Outages = NO_OUTAGES,
    quiet: float = QUIET,
    backoff: Callable[[int], float] = backoff,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Hand every item behind the ``saved`` position to ``handle``; return when the store is closed.

    Whatever is at hand when ``handle`` returns is handed over together, at most ``most`` items and what the store
    has left out before them, unless ``whole`` is false: one at a time while little happens, many while it catches up.
    ``saved`` is asked again after each failure, so what was handled but not saved is handled again. An outage of the store, or of
    what ``handle`` needs, is waited for; after other failures there is a pause.

    Raises:
        StoreConfigurationError: trying again is of no use.
        Exception: whatever ``saved`` and ``handle`` raise, but for a ConnectionError (the store or what
            ``handle`` writes to does not answer), after which we follow again.
    """
    following = following or Following()
    following.moved_at = _now()
    while True:
        try:
            after = await saved()
            gaps = Gaps(store, after) if whole else None
            async with aclosing(_at_hand(store, after, prefix, most, quiet)) as batches:
                async for batch in batches:
                    items = batch if gaps is None else await gaps.filled(batch)
                    await handle(items)
                    for item in items:
                        _advance(following, item)
            return
        except ConnectionError as error:
            following.caught_up = False
            if await outages.waited_out(error):
                continue
            following.attempts += 1
            pause = backoff(following.attempts)
            log.warning(
                "following the event store again", cause=str(error), attempt=following.attempts, seconds=pause
            )
        await sleep(pause)


async def _at_hand(
    store: EventStore, after: str | None, prefix: str, most: int, quiet: float
) -> AsyncGenerator[list[Item], None]:
    """Read ahead, and deliver what has come since the last batch; what came before an error is delivered first."""
    arrived: asyncio.Queue[Item | None] = asyncio.Queue(most)
    position = after

    async def read() -> None:
        nonlocal position
        try:
            async with aclosing(store.follow(after=position, prefix=prefix)) as items:
                async for item in items:
                    await arrived.put(item)
                    position = position if isinstance(item, CaughtUp) else item.position
        finally:
            if not arrived.full():
                arrived.put_nowait(None)  # whoever waits goes on; where it is full nobody waits

    reading = asyncio.create_task(read(), name=f"reads {prefix}")
    patience = quiet
    try:
        while True:
            if arrived.empty() and reading.done():
                reading.result()
                return
            try:
                async with asyncio.timeout(patience if arrived.empty() else None):
                    batch = [await arrived.get()]
            except TimeoutError:
                await ended(reading)
                reading = asyncio.create_task(read(), name=f"reads {prefix}")
                patience = min(patience * 2, quiet * MOST_PATIENCE)  # a slow server may need longer
                continue
            while len(batch) < most and not arrived.empty():
                batch.append(arrived.get_nowait())
            items = [item for item in batch if item is not None]
            if items:
                patience = quiet
                yield items
    finally:
        await ended(reading)


def _advance(following: Following, item: Item) -> None:
    following.attempts = 0
    following.moved_at = _now()
    match item:
        case StoredEvent():
            following.position = item.position
            following.last_event_at = item.recorded_at
            following.event_at = following.moved_at
        case Checkpoint(position):
            following.position = position
        case CaughtUp():
            following.caught_up = True
            following.event_at = None


def _now() -> float:
    return asyncio.get_running_loop().time()
