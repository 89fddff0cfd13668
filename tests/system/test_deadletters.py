"""Dead letters on the command line of a running system: from the cause to the outcome."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from support.plain_amqp import PlainAmqp
from support.running import RunningSystem

CREATE: dict[str, Any] = {
    "name": "fixed",
    "aws_region": "us-east-1",
    "instance_type": "m5.large",
    "created_by": "ann",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    running = RunningSystem(tmp_path_factory.mktemp("deadletters") / "data")
    running.start()
    yield running
    running.kill()


async def break_some(running: RunningSystem, count: int, body: Any) -> list[str]:
    """Send what is no command; the ids of the dead letters, once all are there."""
    kind = f"cml.worker.{uuid4().hex[:8]}.v1" if body is None else "cml.worker.create.v1"
    before = len(listed(running, "--type", kind))
    async with PlainAmqp(json.loads((running.data_dir / "endpoints.json").read_text())["amqp"]) as client:
        for _ in range(count):
            sent = await client.publish("cml.commands", kind, json.dumps(body or {}).encode(), type=kind)
            await client.replies_to(sent)
    async with asyncio.timeout(30):
        while len(found := listed(running, "--type", kind)) < before + count:
            await asyncio.sleep(0.1)
    return [each["id"] for each in found[:count]]


def listed(running: RunningSystem, *conditions: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = running.cli_json("deadletters", "list", *conditions)["dead_letters"]
    return found


def shown(running: RunningSystem, dead_letter_id: str) -> dict[str, Any]:
    details: dict[str, Any] = running.cli_json("deadletters", "show", dead_letter_id)
    return details


async def test_a_wrong_command_is_found_understood_fixed_and_carried_out(
    running: RunningSystem, tmp_path: Path
):
    (dead_letter_id,) = await break_some(running, 1, {**CREATE, "colour": "red"})
    table = running.cli("deadletters", "list").stdout
    assert dead_letter_id in table
    assert "ValidationFailed" in table
    panel = running.cli("deadletters", "show", dead_letter_id).stdout
    for expected in ("colour", '"created_by": "ann"', "cml.lifecycle.commands", "died"):
        assert expected in panel

    fixed = tmp_path / "fixed.json"
    fixed.write_text(json.dumps({**CREATE, "colour": None}))
    refused = running.cli("deadletters", "edit", dead_letter_id, "--file", str(fixed))
    assert (refused.returncode, "colour" in refused.stderr) == (2, True)
    fixed.write_text(json.dumps(CREATE))
    done = running.cli("deadletters", "edit", dead_letter_id, "--file", str(fixed), "--reason", "no colours")
    assert done.returncode == 0, done.stderr
    command_id = shown(running, dead_letter_id)["message_id"]
    assert f"cml-workers operation {command_id}" in done.stdout
    async with asyncio.timeout(60):
        while running.cli("get", "fixed").returncode:
            await asyncio.sleep(0.1)
    history = shown(running, dead_letter_id)["history"]
    assert [(each["what"], each["reason"]) for each in history][1:] == [("edited", "no colours")]
    assert "colour" in history[1]["replaced_body"]
    assert listed(running, "--cause", "ValidationFailed", "--type", "cml.worker.create.v1") == []


async def test_it_is_fixed_in_an_editor(running: RunningSystem):
    (dead_letter_id,) = await break_some(running, 1, {**CREATE, "name": "edited", "colour": "red"})
    unchanged = running.cli("deadletters", "edit", dead_letter_id, EDITOR="true", VISUAL="true")
    assert (unchanged.returncode, "nothing was changed" in unchanged.stderr) == (1, True)
    editor = """sed -i -e '/colour/d' -e 's/"ann",/"ann"/'"""
    done = running.cli("deadletters", "edit", dead_letter_id, EDITOR=editor, VISUAL=editor)
    assert done.returncode == 0, done.stderr
    assert json.loads(shown(running, dead_letter_id)["body"]) == {**CREATE, "name": "edited"}


async def test_many_are_redriven_at_once_and_what_dies_again_comes_back(running: RunningSystem):
    ids = await break_some(running, 5, None)
    kind = shown(running, ids[0])["type"]
    planned = running.cli("deadletters", "redrive", "--type", kind, "--dry-run")
    assert "5 would be redriven" in planned.stdout
    asked = running.cli("deadletters", "redrive", "--type", kind)  # nobody says yes
    assert asked.returncode == 1
    assert {each["deaths"] for each in listed(running, "--type", kind)} == {1}
    done = running.cli("deadletters", "redrive", "--type", kind, "--yes", "--json", "--reason", "again")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["dead_letter_id"] for each in results} == set(ids)
    assert {each["outcome"] for each in results} == {"succeeded"}
    async with asyncio.timeout(30):
        while {each["deaths"] for each in listed(running, "--type", kind)} != {2}:
            await asyncio.sleep(0.1)
    assert len(listed(running, "--type", kind, "--all")) == 5

    discarded = running.cli_json("deadletters", "discard", ids[0], "--reason", "the sender will fix it")
    assert discarded["state"] == "discarded"
    assert len(listed(running, "--type", kind)) == 4
    assert [each["id"] for each in listed(running, "--type", kind, "--state", "discarded")] == [ids[0]]
    assert listed(running, "--type", kind, "--since", "2h", "--reason-part", "NOT KNOWN")
    assert listed(running, "--type", kind, "--since", "2999-01-01") == []
    one = running.cli("deadletters", "redrive", ids[0])
    assert (one.returncode, "redriven to cml.lifecycle.commands" in one.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", str(uuid4())], 1, "`list` shows which are"),
        (["redrive", str(uuid4())], 1, "DeadLetterNotFound"),
        (["redrive"], 2, "or all that wait with --all"),
        (["redrive", str(uuid4()), "--all"], 2, "by conditions"),
        (["edit", str(uuid4()), "--body", "{", "--file", "x"], 2, "exclude each other"),
        (["discard", str(uuid4())], 2, "--reason"),
        (["list", "--since", "yesterday"], 2, "90m, 12h, 7d"),
        (["list", "--cursor", "x"], 1, "omit it"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    running: RunningSystem, arguments: list[str], code: int, said: str
):
    done = running.cli("deadletters", *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
