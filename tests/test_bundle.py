"""One file for a bug report: what it has of a system at work, of one that is down, and that no secret is in it."""

import json
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.ec2 import SimulatorAdmin
from support.running import COMMAND, RunningSystem

SECRET = "canary-secret-4711"
LOG = f"""\
too long ago
{{"event":"a line","cause":"at amqp://me:{SECRET}@host","headers":{{"Authorization":"{SECRET}"}}}}
Authorization: Bearer {SECRET}
"""
HEADERS = f"x-team={SECRET},x-origin=https://me"
"""For a collector of traces, of which there is none: something secret that has the marks of a URL."""
ALWAYS = {"README.txt", "versions.json", "settings.json"}
OF_PARTS = {"followers.json", "pending-operations.json", "dead-letters.json", "queues.json"}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningSystem]:
    system = RunningSystem(
        tmp_path / "data",
        CML_HEALTH_PORT="0",
        CML_ACTOR_TOKEN_KEYS=json.dumps([SECRET * 3]),
        OTEL_EXPORTER_OTLP_HEADERS=HEADERS,
    )
    yield system
    system.kill()


def contents(file: Path) -> dict[str, str]:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with tarfile.open(file) as archive:
        found = {each.name.partition("/")[2]: archive.extractfile(each) for each in archive.getmembers()}
        return {name: content.read().decode() for name, content in found.items() if content}


def test_a_bundle_has_what_can_be_had_and_says_what_cannot(running: RunningSystem, tmp_path: Path) -> None:
    log, full, empty = tmp_path / "some.log", tmp_path / "full.tar.gz", tmp_path / "empty.tar.gz"
    log.write_text(LOG)
    endpoints = running.start()
    created = running.cli_json("create", "lab-1", "--type", "m5.large")
    SimulatorAdmin(endpoints["ec2"]).fault("StopInstances", "RequestLimitExceeded", status=503, times=None)
    stuck = running.cli("stop", "lab-1", "--deadline", "5")
    assert stuck.returncode == 4, stuck.stderr
    named = ("bundle", "--logs", str(log), "--lines", "2", "--out")
    done = running.cli(*named, str(full), "--probe", "http://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert "not in it: health/127.0.0.1_1: " in done.stderr
    found = contents(full)
    [health] = (name for name in found if name.startswith("health/"))
    assert {*found} == {*ALWAYS, *OF_PARTS, health, "doctor.json", "logs/some.log"}, found["README.txt"]
    readable: dict[str, Any] = {
        name: json.loads(text) for name, text in found.items() if name.endswith(".json")
    }
    assert json.loads(readable[health]["readyz"])["ready"] is True
    assert "cml_commands_total" in readable[health]["metrics"]
    assert readable["queues.json"]["cml.lifecycle.commands"] == {"messages": 0, "consumers": 1}
    assert readable["followers.json"]["read model workers"]["events"] > 1
    (pending,) = readable["pending-operations.json"]["oldest"]
    assert (pending["worker_id"], pending["command_type"]) == (created["worker_id"], "cml.worker.stop.v1")
    assert pending["waits_for"]["problem"]["code"] == "EC2Throttled"
    assert readable["versions.json"]["libraries"]["cml-workers"]
    assert readable["settings.json"]["settings"]["CML_ACTOR_TOKEN_KEYS"] == "***"
    assert readable["settings.json"]["settings"]["CML_REMINDER_SECONDS"] == 3600
    assert "too long ago" not in found["logs/some.log"]
    assert '"event":"a line"' in found["logs/some.log"]
    assert "Could not be had:\n  health/127.0.0.1_1" in found["README.txt"]

    refused = running.cli(*named, str(full))
    assert (refused.returncode, "exists already" in refused.stderr) == (2, True)

    running.kill()
    (running.data_dir / "events.sqlite3").write_bytes(b"damaged" * 1000)
    (running.data_dir / "read-model.sqlite3").unlink()
    (running.data_dir / "endpoints.json").unlink()
    done = running.cli(*named, str(empty), "--logs", str(tmp_path / "none.log"))
    assert done.returncode == 0, done.stderr
    left = contents(empty)
    assert {*left} >= ALWAYS
    assert {*left} & {*OF_PARTS, "doctor.json"} == set()
    for part in ("queues", "followers", "pending-operations", "dead-letters", "doctor", "log "):
        assert f"\n  {part}" in left["README.txt"]
    assert not (running.data_dir / "read-model.sqlite3").exists()  # nothing is changed

    assert not [name for name, text in {**found, **left}.items() if "canary" in text]


def test_a_log_may_come_from_a_program_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "one.log").write_text("one\n")
    (tmp_path / "two.log").write_text("two\n")
    (tmp_path / "other.txt").write_text("other\n")
    system = RunningSystem(tmp_path / "data")
    file = tmp_path / "made.tar.gz"
    arguments = ("bundle", "--no-doctor", "--logs", str(tmp_path), "--logs", "-", "--out", str(file))
    done = subprocess.run(
        [COMMAND, *arguments], env=system.environment, input=b"of a pipe, \xff\n", check=False
    )
    assert done.returncode == 0
    logs = {name: text for name, text in contents(file).items() if name.startswith("logs/")}
    assert logs == {
        "logs/one.log": "one\n",
        "logs/two.log": "two\n",
        "logs/stdin.log": "of a pipe, \ufffd\n",
    }


@pytest.mark.parametrize("url", ["http://me:password@host:8080", "host:8080"])
def test_a_probe_has_no_password(tmp_path: Path, url: str) -> None:
    done = RunningSystem(tmp_path).cli("bundle", "--probe", url)
    assert (done.returncode, "without user and password" in done.stderr) == (2, True)
    assert url not in done.stderr


def test_the_help_teaches(tmp_path: Path) -> None:
    shown = " ".join(RunningSystem(tmp_path).cli("bundle", "--help").stdout.split())
    for each in (
        "--logs",
        "--probe",
        "--no-doctor",
        "kubectl -n cml-workers logs",
        "look through it before you send it",
    ):
        assert each in shown
