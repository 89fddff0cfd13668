"""How a process ends: cleanly, when a signal asks for it or its work is over; but it ends."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CoroutineType
from typing import Any

import structlog

log = structlog.get_logger(__name__)

ENDING = 20.0
"""Seconds in which a process ends cleanly, from the signal on, and again from the end of its work. Then it is aborted: the next one
goes on as after any crash."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGINT or SIGTERM ends what runs within, also while it still starts; a second one adds nothing.

    What runs within is the work of the process. However that ends, the process does within ``ENDING`` seconds: a task of a library
    may not let itself be cancelled (aio-pika's that restores a connection), and would go on taking messages.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - we are in a coroutine
    loop = asyncio.get_running_loop()
    received = False

    def end() -> None:
        nonlocal received
        if not received:
            received = True
            task.cancel()
            loop.call_later(ENDING, _abort, None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        yield
    except asyncio.CancelledError:
        if not received:
            raise
        task.uncancel()
    finally:
        loop.call_later(ENDING, _abort, sys.exception())


def _abort(cause: BaseException | None) -> None:
    """``cause``: why the work was over, where it failed."""
    stuck = [_place(task) for task in asyncio.all_tasks()]
    log.error("did not end cleanly", seconds=ENDING, cause=cause and str(cause), stuck=stuck)
    os._exit(1)


def _place(task: asyncio.Task[Any]) -> str:
    """Where in its innermost coroutine the task waits."""
    waiting: Any = task.get_coro()
    while isinstance(inner := getattr(waiting, "cr_await", None), CoroutineType):
        waiting = inner
    frame = getattr(waiting, "cr_frame", None)
    return f"{task.get_name()} at {frame.f_code.co_filename}:{frame.f_lineno}" if frame else task.get_name()
