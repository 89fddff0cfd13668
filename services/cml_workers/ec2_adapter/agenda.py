"""What is to be done later, in memory: lost with the process, as the stream and reminders bring it back."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from cml_workers.ec2_adapter.retry_policy import pause
from cml_workers.foundation.ids import apart
from cml_workers.foundation.tasks import ended

K = TypeVar("K", bound=Hashable)


@dataclass(eq=False, slots=True)
class _Timer:
    due: float
    task: "asyncio.Task[None]"


class Agenda(Generic[K]):
    """Calls ``ring`` for each key when it is due, once, on a task of its own; an earlier time replaces a later one.

    An error of ``ring`` is reported to the event loop, and it is rung again.
    """

    def __init__(
        self,
        ring: Callable[[K], Awaitable[None]],
        *,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]],
        random: Callable[[], float],
    ) -> None:
        self._ring = ring
        self._now = now
        self._sleep = sleep
        self._random = random
        self._timers: dict[K, _Timer] = {}
        self._tried: dict[K, int] = {}
        self._running: set[asyncio.Task[None]] = set()

    def again(self, key: K) -> datetime:
        """Ring after a pause, which grows from time to time until ``done``; when that will be."""
        tried = self._tried.get(key, 0)
        self._tried[key] = tried + 1
        return self.ring_in(key, pause(tried, self._random()))

    def done(self, key: K) -> None:
        """Do not ring, and begin with short pauses the next time."""
        self._tried.pop(key, None)
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.task.cancel()

    def ring_in(self, key: K, seconds: float) -> datetime:
        """Ring after so many seconds, or earlier if that is due already; when that will be."""
        due = self._now().timestamp() + seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.due <= due:
                return datetime.fromtimestamp(timer.due, UTC)
            timer.task.cancel()
        task = asyncio.get_running_loop().create_task(self._later(key, seconds), context=apart())
        self._timers[key] = _Timer(due, task)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return datetime.fromtimestamp(due, UTC)

    def clear(self) -> None:
        """Forget everything that is not rung yet."""
        for timer in self._timers.values():
            timer.task.cancel()
        self._timers.clear()
        self._tried.clear()

    async def close(self) -> None:
        """End what is under way, too."""
        self.clear()
        for task in list(self._running):
            await ended(task)

    @property
    def keys(self) -> Sequence[K]:
        """What is on it."""
        return list(self._timers)

    async def _later(self, key: K, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)
        self._timers.pop(key, None)  # from here on it is not cancelled
        try:
            await self._ring(key)
        except ConnectionError:
            self.again(key)  # a part is unavailable, which the port has logged
        except Exception as error:  # noqa: BLE001 - nobody awaits this task
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"{key} on the agenda failed", "exception": error}
            )
            self.again(key)
