"""``cml-workers run`` as a process of its own, as an operator starts and stops it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

COMMAND = Path(sys.executable).parent / "cml-workers"
CONFIGURING = ("RABBITMQ_URL", "KURRENTDB_URI", "DATABASE_URL", "AWS_", "CML_")
READY = "Ready."


def unconfigured() -> dict[str, str]:
    """The environment of this process without what would configure another."""
    return {name: value for name, value in os.environ.items() if not name.startswith(CONFIGURING)}


def problems(endpoints: dict[str, str]) -> dict[str, Any]:
    """What ``/readyz`` of a running system reports."""
    try:
        with urlopen(f"{endpoints['health']}/readyz", timeout=30) as answer:
            return dict(json.load(answer)["problems"])
    except HTTPError as error:
        return dict(json.load(error)["problems"])


class RunningSystem:
    """Start it, stop it, start it again on the same data folder; ``settings`` are environment variables."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self.environment = {
            **unconfigured(),
            "CML_DATA_DIR": str(data_dir),
            "CML_EC2_TRANSITION_SECONDS": "0.3",
            "CML_VISIBILITY_GRACE_SECONDS": "3",
            "CML_AUTHORIZE": "false",
            # What a wait waits for comes by its own path, or the test fails: no reminder makes up for it.
            "CML_REMINDER_SECONDS": "3600",
            **settings,
        }
        self.process: subprocess.Popen[str] | None = None

    def start(
        self, *, patience: float = 90.0, command: Sequence[str | Path] = (COMMAND, "run")
    ) -> dict[str, str]:
        """Start and wait until it says that it is ready; the endpoints it wrote."""
        path = self.data_dir / "endpoints.json"
        path.unlink(missing_ok=True)  # one that was killed leaves it behind
        with self._file("out").open("a") as output, self._file("log").open("a") as log:
            before = self.printed().count(READY)
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=log, text=True
            )
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if path.exists() and self.printed().count(READY) > before:
                endpoints: dict[str, str] = json.loads(path.read_text())
                return endpoints
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"not ready: {self.log()}")

    def stop(self, number: int = signal.SIGINT) -> int:
        """Stop as Ctrl-C does; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        """kill -9, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def cli(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """The command line as a client of this system."""
        return subprocess.run(
            [COMMAND, *arguments],
            env={**self.environment, "COLUMNS": "160", **settings},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def cli_json(self, *arguments: str) -> Any:
        """The same with ``--json``, which must succeed."""
        done = self.cli(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def log(self) -> str:
        """What it has said so far."""
        return self._file("log").read_text()

    def printed(self) -> str:
        """What it has printed so far."""
        return self._file("out").read_text()

    def _file(self, kind: str) -> Path:
        return self.data_dir.parent / f"{self.data_dir.name}.{kind}"
