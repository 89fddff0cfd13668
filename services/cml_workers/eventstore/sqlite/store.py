"""The embedded event store: one SQLite file, written by one thread of each process that uses it.

SQLite lets one writer in at a time, over all processes, so positions become visible in the order they are given out,
and a reader that has seen a position has seen all before it.
"""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    Checkpoint,
    EventStore,
    NewEvent,
    StoreConfigurationError,
    StoredEvent,
    StoreUnavailableError,
    check_append,
    check_trim,
)
from cml_workers.eventstore.sqlite.file import EventFile, atomic
from cml_workers.eventstore.sqlite.statements import (
    StreamAppend,
    last_position,
    scan,
    select,
    select_last,
    trim,
)
from cml_workers.eventstore.sqlite.watcher import Watcher
from cml_workers.eventstore.sqlite.writer import EventWriter

CHECKPOINT_EVERY = 200
"""Positions without a matching event after which a follower is given a checkpoint."""
READER_THREADS = 4

_T = TypeVar("_T")


class SqliteEventStore(EventStore):
    """An event store in the file ``path``; it and its folder are made at the first use.

    Any number of processes may share the file, on a local disk. Every method raises
    StoreConfigurationError where the file cannot be used (not ours, damaged, not permitted) and
    StoreUnavailableError where it cannot be used now (locked, disk full) or the store has been closed.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = EventFile(Path(path).absolute())
        self._writer = EventWriter(self._file, self._notify_followers)
        self._watcher = Watcher(self._file, self._notify_followers)
        self._readers = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="event-store-reader")
        self._idle: list[sqlite3.Connection] = []
        self._followers: set[asyncio.Event] = set()
        self._closed = False

    async def append(self, stream: str, events: Sequence[NewEvent], *, expected: int) -> int:
        check_append(stream, events, expected)
        self._check_open()
        return await self._writer.append(StreamAppend(stream, tuple(events), expected))

    async def read(
        self, stream: str, *, after: int = NO_STREAM, limit: int | None = None
    ) -> list[StoredEvent]:
        if limit is not None and limit < 1:
            raise ValueError(f"limit {limit} is below 1")
        return await self._reading(partial(select, stream=stream, after=after, limit=limit))

    async def last(self, stream: str) -> StoredEvent:
        return await self._reading(partial(select_last, stream=stream))

    async def trim(self, stream: str, keep: int) -> None:
        check_trim(keep)

        def work(connection: sqlite3.Connection) -> None:
            with atomic(connection):
                trim(connection, stream, keep)

        await self._reading(work)

    async def follow(
        self, *, after: str | None, prefix: str = ""
    ) -> AsyncGenerator[StoredEvent | Checkpoint | CaughtUp, None]:
        if self._closed:
            return
        position = await self._reading(partial(self._place, position=after))
        delivered, behind = position, True
        news = asyncio.Event()
        self._followers.add(news)
        self._watcher.start()
        try:
            while not self._closed:
                news.clear()
                events, position, last = await self._reading(
                    partial(scan, after=position, prefix=prefix.encode())
                )
                for event in events:
                    yield event
                    delivered = int(event.position)
                if position - delivered >= CHECKPOINT_EVERY:
                    yield Checkpoint(str(position))
                    delivered = position
                if position < last:
                    behind = True
                    continue
                if behind:
                    yield CaughtUp()
                    behind = False
                await news.wait()
        finally:
            self._followers.discard(news)

    async def end(self) -> str | None:
        return str(await self._reading(last_position) or "") or None

    def is_after(self, position: str, other: str) -> bool:
        return self._number(position) > self._number(other)

    async def ping(self) -> None:
        await self._reading(lambda connection: connection.execute("SELECT 1 FROM events LIMIT 1").fetchone())

    async def close(self) -> None:
        """Commit what was handed over, then release threads and files; followers end."""
        if self._closed:
            return
        self._closed = True
        self._notify_followers()
        self._writer.close()
        self._watcher.close()
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        self._writer.join()
        self._watcher.join()
        self._readers.shutdown()
        while self._idle:
            self._idle.pop().close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError(f"the event store {self._file.path} is closed")

    def _notify_followers(self) -> None:
        for news in self._followers:
            news.set()

    async def _reading(self, job: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do the job in one of the readers' threads."""
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._with_connection, job)

    def _with_connection(self, job: Callable[[sqlite3.Connection], _T]) -> _T:
        with self._file.explained():
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._file.connect()
            try:
                return job(connection)
            finally:
                self._idle.append(connection)

    def _place(self, connection: sqlite3.Connection, position: str | None) -> int:
        """The number behind a position, if it can be one of this file's."""
        number = 0 if position is None else self._number(position)
        if number > last_position(connection):
            raise self._elsewhere(position)
        return number

    def _number(self, position: str) -> int:
        if position.isascii() and position.isdigit():
            return int(position)
        raise self._elsewhere(position)

    def _elsewhere(self, position: str | None) -> StoreConfigurationError:
        return StoreConfigurationError(
            f"position {position!r} is not one of {self._file.path}: the checkpoint was saved with another "
            "event store; put that store back, or rebuild what was derived from it"
        )
