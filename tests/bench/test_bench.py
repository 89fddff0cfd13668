"""The harness still works; what it measures, nobody asserts here."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bench import report, run
from bench.bench_relay import until_it_answers
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.names import WORKER_STREAMS
from cml_workers.eventstore.port import NO_STREAM
from support.containers import docker_answers
from support.event_stores import event
from support.postgresql import private_postgresql
from support.rabbitmq import installed
from support.servers import own_kurrentdb

HERE = Path(__file__).parent


def bench(only: str, folder: Path, **given: str) -> dict[str, Any]:
    out = folder / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.run", "--small", "--only", only, "--json", out],
        env={**os.environ, "PYTHONPATH": str(HERE.parent), **given},
        capture_output=True,
        text=True,
        check=False,
        timeout=200 if given else 110,
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


@pytest.mark.timeout(300)
def test_a_given_store_and_database_are_shared_with_others(tmp_path):
    """Others have streams named like ours, and tables named like ours; both are as before when it is over."""
    if not (installed() or docker_answers()):
        pytest.skip("no RabbitMQ can be had")
    tables = "SELECT string_agg(tablename, ' ') FROM pg_tables WHERE schemaname = 'public'"
    with private_postgresql() as database, own_kurrentdb(tmp_path / "store") as (uri, _):
        database.said("CREATE TABLE workers (name text)")
        asyncio.run(fill(uri))
        given = {"KURRENTDB_URI": uri, "DATABASE_URL": database.url}
        result = bench("latency", tmp_path, **given)
        assert (result["code"]["store"], result["code"]["read model"]) == ("KurrentDB", "PostgreSQL")
        rebuilt = [sys.executable, "-m", "bench.bench_rebuild", "--events", "300", "--workers", "20"]
        environment = {**os.environ, **given, "PYTHONPATH": str(HERE.parent)}
        subprocess.run(rebuilt, env=environment, check=True, timeout=60)
        assert database.said(tables) == "workers"
        assert database.said("SELECT datname FROM pg_database WHERE datname LIKE 'cml_test_%'") == ""


async def fill(uri: str) -> None:
    """A worker of somebody else's."""
    store = KurrentDbEventStore(uri)
    await until_it_answers(store)
    await store.append(f"{WORKER_STREAMS}{uuid4()}", [event()], expected=NO_STREAM)
    await store.close()


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
