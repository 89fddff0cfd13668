"""Servers that a test kills, freezes and starts again: its own, or one that was given, by commands from the environment.

A given server is named by its address (``KURRENTDB_URI``, ``DATABASE_URL``). What a test may do to it is said by commands of the shell,
each of which returns when it is done: ``KURRENTDB_STOP`` (as hard as a crash) with ``KURRENTDB_START``, ``KURRENTDB_FREEZE`` with
``KURRENTDB_RESUME``, ``KURRENTDB_FAIL_OVER`` (another node takes over); likewise ``DATABASE_STOP`` and so on.

A PostgreSQL of the test's own is a primary with a standby (``postgresql_pair``), a store of its own a cluster of stand-ins.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from support.children import ended, started
from support.kurrentdb_cluster import uri_of
from support.ports import free_port

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
        """Another one takes over at the same address; return when it has."""
        ...

    def stand_by(self) -> None:
        """After ``fail_over``: whatever it needs before it can fail over again, which may take a while."""
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

    def stand_by(self) -> None:
        """Is up to who gave it."""

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
    take_over: Callable[[], object] | None = None

    @property
    def harms(self) -> frozenset[Harm]:
        borne: set[Harm] = {"frozen"}
        if self.stop:
            borne.add("killed")
        if self.take_over:
            borne.add("failed over")
        return frozenset(borne)

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
        if self.take_over is None:
            raise NoSuchCommandError("it has no standby")
        self.take_over()

    def stand_by(self) -> None:
        """Who was lost comes back by itself."""


@contextmanager
def own_kurrentdb(file: Path) -> Iterator[tuple[str, OwnServer]]:
    """The stand-in for KurrentDB as a process of its own, and its address; ``file`` keeps what it has committed."""
    port = free_port()
    with _process(lambda: started("support.kurrentdb_standin", "--port", str(port), "--file", str(file))) as (
        _,
        server,
    ):
        yield f"esdb://127.0.0.1:{port}?tls=false", server


@contextmanager
def own_kurrentdb_cluster(file: Path) -> Iterator[tuple[str, OwnServer]]:
    """Three of them, in one process, which is killed and frozen as a whole; the address names all three."""
    ports = [free_port() for _ in range(3)]

    def start() -> subprocess.Popen[str]:
        numbers = map(str, ports)
        process = started(
            "support.kurrentdb_cluster",
            *("--file", str(file), "--ports", *numbers),
            output=subprocess.PIPE,
        )
        _line_of(process)
        return process

    with _process(start) as (running, server):

        def take_over() -> None:
            running().send_signal(signal.SIGUSR1)
            _line_of(running())

        yield uri_of(ports), replace(server, take_over=take_over)


@contextmanager
def _process(
    start: Callable[[], subprocess.Popen[str]],
) -> Iterator[tuple[Callable[[], subprocess.Popen[str]], OwnServer]]:
    """The process that there is at the time, and what may be done to it."""
    process = start()

    def kill() -> None:
        process.kill()
        with process:  # waits, and closes what it printed to
            pass

    def again() -> None:
        nonlocal process
        process = start()

    try:
        yield lambda: process, OwnServer(lambda number: process.send_signal(number), kill, again)  # noqa: PLW0108 - of the process there is then
    finally:
        with process:
            ended(process)


def _line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "it has ended"
    return line
