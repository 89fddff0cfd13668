"""What every SQLite file of ours needs."""

import sqlite3
import time


def write_ahead(connection: sqlite3.Connection, seconds: float) -> None:
    """Let readers work beside a writer (WAL mode, which stays with the file).

    While another process is at the file, SQLite refuses that at once, not after the busy timeout: so this waits, at most
    ``seconds``. Raises sqlite3.OperationalError.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)
