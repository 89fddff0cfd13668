"""What is under way to one exchange: of each worker in order, and no worker waits for another."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

import structlog

from cml_workers.bus.port import BusUnavailableError, Outgoing
from cml_workers.eventstore.port import StoredEvent
from cml_workers.eventstore.worker_streams import about_event
from cml_workers.foundation.tasks import Tasks

log = structlog.get_logger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a message that was not confirmed is published again, doubled each time."""
AT_ONCE = 300
"""Workers of whom something is sent at once for which there is room for more: the broker confirms many at a time, and more would only
make the lines longer in which they, and everybody else's messages, wait."""


@dataclass(order=True, frozen=True, slots=True)
class Entry:
    """An event as a message; ``number``: its place in the store's order; ``done``: call it when it is out or given up."""

    number: int
    event: StoredEvent = field(compare=False)
    message: Outgoing = field(compare=False)
    done: Callable[[], None] = field(compare=False)


class InOrder:
    """Sends the events of each worker one after another, and of all workers side by side.

    ``send`` returns when the next event of that worker may follow, and raises BusUnavailableError to have the same one again.
    """

    def __init__(
        self,
        send: Callable[[Entry], Awaitable[None]],
        *,
        tasks: Tasks,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._send = send
        self._tasks = tasks
        self._sleep = sleep
        self._waiting: dict[str, list[Entry]] = {}
        self._room = asyncio.Event()
        self.failing: str | None = None
        """Why the last try failed; None if it did not."""

    def put(self, entry: Entry) -> None:
        """Send it, behind what is before it in the store's order and is not sent yet."""
        stream = entry.event.stream
        if (waiting := self._waiting.get(stream)) is not None:
            heappush(waiting, entry)
        else:
            self._waiting[stream] = [entry]
            self._tasks.start(self._go(stream), f"publishes {stream}")

    async def room(self) -> None:
        """Wait until something is sent of fewer than ``AT_ONCE`` workers."""
        while len(self._waiting) >= AT_ONCE:
            self._room.clear()
            await self._room.wait()

    def clear(self) -> None:
        """Forget everything; the tasks have ended."""
        self._waiting.clear()
        self._room.set()

    async def _go(self, stream: str) -> None:
        waiting = self._waiting[stream]
        pause = FIRST_PAUSE
        while waiting:
            entry = heappop(waiting)
            try:
                await self._send(entry)
            except BusUnavailableError as error:
                heappush(waiting, entry)
                self.failing = str(error)
                log.warning(
                    "event not confirmed, trying again", **about_event(entry.event), cause=self.failing
                )
                await self._sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                self.failing, pause = None, FIRST_PAUSE
        del self._waiting[stream]
        self._room.set()
