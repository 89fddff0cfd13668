"""The one thread of a process that writes to the file.

Appends that arrive together share a transaction and its fsync (group commit).
"""

import asyncio
import contextlib
import copy
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence

from cml_workers.eventstore.sqlite.file import EventFile, atomic
from cml_workers.eventstore.sqlite.statements import StreamAppend, append_events

MAX_BATCH = 500
"""Appends in one transaction."""

_Waiting = tuple[StreamAppend, "asyncio.Future[int]"]


class EventWriter:
    """Writes from its first append until it is closed; ``committed`` is called in the loop after each batch."""

    def __init__(self, file: EventFile, committed: Callable[[], None]) -> None:
        self._file = file
        self._committed = committed
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def append(self, append: StreamAppend) -> int:
        """Hand an append over, and return the last revision when it is committed."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="event-store-writer", daemon=True)
            self._thread.start()
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.put((append, done))
        return await done

    def close(self) -> None:
        """Commit what was handed over, and end after it."""
        self._waiting.put(None)

    def join(self) -> None:
        """Return when the thread has ended."""
        if self._thread is not None:
            self._thread.join()

    def _write(self) -> None:
        with contextlib.ExitStack() as opened:
            connection: sqlite3.Connection | None = None
            while batch := self._next_batch():
                outcomes: Sequence[int | Exception]
                try:
                    with self._file.explained():
                        connection = connection or opened.enter_context(
                            contextlib.closing(self._file.connect())
                        )
                        # A deferred transaction that reads before it writes fails with BUSY_SNAPSHOT under contention.
                        with atomic(connection):
                            outcomes = [append_events(connection, append) for append, _ in batch]
                except Exception as error:  # noqa: BLE001 - a dead thread would leave every caller waiting
                    opened.close()
                    connection = None
                    outcomes = [copy.copy(error) for _ in batch]
                _, done = batch[0]
                with contextlib.suppress(RuntimeError):  # the loop is gone, and the callers with it
                    done.get_loop().call_soon_threadsafe(self._finish, batch, outcomes)

    def _next_batch(self) -> list[_Waiting]:
        """What waits to be appended, at least one; [] when the writer is closed and all is done."""
        batch: list[_Waiting] = []
        with contextlib.suppress(queue.Empty):
            while len(batch) < MAX_BATCH:
                waiting = self._waiting.get(block=not batch)
                if waiting is None:
                    self._waiting.put(None)
                    break
                batch.append(waiting)
        return batch

    def _finish(self, batch: Sequence[_Waiting], outcomes: Sequence[int | Exception]) -> None:
        for (_, done), outcome in zip(batch, outcomes, strict=True):
            if done.done():  # cancelled by its caller
                continue
            if isinstance(outcome, Exception):
                done.set_exception(outcome)
            else:
                done.set_result(outcome)
        self._committed()
