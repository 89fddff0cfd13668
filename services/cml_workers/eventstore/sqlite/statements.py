"""What is read from the table of events and written to it, on a connection."""

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from cml_workers.eventstore.port import (
    NO_STREAM,
    NewEvent,
    StoredEvent,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)

SCAN = 1_000
"""Positions a follower reads at a time."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = "event_id, type, data, metadata, stream, revision, position, recorded_at"


@dataclass(frozen=True, slots=True)
class StreamAppend:
    """Events for one stream."""

    stream: str
    events: tuple[NewEvent, ...]
    expected: int


def append_events(connection: sqlite3.Connection, append: StreamAppend) -> int | WrongExpectedVersionError:
    """The last revision, or the conflict, which is known before anything is written: it needs no rollback."""
    current = head(connection, append.stream)
    last = append.expected + len(append.events)
    if current != append.expected:
        stored = connection.execute(
            "SELECT event_id FROM events WHERE stream = ? AND revision BETWEEN ? AND ? ORDER BY revision",
            (append.stream, append.expected + 1, last),
        ).fetchall()
        if [event_id for [event_id] in stored] == [event.event_id.bytes for event in append.events]:
            return last
        return WrongExpectedVersionError(
            f"{append.stream} is at revision {current}, expected was {append.expected}"
        )
    now = time.time_ns() // 1_000
    connection.executemany(
        "INSERT INTO events (stream, revision, event_id, type, data, metadata, recorded_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (append.stream, revision, event.event_id.bytes, event.type, event.data, event.metadata, now)
            for revision, event in enumerate(append.events, start=current + 1)
        ],
    )
    return last


def select(
    connection: sqlite3.Connection, stream: str, *, after: int, limit: int | None
) -> list[StoredEvent]:
    """The events of a stream. Raises StreamNotFoundError, StreamDeletedError."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM events WHERE stream = ? AND revision > ? ORDER BY revision LIMIT ?",  # noqa: S608 - constant columns
        (stream, after, -1 if limit is None else limit),
    ).fetchall()
    if not rows and head(connection, stream) == NO_STREAM:
        raise StreamNotFoundError(stream)
    found = [_stored(row) for row in rows]
    if found and found[0].revision > after + 1:
        raise StreamDeletedError(f"{stream} was trimmed; its first events are gone")
    return found


def select_last(connection: sqlite3.Connection, stream: str) -> StoredEvent:
    """The last event of a stream. Raises StreamNotFoundError."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM events WHERE stream = ? ORDER BY revision DESC LIMIT 1",  # noqa: S608 - constant columns
        (stream,),
    ).fetchone()
    if row is None:
        raise StreamNotFoundError(stream)
    return _stored(row)


def trim(connection: sqlite3.Connection, stream: str, keep: int) -> None:
    """Delete all but the last events of a stream."""
    connection.execute(
        "DELETE FROM events WHERE stream = ? AND revision <= ?", (stream, head(connection, stream) - keep)
    )


def scan(
    connection: sqlite3.Connection, *, after: int, prefix: bytes
) -> tuple[Sequence[StoredEvent], int, int]:
    """The matching events behind ``after``, the position looked at so far, and the last position there is."""
    last = last_position(connection)
    upto = min(last, after + SCAN)
    rows = connection.execute(
        # Compared as bytes: LIKE gives % and _ a meaning, and substr() of a text stops at NUL.
        f"SELECT {_COLUMNS} FROM events WHERE position > ? AND position <= ?"  # noqa: S608 - constant columns
        " AND substr(CAST(stream AS BLOB), 1, ?) = ? ORDER BY position",
        (after, upto, len(prefix), prefix),
    )
    return [_stored(row) for row in rows], upto, last


def head(connection: sqlite3.Connection, stream: str) -> int:
    """The revision of the stream's last event, or NO_STREAM."""
    [revision] = connection.execute("SELECT max(revision) FROM events WHERE stream = ?", (stream,)).fetchone()
    return NO_STREAM if revision is None else int(revision)


def last_position(connection: sqlite3.Connection) -> int:
    """The last position that was given out; 0 if there is none."""
    [last] = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()
    return int(last)


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
