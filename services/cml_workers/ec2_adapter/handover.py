"""What a leader forgets, whoever is the leader next is reminded of: it would wait for its messages otherwise."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from uuid import UUID

from cml_workers.bus.port import BusUnavailableError
from cml_workers.foundation.tasks import Tasks

AGAIN = 0.2
"""Seconds until a reminder that was not confirmed is published again."""


class Handover:
    """The workers that this process does nothing for any more, until a reminder of each is confirmed."""

    def __init__(
        self, remind: Callable[[UUID], Awaitable[None]], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._remind = remind
        self._sleep = sleep
        self._left: set[UUID] = set()
        self._tasks = Tasks(_failed)

    def add(self, workers: Iterable[UUID]) -> None:
        """They are left to the next leader."""
        self._left.update(workers)

    async def publish(self) -> None:
        """Remind of all of them. Raises BusUnavailableError; what is left then is not forgotten."""
        while self._left:
            worker_id = self._left.pop()
            try:
                await self._remind(worker_id)
            except BaseException:
                self._left.add(worker_id)
                raise

    def start(self) -> None:
        """Remind of all of them, however long it takes to publish that."""
        self._tasks.start(self._until_confirmed(), "reminders of what is handed over")

    async def close(self) -> None:
        """End what is under way."""
        await self._tasks.end()

    async def _until_confirmed(self) -> None:
        while self._left:
            with suppress(BusUnavailableError):
                await self.publish()
            if self._left:
                await self._sleep(AGAIN)  # a consumer is restored before the channel to publish by, for one


def _failed(error: BaseException) -> None:
    asyncio.get_running_loop().call_exception_handler(
        {"message": "a reminder of what is handed over failed", "exception": error}
    )
