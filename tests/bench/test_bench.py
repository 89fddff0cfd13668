"""The harness still works; what it measures, nobody asserts here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import report, run
from support.containers import docker_answers
from support.rabbitmq import installed

HERE = Path(__file__).parent


def bench(only: str, folder: Path) -> dict[str, Any]:
    out = folder / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.run", "--small", "--only", only, "--json", out],
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_the_calls_of_a_command_are_counted(tmp_path):
    result = bench("calls,micro,structure", tmp_path)
    commands = result["calls"]["commands"]
    assert commands["create, to RUNNING"]["EC2"]["run_instances"] == 1
    assert commands["no-op"]["total"]["appends"] >= 1
    assert commands["no-op"]["EC2"] == {}
    assert result["structure"]["non-test files that name stop"] > 0


def test_every_measure_over_the_wire_is_taken(tmp_path):
    if not (installed() or docker_answers()):
        pytest.skip("no RabbitMQ can be had")
    result = bench("throughput,latency,long,burst", tmp_path)
    assert result["throughput"]["measures"]["tag update"]["per second"] > 0
    assert result["latency"]["measures"]["echo"]["of echo"] == 1
    assert result["burst"]["seconds"] > 0
    assert result["long"]["events"]["long"] > result["long"]["events"]["short"]


def test_two_results_stand_side_by_side():
    before = report.read(HERE / "before.json")
    after = json.loads(json.dumps(before))
    after["latency"]["measures"]["tag update"]["ms"] = 12.5
    text = report.markdown(before, after)
    assert " → 12.5 " in text


def test_a_section_that_there_is_not_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.arguments(["--only", "speed"])
    assert "there is no speed" in capsys.readouterr().err
