"""A clock that is paused until a test moves it: who sleeps by it goes on at the very moment it asked for."""

import asyncio
import heapq
from collections.abc import Awaitable
from datetime import datetime, timedelta
from itertools import count
from typing import Protocol, TypeVar

T = TypeVar("T")
ROUNDS = 50
"""Turns of the event loop in which whoever is not waiting for the clock or for a thread comes to an end."""


class Busy(Protocol):
    """A part with threads of its own; ``busy``: how many calls of it are under way."""

    busy: int


class StillClock:
    """``now`` and ``sleep`` as handlers take them."""

    def __init__(self, at: datetime, *parts: Busy) -> None:
        self.at = at
        self._parts = parts
        self._sleepers: list[tuple[datetime, int, asyncio.Future[None]]] = []
        self._numbers = count()

    def now(self) -> datetime:
        return self.at

    async def sleep(self, seconds: float) -> None:
        due_now = asyncio.get_running_loop().create_future()
        due = self.at + timedelta(seconds=seconds)
        heapq.heappush(self._sleepers, (due, next(self._numbers), due_now))
        await due_now

    async def passes(self, seconds: float) -> None:
        """Time passes, and whatever is due happens in its order."""
        until = self.at + timedelta(seconds=seconds)
        await self._settled()
        while self._sleepers and self._sleepers[0][0] <= until:
            await self._next()
        self.at = until

    async def until_done(self, work: Awaitable[T]) -> T:
        """Time passes until this is done."""
        task = asyncio.ensure_future(_awaited(work))
        await self._settled()
        while not task.done():
            assert self._sleepers, "it waits, and not for the clock"
            await self._next()
        return await task

    async def _next(self) -> None:
        due, _, due_now = heapq.heappop(self._sleepers)
        if not due_now.done():  # nor cancelled
            self.at = max(self.at, due)
            due_now.set_result(None)
            await self._settled()

    async def _settled(self) -> None:
        """Until everybody waits for the clock."""
        idle = 0
        while idle < ROUNDS:
            busy = any(part.busy for part in self._parts)
            await asyncio.sleep(0.0002 if busy else 0)
            idle = 0 if busy else idle + 1


async def _awaited(work: Awaitable[T]) -> T:
    return await work
