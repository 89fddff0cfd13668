"""``cml-workers watch`` beside a system that is stopped and started again."""

import json
import subprocess
import time
from pathlib import Path

from support.running import COMMAND, RunningSystem

PATIENCE = 60.0


def until_watched(system: RunningSystem, seen: Path, prefix: str) -> None:
    """Create workers until one of them is seen: nothing says from when on events are watched."""
    end = time.monotonic() + PATIENCE
    number = 0
    while f'"name":"{prefix}-' not in seen.read_text().replace(" ", ""):
        assert time.monotonic() < end, seen.read_text()
        number += 1
        system.cli("create", f"{prefix}-{number}", "--no-wait")
        time.sleep(0.5)


def test_events_are_watched_across_a_restart(tmp_path: Path) -> None:
    """The embedded broker takes another port at each start."""
    system = RunningSystem(tmp_path / "data")
    before = system.start()
    seen, said = tmp_path / "seen", tmp_path / "said"
    with seen.open("w") as out, said.open("w") as err:
        watching = subprocess.Popen(
            [COMMAND, "watch", "cml.worker.created.#", "--json"],
            env=system.environment,
            stdout=out,
            stderr=err,
        )
    try:
        until_watched(system, seen, "before")
        system.stop()
        assert system.start()["amqp"] != before["amqp"]
        until_watched(system, seen, "after")
        assert watching.poll() is None
        assert said.read_text() == "The system was started again; events that came meanwhile are not shown.\n"
        assert {json.loads(line)["type"] for line in seen.read_text().splitlines()} == {
            "cml.worker.created.v1"
        }
    finally:
        watching.kill()
        watching.wait()
        system.kill()
