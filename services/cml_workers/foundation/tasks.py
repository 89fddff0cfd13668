"""Tasks that are cancelled until they have ended."""

import asyncio
import contextlib
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
