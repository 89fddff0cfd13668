"""The four roles, each a process of its own, as an operator runs them in production."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from support.running import COMMAND, CONFIGURING

ROLES = ("lifecycle", "relay", "ec2-adapter", "projector")


class Roles:
    """The roles on parts that they share; ``each`` gives a role settings of its own, e.g. its user."""

    def __init__(
        self, folder: Path, *, each: Callable[[str], dict[str, str]] = lambda _role: {}, **settings: str
    ) -> None:
        self._each = each
        clean = {name: value for name, value in os.environ.items() if not name.startswith(CONFIGURING)}
        self.environment = {
            **clean,
            "CML_DATA_DIR": str(folder / "data"),
            "AWS_ACCESS_KEY_ID": "simulator",
            "AWS_SECRET_ACCESS_KEY": "simulator",
            **settings,
        }
        self.log = folder / "roles.log"
        self.processes = {name: self.start(name) for name in ROLES}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start one more process of the role."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [COMMAND, "role", name], env={**self.environment, **self._each(name)}, stdout=log, stderr=log
            )

    def kill_and_start(self, name: str) -> None:
        """kill -9, and another."""
        self.processes[name].kill()
        self.processes[name].wait()
        self.processes[name] = self.start(name)

    def supervise(self) -> list[str]:
        """Start again what ended by itself, as an orchestrator does; their names."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        for name in ended:
            self.processes[name] = self.start(name)
        return ended

    def kill(self) -> None:
        """kill -9, all of them."""
        for process in self.processes.values():
            process.kill()
            process.wait()

    def stop(self) -> list[int]:
        """SIGTERM, all of them; their exit codes."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        return [process.wait(timeout=10) for process in self.processes.values()]
