"""A PostgreSQL of the tests' own that fails over: a primary that is lost with its last transactions, and a standby that takes its place."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from support.postgresql import NoPostgreSQLError, SpawnedPostgreSQL, private_postgresql
from support.servers import COMMAND_SECONDS, Harm

BEHIND_SECONDS = 1.0
"""How long the standby gets nothing before the primary is lost."""
STREAMING = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"


class PostgreSQLPair:
    """Both are at a port of their own, and the address names both, as documented. Whatever happens to the server happens to the primary.

    The standby is asynchronous. Who was lost comes back as a standby without any data of its own, never as a primary.
    """

    harms = frozenset[Harm]({"killed", "frozen", "failed over"})

    def __init__(self, primary: SpawnedPostgreSQL, standby: SpawnedPostgreSQL) -> None:
        self._primary, self._standby = primary, standby
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        self.url = f"postgresql://cml@{hosts}/postgres?target_session_attrs=read-write"
        self.lost_bytes = 0
        """Of transactions that were committed and that those who took over have not got."""

    def kill(self) -> None:
        self._primary.stop(signal.SIGKILL)

    def start(self) -> None:
        def started() -> bool:
            self._primary.start()
            return True

        _until(started)  # processes of the one that was killed may not have noticed yet

    def freeze(self) -> None:
        self._primary.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._primary.signal(signal.SIGCONT)

    def fail_over(self, meanwhile: Callable[[], object] = lambda: time.sleep(BEHIND_SECONDS)) -> None:
        """The standby gets nothing any more, then the primary is lost with what was committed ``meanwhile``."""
        self.stand_by()
        for sender in self._primary.children("walsender"):
            os.kill(sender, signal.SIGSTOP)
        meanwhile()
        written = self._primary.said("SELECT pg_current_wal_flush_lsn()")
        self._primary.crash()
        received = self._standby.said("SELECT pg_last_wal_receive_lsn()")
        assert self._standby.said(f"SELECT pg_promote(true, {COMMAND_SECONDS})") == "t"
        self._primary, self._standby = self._standby, self._primary
        self.lost_bytes += int(self._primary.said(f"SELECT pg_wal_lsn_diff('{written}', '{received}')"))

    def stand_by(self) -> None:
        """The standby gets what is written, or is made again."""
        with suppress(NoPostgreSQLError):
            if self._standby.is_running:
                _until(lambda: self._primary.said(STREAMING) == "1", seconds=20)
                return
        self._standby.crash()
        self._standby.follow(self._primary)
        self._standby.start()
        _until(lambda: self._primary.said(STREAMING) == "1")


@contextmanager
def private_pair() -> Iterator[PostgreSQLPair]:
    """Raises NoPostgreSQLError."""
    with private_postgresql() as primary, private_postgresql(primary=primary) as standby:
        yield PostgreSQLPair(primary, standby)


def _until(done: Callable[[], bool], seconds: float = COMMAND_SECONDS) -> None:
    """Raises NoPostgreSQLError."""
    end, failed = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        try:
            if done():
                return
        except NoPostgreSQLError as error:
            failed = str(error)
        time.sleep(0.2)
    raise NoPostgreSQLError(f"not within {seconds} s: {failed}")
