"""The script that deletes what commands waited for in EC2, of old: nothing else, and once."""

import importlib.util
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest

from cml_workers.domain.messages import CommandMessage, ImageLookup
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.lookup_records import LOOKUP_STREAMS, is_recorded, record_lookup
from cml_workers.eventstore.port import NO_STREAM, NewEvent
from support.given import create
from support.kurrentdb_standin import KurrentDbStandIn

SCRIPT = Path(__file__).parents[2] / "deploy/kurrentdb/retire_lookups.py"
LOOKUP = ImageLookup(aws_region="us-east-1", ami_name="cml")


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("retire_lookups", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def command(command_id: str) -> CommandMessage:
    body = create()
    return CommandMessage(
        command_id=command_id, command=body, command_type=body.TYPE, correlation_id=command_id
    )


async def test_old_records_of_lookups_are_deleted_and_nothing_else(script: ModuleType):
    assert script.LOOKUP_STREAMS == LOOKUP_STREAMS
    node = KurrentDbStandIn()
    await node.start()
    store = KurrentDbEventStore(node.uri)
    try:
        others = [f"cml_worker-{uuid4()}", f"cml_command-{uuid4()}", "cml_denials"]
        for stream in others:
            await store.append(stream, [NewEvent(uuid4(), "x", b"{}", b"{}")], expected=NO_STREAM)
        for each in ("one", "two"):
            await record_lookup(store, command(each), LOOKUP, uuid4())
        now = datetime.now(UTC)
        assert await script.retire(node.uri, now - timedelta(days=1)) == 0
        assert await is_recorded(store, command("one"), LOOKUP)
        later = now + timedelta(minutes=1)
        assert await script.retire(node.uri, later) == 2
        assert await script.retire(node.uri, later) == 0
        for each in ("one", "two"):
            assert not await is_recorded(store, command(each), LOOKUP)
        await record_lookup(store, command("one"), LOOKUP, uuid4())  # it comes again, after so long
        assert await is_recorded(store, command("one"), LOOKUP)
        for stream in others:
            assert len(await store.read(stream)) == 1
    finally:
        await store.close()
        await node.stop()


@pytest.mark.parametrize("arguments", [[], ["1"], ["100", "200"], ["-100"]])
def test_it_says_what_it_needs(arguments: list[str]):
    found = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env={"KURRENTDB_URI": "esdb://127.0.0.1:1?tls=false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, "at least 7" in found.stderr) == (1, True)
