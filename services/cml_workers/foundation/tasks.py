"""Tasks that are cancelled until they have ended."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

CANCEL_AGAIN = 1.0
"""Seconds a task may take to clean up before it is taken for one that missed its cancellation."""


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel the task until it has ended, however it does.

    Once is not enough: before Python 3.12, ``asyncio.wait_for`` loses a cancellation that comes just as what it
    waits for is there (https://github.com/python/cpython/issues/86296), and the AMQP library waits with it.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=CANCEL_AGAIN)
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()


class Tasks:
    """Tasks of one owner, who ends them together. ``failed`` is called with what one of them raises."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def end(self) -> None:
        """Cancel all of them, and return when they have ended."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            for task in tasks:
                await ended(task)
                self._tasks.discard(task)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)
