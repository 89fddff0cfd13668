"""The embedded event store: one SQLite file, written by one thread of each process that uses it.

Appends that arrive together share a transaction and its fsync (group commit). SQLite lets one writer in at a
time, over all processes, so positions become visible in the order they are given out, and a reader that has
seen a position has seen all before it.
"""

import asyncio
import contextlib
import copy
import errno
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    Checkpoint,
    EventStore,
    NewEvent,
    StoreConfigurationError,
    StoredEvent,
    StoreUnavailableError,
    StreamNotFoundError,
    WrongExpectedVersionError,
    check_append,
)
from cml_workers.foundation.private_file import make_private
from cml_workers.foundation.sqlite_files import write_ahead

BUSY_SECONDS = 5.0
"""How long to wait for another process that is writing."""
POLL_SECONDS = 0.05
"""How often followers look for what other processes have written; our own appends wake them at once."""
MAX_BATCH = 500
"""Appends in one transaction."""
SCAN = 1_000
"""Positions a follower reads at a time."""
CHECKPOINT_EVERY = 200
"""Positions without a matching event after which a follower is given a checkpoint."""
READERS = 4

_APPLICATION = 0x434D4C45  # "CMLE", in the file's header
_FORMAT = 1
_T = TypeVar("_T")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# AUTOINCREMENT: without it the highest position would be given out again after a deletion.
_SCHEMA = f"""
CREATE TABLE events (
    position    INTEGER PRIMARY KEY AUTOINCREMENT,
    stream      TEXT NOT NULL,
    revision    INTEGER NOT NULL,
    event_id    BLOB NOT NULL,
    type        TEXT NOT NULL,
    data        BLOB NOT NULL,
    metadata    BLOB NOT NULL,
    recorded_at INTEGER NOT NULL,  -- microseconds since 1970, UTC
    UNIQUE (stream, revision)
) STRICT;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
"""
_COLUMNS = "event_id, type, data, metadata, stream, revision, position, recorded_at"


@dataclass(frozen=True, slots=True)
class _Append:
    stream: str
    events: tuple[NewEvent, ...]
    expected: int
    answer: asyncio.Future[int]


class SqliteEventStore(EventStore):
    """An event store in the file ``path``; it and its folder are made at the first use.

    Any number of processes may share the file, on a local disk. Every method raises
    StoreConfigurationError where the file cannot be used (not ours, damaged, not permitted) and
    StoreUnavailableError where it cannot be used now (locked, disk full) or the store has been closed.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path).absolute()
        self._appends: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._watcher: threading.Thread | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="event-store-reader")
        self._idle: list[sqlite3.Connection] = []
        self._followers: set[asyncio.Event] = set()
        self._closing = threading.Event()

    async def append(self, stream: str, events: Sequence[NewEvent], *, expected: int) -> int:
        check_append(stream, events, expected)
        self._refuse_if_closed()
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="event-store-writer", daemon=True)
            self._writer.start()
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._appends.put(_Append(stream, tuple(events), expected, answer))
        return await answer

    async def read(
        self, stream: str, *, after: int = NO_STREAM, limit: int | None = None
    ) -> list[StoredEvent]:
        if limit is not None and limit < 1:
            raise ValueError(f"limit {limit} is below 1")

        def select(connection: sqlite3.Connection) -> list[StoredEvent]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM events WHERE stream = ? AND revision > ? ORDER BY revision LIMIT ?",  # noqa: S608 - constant columns
                (stream, after, -1 if limit is None else limit),
            ).fetchall()
            if not rows and _head(connection, stream) == NO_STREAM:
                raise StreamNotFoundError(stream)
            return [_stored(row) for row in rows]

        return await self._reading(select)

    async def follow(
        self, *, after: str | None, prefix: str = ""
    ) -> AsyncGenerator[StoredEvent | Checkpoint | CaughtUp, None]:
        if self._closing.is_set():
            return
        position = await self._reading(lambda connection: self._place(connection, after))
        told, behind = position, True
        wake = asyncio.Event()
        self._followers.add(wake)
        self._watch_other_processes()
        try:
            while not self._closing.is_set():
                wake.clear()
                events, position, head = await self._reading(
                    partial(_scan, after=position, prefix=prefix.encode())
                )
                for event in events:
                    yield event
                    told = int(event.position)
                if position - told >= CHECKPOINT_EVERY:
                    yield Checkpoint(str(position))
                    told = position
                if position < head:
                    behind = True
                    continue
                if behind:
                    yield CaughtUp()
                    behind = False
                await wake.wait()
        finally:
            self._followers.discard(wake)

    async def ping(self) -> None:
        await self._reading(lambda connection: connection.execute("SELECT 1 FROM events LIMIT 1").fetchone())

    async def close(self) -> None:
        """Commit what was handed over, then release threads and files; followers end."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake()
        self._appends.put(None)
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        for thread in (self._writer, self._watcher):
            if thread is not None:
                thread.join()
        self._readers.shutdown()
        while self._idle:
            self._idle.pop().close()

    def _refuse_if_closed(self) -> None:
        if self._closing.is_set():
            raise StoreUnavailableError(f"the event store {self._path} is closed")

    # Writing: the writer's thread.

    def _write(self) -> None:
        with contextlib.ExitStack() as opened:
            connection: sqlite3.Connection | None = None
            while batch := self._next_batch():
                outcomes: Sequence[int | Exception]
                try:
                    with self._explained():
                        connection = connection or opened.enter_context(contextlib.closing(self._connect()))
                        outcomes = _commit(connection, batch)
                except Exception as error:  # noqa: BLE001 - a dead thread would leave every caller waiting
                    opened.close()
                    connection = None
                    outcomes = [copy.copy(error) for _ in batch]
                with contextlib.suppress(RuntimeError):  # the loop is gone, and the callers with it
                    batch[0].answer.get_loop().call_soon_threadsafe(self._answer, batch, outcomes)

    def _next_batch(self) -> list[_Append]:
        """What waits to be appended, at least one; [] when the store is closed and all is done."""
        batch: list[_Append] = []
        with contextlib.suppress(queue.Empty):
            while len(batch) < MAX_BATCH:
                waiting = self._appends.get(block=not batch)
                if waiting is None:
                    self._appends.put(None)
                    break
                batch.append(waiting)
        return batch

    def _answer(self, batch: Sequence[_Append], outcomes: Sequence[int | Exception]) -> None:
        for append, outcome in zip(batch, outcomes, strict=True):
            if append.answer.done():  # cancelled by its caller
                continue
            if isinstance(outcome, Exception):
                append.answer.set_exception(outcome)
            else:
                append.answer.set_result(outcome)
        self._wake()

    # Following.

    def _wake(self) -> None:
        for follower in self._followers:
            follower.set()

    def _watch_other_processes(self) -> None:
        if self._watcher is None:
            loop = asyncio.get_running_loop()
            self._watcher = threading.Thread(
                target=self._watch, args=(loop,), name="event-store-watcher", daemon=True
            )
            self._watcher.start()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._closing.wait(POLL_SECONDS):
            # An error here is met by the followers as well, who report it.
            with (
                contextlib.suppress(StoreUnavailableError, StoreConfigurationError),
                self._explained(),
                contextlib.closing(self._connect()) as connection,
            ):
                seen = None
                while not self._closing.wait(POLL_SECONDS):
                    if (version := connection.execute("PRAGMA data_version").fetchone()) != seen:
                        seen = version
                        try:
                            loop.call_soon_threadsafe(self._wake)
                        except RuntimeError:  # the loop is gone
                            return

    # Reading: any of the readers' threads.

    async def _reading(self, job: Callable[[sqlite3.Connection], _T]) -> _T:
        self._refuse_if_closed()
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._with_connection, job)

    def _with_connection(self, job: Callable[[sqlite3.Connection], _T]) -> _T:
        with self._explained():
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            try:
                return job(connection)
            finally:
                self._idle.append(connection)

    def _place(self, connection: sqlite3.Connection, position: str | None) -> int:
        """The number behind an opaque position, if it can be one of this file's."""
        if position is None:
            return 0
        number = int(position) if position.isascii() and position.isdigit() else None
        if number is None or number > _last_position(connection):
            raise StoreConfigurationError(
                f"position {position!r} is not one of {self._path}: the checkpoint was saved with another "
                "event store; put that store back, or rebuild what was derived from it"
            )
        return number

    # The file.

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(self._path)
        connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        with _transaction(connection, "DEFERRED"):  # one view of a file that another may be preparing
            empty = self._format(connection) is None
        if empty:
            write_ahead(connection, BUSY_SECONDS)
            with _transaction(connection):
                if self._format(connection) is None:  # nobody was faster
                    for statement in _SCHEMA.split(";\n"):
                        connection.execute(statement)
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        if mode != "wal":
            raise StoreConfigurationError(
                f"{self._path} is in journal mode {mode}, not WAL: use a local disk"
            )
        connection.execute("PRAGMA synchronous = FULL")

    def _format(self, connection: sqlite3.Connection) -> int | None:
        """The version of the file's tables; None if it has none yet."""
        [application] = connection.execute("PRAGMA application_id").fetchone()
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if application == _APPLICATION and version == _FORMAT:
            return _FORMAT
        if application == _APPLICATION:
            raise StoreConfigurationError(
                f"{self._path} has format {version}, not {_FORMAT}: use a newer version of this program"
            )
        if application or version or connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
            raise StoreConfigurationError(
                f"{self._path} is a database of another application: choose another file"
            )
        return None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of SQLite and of the file system, as the port's."""
        try:
            yield
        except sqlite3.ProgrammingError:  # a bug, to be seen as one
            raise
        except sqlite3.Error as error:
            raise self._meaning(error) from error
        except StoreUnavailableError:
            raise
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE}:
                raise StoreUnavailableError(f"cannot open the event store {self._path}: {error}") from error
            raise StoreConfigurationError(f"cannot open the event store {self._path}: {error}") from error

    def _meaning(self, error: sqlite3.Error) -> StoreUnavailableError | StoreConfigurationError:
        match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:  # less the extended code
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return StoreUnavailableError(f"another process keeps the event store {self._path} locked")
            case sqlite3.SQLITE_FULL:
                return StoreUnavailableError(f"no space left for the event store {self._path}")
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                return StoreConfigurationError(
                    f"{self._path} is damaged or no SQLite file ({error}): restore it from a backup"
                )
            case (
                sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH
            ):
                return StoreConfigurationError(
                    f"no permission to read and write the event store {self._path} and its folder ({error})"
                )
            case _:
                return StoreUnavailableError(f"the event store {self._path} failed: {error}")


def _commit(
    connection: sqlite3.Connection, batch: Iterable[_Append]
) -> list[int | WrongExpectedVersionError]:
    """Append the batch in one transaction: the last revision of each append, or its conflict.

    A conflict is known before anything is written for it, so it needs no rollback.
    """
    # A deferred transaction that reads before it writes fails with BUSY_SNAPSHOT under contention.
    with _transaction(connection):
        return [_insert(connection, append) for append in batch]


def _insert(connection: sqlite3.Connection, append: _Append) -> int | WrongExpectedVersionError:
    head = _head(connection, append.stream)
    last = append.expected + len(append.events)
    if head != append.expected:
        stored = connection.execute(
            "SELECT event_id FROM events WHERE stream = ? AND revision BETWEEN ? AND ? ORDER BY revision",
            (append.stream, append.expected + 1, last),
        ).fetchall()
        if [event_id for [event_id] in stored] == [event.event_id.bytes for event in append.events]:
            return last
        return WrongExpectedVersionError(
            f"{append.stream} is at revision {head}, expected was {append.expected}"
        )
    now = time.time_ns() // 1_000
    connection.executemany(
        "INSERT INTO events (stream, revision, event_id, type, data, metadata, recorded_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (append.stream, revision, event.event_id.bytes, event.type, event.data, event.metadata, now)
            for revision, event in enumerate(append.events, start=head + 1)
        ],
    )
    return last


def _head(connection: sqlite3.Connection, stream: str) -> int:
    [head] = connection.execute("SELECT max(revision) FROM events WHERE stream = ?", (stream,)).fetchone()
    return NO_STREAM if head is None else int(head)


def _last_position(connection: sqlite3.Connection) -> int:
    [last] = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()
    return int(last)


def _scan(connection: sqlite3.Connection, *, after: int, prefix: bytes) -> tuple[list[StoredEvent], int, int]:
    """The matching events behind ``after``, the position looked at so far, and the last position there is."""
    head = _last_position(connection)
    upto = min(head, after + SCAN)
    rows = connection.execute(
        # Compared as bytes: LIKE gives % and _ a meaning, and substr() of a text stops at NUL.
        f"SELECT {_COLUMNS} FROM events WHERE position > ? AND position <= ?"  # noqa: S608 - constant columns
        " AND substr(CAST(stream AS BLOB), 1, ?) = ? ORDER BY position",
        (after, upto, len(prefix), prefix),
    )
    return [_stored(row) for row in rows], upto, head


def _stored(row: tuple[Any, ...]) -> StoredEvent:
    event_id, type_, data, metadata, stream, revision, position, recorded_at = row
    return StoredEvent(
        event_id=UUID(bytes=event_id),
        type=type_,
        data=data,
        metadata=metadata,
        stream=stream,
        revision=revision,
        position=str(position),
        recorded_at=_EPOCH + timedelta(microseconds=recorded_at),
    )


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    with connection:  # commits, or rolls back
        yield
