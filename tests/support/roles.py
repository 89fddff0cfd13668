"""The roles, each a process of its own, as an operator runs them in production."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cml_workers.process.registry import ROLES
from support.children import tied
from support.planted_role import BROKEN
from support.planting import BrokenPlantError
from support.running import COMMAND, unconfigured

TESTS = Path(__file__).parents[1]
"""Where they are started: what is planted is a module of the tests."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 8.0
"""Seconds before a process that ended by itself is started again: at first, and when it keeps ending."""


class Roles:
    """The roles on parts that they share; ``each`` gives a process settings of its own, e.g. its user.

    ``processes``: their names, which begin with the role's; a second one of a role is e.g. ``ec2-adapter.2``.
    ``plant``: a deliberate fault that they run with, see ``support.planted_role``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        processes: Sequence[str] = tuple(ROLES),
        each: Callable[[str], dict[str, str]] = lambda _process: {},
        plant: str | None = None,
        **settings: str,
    ) -> None:
        self._each = each
        self._command = [sys.executable, "-m", "support.planted_role", plant] if plant else [str(COMMAND)]
        self.environment = {
            **unconfigured(),
            "CML_DATA_DIR": str(folder / "data"),
            "AWS_ACCESS_KEY_ID": "simulator",
            "AWS_SECRET_ACCESS_KEY": "simulator",
            **settings,
        }
        self.logs = {name: folder / f"{name}.log" for name in processes}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._said_before: dict[str, int] = {}
        for name in processes:
            self.processes[name] = self.start(name)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start the process of this name."""
        with self.logs[name].open("ab") as log:
            self._said_before[name] = log.tell()
            return subprocess.Popen(
                tied(*self._command, "role", name.partition(".")[0]),
                cwd=TESTS,
                env={**self.environment, **self._each(name)},
                stdout=log,
                stderr=log,
            )

    def ready(self, name: str) -> bool:
        """Whether the process runs and has said that it is ready."""
        if self.processes[name].poll() is not None:
            return False
        with self.logs[name].open("rb") as log:
            log.seek(self._said_before[name])
            return b" is ready" in log.read(16_384)

    def kill_and_start(self, name: str) -> None:
        """kill -9, and another."""
        self.processes[name].kill()
        self.processes[name].wait()
        self.processes[name] = self.start(name)

    async def supervise(self, name: str, on_end: Callable[[str, int], None]) -> None:
        """Start it again whenever it has ended, as an orchestrator does; one that ends by itself after a pause."""
        pause = FIRST_PAUSE
        while True:
            code = self.processes[name].poll()
            if code is None:
                await asyncio.sleep(0.2)
                continue
            on_end(name, code)
            if code == -signal.SIGKILL:
                pause = FIRST_PAUSE
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            self.processes[name] = self.start(name)

    def kill(self) -> None:
        """kill -9, all of them. Raises BrokenPlantError: what they ran with raised an error of its own."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        for log in self.logs.values():
            if BROKEN in log.read_text(errors="replace"):
                raise BrokenPlantError(f"see {BROKEN!r} in {log}")

    def stop(self) -> list[int]:
        """SIGTERM, all of them; their exit codes."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        return [process.wait(timeout=60) for process in self.processes.values()]

    def tracebacks(self) -> list[str]:
        """Where a process has written one."""
        return [
            f"a traceback in {log}"
            for log in self.logs.values()
            if log.exists() and "Traceback" in log.read_text()
        ]

    def log(self) -> str:
        """What they have said so far."""
        return "".join(log.read_text() for log in self.logs.values() if log.exists())
