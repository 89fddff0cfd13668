"""Visits to workers: what is done for a worker happens apart from the messages that ask for it, one visit after another.

A message asks for a visit, and waits for its end only where its region has a place for that: it was prefetched, and what
a region that hangs holds back is missing to all others.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from uuid import UUID

from cml_workers.foundation.tasks import ended

NO_REVISION = -1
"""Before every event of a worker."""


class Places:
    """Which messages may wait here, of those that the broker hands out at once.

    A region takes a place only while fewer are its own than are free: it has half of them at most, the next one half of what is
    left. However many regions hang, there are places for those that do not.
    """

    def __init__(self, number: int) -> None:
        self._free = number
        self._taken: Counter[str] = Counter()

    @contextmanager
    def held(self, region: str) -> Iterator[bool]:
        """A place for a message of the region, if there is one for it."""
        has_place = self._taken[region] < self._free
        if not has_place:
            yield False
            return
        self._taken[region] += 1
        self._free -= 1
        try:
            yield True
        finally:
            self._taken[region] -= 1
            self._free += 1


@dataclass(eq=False, slots=True)
class Visit:
    """What a worker is visited for, by all who asked before it began; then, what came of it.

    ``upto``: the newest event that a message names. ``suspect``: another process may have had a message. ``remind``: a report may
    have been lost. ``rechecks``: since when the instance is to be rechecked, and whether that is done.

    ``revision``: the last event that was read. ``waits``: an operation waits. ``messages``: how many wait for its end.
    """

    worker_id: UUID
    context: Context
    upto: int = NO_REVISION
    suspect: bool = False
    remind: bool = False
    rechecks: dict[datetime, bool] = field(default_factory=dict)
    revision: int = NO_REVISION
    waits: bool = False
    messages: int = 0
    ended: "asyncio.Future[bool]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def is_asked_by_message(self) -> bool:
        """Whether a message asks for it, and not only what is known here."""
        return self.remind or self.upto != NO_REVISION or bool(self.rechecks)

    async def end(self) -> bool:
        """For a message that waits: whether it took place. Raises what it raised."""
        self.messages += 1
        return await asyncio.shield(self.ended)


class Visits:
    """At most one visit to a worker is under way, and at most one waits for its end: whoever asks meanwhile joins that.

    Visits to different workers wait for one another nowhere but at EC2, and there only within a region.
    """

    def __init__(
        self, visit: Callable[[Visit], Awaitable[None]], failed: Callable[[UUID, Exception], None]
    ) -> None:
        """``failed``: called with an error for which no message waits."""
        self._visit = visit
        self._failed = failed
        self._under_way: dict[UUID, asyncio.Task[bool]] = {}
        self._next: dict[UUID, Visit] = {}
        self._closed = False

    def ask(self, worker_id: UUID) -> Visit:
        """A visit that has not begun, and soon will."""
        visit = self._next.get(worker_id)
        if visit is None:
            visit = self._next[worker_id] = Visit(worker_id, copy_context())
            if self._closed:
                self.clear()
            elif worker_id not in self._under_way:
                self._begin(worker_id)
        return visit

    def __contains__(self, worker_id: UUID) -> bool:
        return worker_id in self._under_way

    @property
    def workers(self) -> Collection[UUID]:
        """Those that are visited, or will be."""
        return {*self._under_way, *self._next}

    def clear(self) -> None:
        """Forget what has not begun."""
        waiting, self._next = self._next, {}
        for visit in waiting.values():
            visit.ended.set_result(False)

    async def leave(self, within: float) -> None:
        """Begin no more visits, and give those that are under way so many seconds to end."""
        self._closed = True
        self.clear()
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=within)

    async def close(self) -> None:
        """End what is under way."""
        self._closed = True
        self.clear()
        for task in list(self._under_way.values()):
            await ended(task)

    def _begin(self, worker_id: UUID) -> None:
        visit = self._next[worker_id]
        task = asyncio.get_running_loop().create_task(self._carry_out(visit), context=visit.context)
        self._under_way[worker_id] = task
        task.add_done_callback(partial(self._over, visit))

    async def _carry_out(self, visit: Visit) -> bool:
        """Whether it took place."""
        if self._next.get(visit.worker_id) is not visit:
            return False  # forgotten meanwhile
        del self._next[visit.worker_id]
        await self._visit(visit)
        return True

    def _over(self, visit: Visit, task: "asyncio.Task[bool]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            if not visit.ended.done():
                visit.ended.set_result(not task.cancelled() and task.result())
        elif visit.messages:
            visit.ended.set_exception(error)
            visit.ended.exception()  # nobody waits any more if the connection is lost; then the message comes back
        elif isinstance(error, Exception):
            self._failed(visit.worker_id, error)
        del self._under_way[visit.worker_id]
        if visit.worker_id in self._next:
            self._begin(visit.worker_id)
