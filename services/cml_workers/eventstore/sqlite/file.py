"""The file of an event store: its format, how it is opened, and what errors with it mean."""

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from cml_workers.eventstore.port import StoreConfigurationError, StoreUnavailableError
from cml_workers.foundation.private_file import make_private
from cml_workers.foundation.sqlite_files import write_ahead

BUSY_SECONDS = 5.0
"""How long to wait for another process that is writing."""

_APPLICATION = 0x434D4C45  # "CMLE", in the file's header
_FORMAT = 1

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


class EventFile:
    """The file at ``path``; it and its folder are made when it is opened first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def connect(self) -> sqlite3.Connection:
        """A new connection, ready to use. Raises what ``explained`` explains."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(self.path)
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raise errors of SQLite and of the file system as the port's."""
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
                raise StoreUnavailableError(f"cannot open the event store {self.path}: {error}") from error
            raise StoreConfigurationError(f"cannot open the event store {self.path}: {error}") from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        with atomic(connection, "DEFERRED"):  # one view of a file that another process may be preparing
            empty = self._format(connection) is None
        if empty:
            write_ahead(connection, BUSY_SECONDS)
            with atomic(connection):
                if self._format(connection) is None:  # no other process was faster
                    for statement in _SCHEMA.split(";\n"):
                        connection.execute(statement)
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        if mode != "wal":
            raise StoreConfigurationError(f"{self.path} is in journal mode {mode}, not WAL: use a local disk")
        connection.execute("PRAGMA synchronous = FULL")

    def _format(self, connection: sqlite3.Connection) -> int | None:
        """The version of the file's tables; None if it has none yet."""
        [application] = connection.execute("PRAGMA application_id").fetchone()
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if application == _APPLICATION and version == _FORMAT:
            return _FORMAT
        if application == _APPLICATION:
            raise StoreConfigurationError(
                f"{self.path} has format {version}, not {_FORMAT}: use a newer version of this program"
            )
        if application or version or connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
            raise StoreConfigurationError(
                f"{self.path} is a database of another application: choose another file"
            )
        return None

    def _meaning(self, error: sqlite3.Error) -> StoreUnavailableError | StoreConfigurationError:
        match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:  # less the extended code
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return StoreUnavailableError(f"another process keeps the event store {self.path} locked")
            case sqlite3.SQLITE_FULL:
                return StoreUnavailableError(f"no space left for the event store {self.path}")
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                return StoreConfigurationError(
                    f"{self.path} is damaged or no SQLite file ({error}): restore it from a backup"
                )
            case (
                sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH
            ):
                return StoreConfigurationError(
                    f"no permission to read and write the event store {self.path} and its folder ({error})"
                )
            case _:
                return StoreUnavailableError(f"the event store {self.path} failed: {error}")


@contextlib.contextmanager
def atomic(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """A transaction that is committed at the end, or rolled back."""
    connection.execute(f"BEGIN {kind}")
    with connection:
        yield
