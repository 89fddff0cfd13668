"""Servers that a test kills, freezes and starts again: its own, or one that was given, by commands from the environment.

A given server is named by its address (``KURRENTDB_URI``, ``DATABASE_URL``). What a test may do to it is said by commands of the shell,
each of which returns when it is done: ``KURRENTDB_STOP`` (as hard as a crash) with ``KURRENTDB_START``, ``KURRENTDB_FREEZE`` with
``KURRENTDB_RESUME``, ``KURRENTDB_FAIL_OVER`` (another node takes over); likewise ``DATABASE_STOP`` and so on.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from support.children import ended, started
from support.postgresql import NoPostgreSQLError, SpawnedPostgreSQL
from support.rabbitmq import free_port

Harm = Literal["killed", "frozen", "failed over"]
COMMAND_SECONDS = 120
"""How long a command may take."""


class NoSuchCommandError(Exception):
    """The environment does not say how, or its command failed."""


class Server(Protocol):
    """``harms``: what may be done to it. Each call returns when it is done."""

    @property
    def harms(self) -> frozenset[Harm]: ...

    def kill(self) -> None:
        """As a crash; what was committed is there when it starts again."""
        ...

    def start(self) -> None:
        """Again, after ``kill``."""
        ...

    def freeze(self) -> None:
        """It keeps its connections, and answers nothing."""
        ...

    def resume(self) -> None:
        """After ``freeze``."""
        ...

    def fail_over(self) -> None:
        """Another one takes over at the same address."""
        ...


class GivenServer:
    """One that others run; ``name``: what its variables begin with."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def harms(self) -> frozenset[Harm]:
        needed: dict[Harm, tuple[str, ...]] = {
            "killed": ("STOP", "START"),
            "frozen": ("FREEZE", "RESUME"),
            "failed over": ("FAIL_OVER",),
        }
        return frozenset(harm for harm, names in needed.items() if all(map(self._command, names)))

    def kill(self) -> None:
        self._run("STOP")

    def start(self) -> None:
        self._run("START")

    def freeze(self) -> None:
        self._run("FREEZE")

    def resume(self) -> None:
        self._run("RESUME")

    def fail_over(self) -> None:
        self._run("FAIL_OVER")

    def _command(self, what: str) -> str | None:
        return os.environ.get(f"{self._name}_{what}")

    def _run(self, what: str) -> None:
        command = self._command(what)
        if not command:
            raise NoSuchCommandError(f"{self._name}_{what} is not set")
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
        )
        if done.returncode:
            raise NoSuchCommandError(f"{self._name}_{what} failed: {done.stderr or done.stdout}")


@dataclass(frozen=True, slots=True)
class OwnServer:
    """One of the test's own, by whatever signals it and starts it."""

    signal: Callable[[int], None]
    stop: Callable[[], object] | None = None
    again: Callable[[], object] | None = None

    @property
    def harms(self) -> frozenset[Harm]:
        return frozenset({"killed", "frozen"} if self.stop else {"frozen"})

    def kill(self) -> None:
        assert self.stop is not None
        self.stop()

    def start(self) -> None:
        assert self.again is not None
        self.again()

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def fail_over(self) -> None:
        raise NoSuchCommandError("it has no standby")


def own_postgresql(spawned: SpawnedPostgreSQL) -> OwnServer:
    """A private server."""

    def start() -> None:
        end = time.monotonic() + COMMAND_SECONDS
        while True:
            try:
                spawned.start()
            except NoPostgreSQLError:  # processes of the one that was killed have not noticed yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
            else:
                return

    return OwnServer(spawned.signal, lambda: spawned.stop(signal.SIGKILL), start)


@contextmanager
def own_kurrentdb(file: Path) -> Iterator[tuple[str, OwnServer]]:
    """The stand-in for KurrentDB as a process of its own, and its address; ``file`` keeps what it has committed."""
    port = free_port()

    def start() -> subprocess.Popen[str]:
        return started("support.kurrentdb_standin", "--port", str(port), "--file", str(file))

    process = start()

    def kill() -> None:
        process.kill()
        process.wait()

    def again() -> None:
        nonlocal process
        process = start()

    try:
        yield (
            f"esdb://127.0.0.1:{port}?tls=false",
            OwnServer(lambda number: process.send_signal(number), kill, again),  # noqa: PLW0108 - of the process there is then
        )
    finally:
        ended(process)
