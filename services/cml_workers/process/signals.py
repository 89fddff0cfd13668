"""How a process ends: cleanly, when a signal asks for it."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import CoroutineType
from typing import Any

import structlog

log = structlog.get_logger(__name__)

ENDING = 20.0
"""Seconds in which a process ends cleanly. Then it is aborted: the next one goes on as after any crash."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGINT or SIGTERM ends what runs within, also while it still starts; a second one adds nothing.

    Cleanly if that can be done within ``ENDING`` seconds.
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
            loop.call_later(ENDING, _abort)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        yield
    except asyncio.CancelledError:
        if not received:
            raise
        task.uncancel()


def _abort() -> None:
    log.error("did not end cleanly", seconds=ENDING, stuck=[_place(task) for task in asyncio.all_tasks()])
    os._exit(1)


def _place(task: asyncio.Task[Any]) -> str:
    """Where in its innermost coroutine the task waits."""
    waiting: Any = task.get_coro()
    while isinstance(inner := getattr(waiting, "cr_await", None), CoroutineType):
        waiting = inner
    frame = getattr(waiting, "cr_frame", None)
    return f"{task.get_name()} at {frame.f_code.co_filename}:{frame.f_lineno}" if frame else task.get_name()
