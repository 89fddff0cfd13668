"""The command line on a running system."""

import json
import time
from uuid import uuid4

import pytest

from support.whole_path import System


def test_the_command_line_drives_a_worker_through_its_life(system: System):
    cli = system.running
    created = cli.cli_json("create", "cli-lab", "--type", "m5.large", "--tag", "course=ccna", "--by", "ann")
    worker_id = created["worker_id"]
    again = cli.cli(
        "create",
        "cli-lab",
        "--type",
        "m5.large",
        "--tag",
        "course=ccna",
        "--by",
        "ann",
        "--json",
        "--command-id",
        created["command_id"],
    )
    assert json.loads(again.stdout) == created
    assert cli.cli_json("tag", worker_id, "a=1", "b=2")["data"]["b"] == "2"
    assert cli.cli_json("status", "cli-lab")["data"]["instance_state"] in {"pending", "running"}
    assert cli.cli_json("stop", "cli-lab")["data"] is True
    shown = cli.cli("get", "cli-lab")
    assert "STOP" in shown.stdout
    assert worker_id in cli.cli("list", "--name", "cli-", "--tag", "a=1").stdout
    assert cli.cli_json("operation", created["command_id"])["result"] == created
    marked = cli.cli("create", "[bold]x[/y]", "--tag", "[a]=[/b]", "--command-id", "[/c]")
    assert marked.returncode == 0, marked.stderr
    end = time.monotonic() + 60
    while "[bold]x[/y]" not in cli.cli("list", "--name", "[bold]").stdout:
        assert time.monotonic() < end
    assert "[a]=[/b]" in cli.cli("get", "[bold]x[/y]").stdout
    assert "[/c]" in cli.cli("operation", "[/c]").stdout
    sent = cli.cli_json("terminate", "cli-lab", "--no-wait")
    assert sent["command_id"]
    lines = cli.cli("history", "cli-lab", "--json").stdout.splitlines()
    assert json.loads(lines[0])["type"] == "cml.worker.created.v1"


def test_nobody_could_see_why_an_operation_waits(system: System):
    """Throttled: the operation, the worker and its history say so, how often it was tried, and when it is tried next."""
    cli = system.running
    system.admin.fault("RunInstances", "RequestLimitExceeded", status=503, times=1_000)
    system.expected = ["EC2 refused, trying again"]
    command_id = cli.cli_json("create", "waits-lab", "--no-wait")["command_id"]
    end = time.monotonic() + 60
    while "waits for" not in (shown := cli.cli("operation", command_id).stdout):
        assert time.monotonic() < end, shown
    assert "EC2Throttled: RunInstances" in shown
    waits_for = cli.cli_json("get", "waits-lab")["waits_for"]
    assert waits_for["problem"]["code"] == "EC2Throttled"
    assert waits_for["attempts"] >= 1
    assert waits_for["next_at"] > waits_for["last_at"]
    assert "waits for" in cli.cli("get", "waits-lab").stdout
    assert "worker.operation_delayed" in cli.cli("history", "waits-lab").stdout
    system.admin.clear()
    while cli.cli_json("operation", command_id)["result"] is None:
        assert time.monotonic() < end
    shown = cli.cli_json("operation", command_id)
    assert (shown["result"]["outcome"], shown["waits_for"]) == ("succeeded", None)
    assert "waits for" not in cli.cli("get", "waits-lab").stdout


def test_a_worker_is_renamed_by_the_name_tag_of_its_instance(system: System):
    cli = system.running
    worker_id = cli.cli_json("create", "before", "--type", "m5.large")["worker_id"]
    assert cli.cli_json("tag", worker_id, "Name=after")["outcome"] == "succeeded"
    end = time.monotonic() + 60
    while (shown := cli.cli("get", "after")).returncode != 0:
        assert time.monotonic() < end, shown.stderr
    assert worker_id in shown.stdout
    assert "no worker is named 'before'" in cli.cli("get", "before").stderr
    assert "name=after" in cli.cli("history", worker_id).stdout
    assert cli.cli_json("status", "after")["outcome"] == "succeeded"
    cli.cli_json("terminate", "after")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["start", "no-such-lab"], 1, "no worker is named"),
        (["start", str(uuid4())], 1, "WorkerNotFound"),
        (["get", str(uuid4())], 1, "not in the read model"),
        (["history", str(uuid4())], 1, "no history"),
        (["tag", str(uuid4()), "novalue"], 2, "KEY=VALUE"),
        (["create", "x", "--region", "nowhere"], 2, "aws_region"),
        (["list", "--sort", "colour"], 2, "sort"),
        (["role", "emperor"], 2, "there is no role"),
        (["run"], 2, "another `cml-workers run`"),
    ],
)
def test_the_command_line_says_what_is_wrong_and_exits_so(
    system: System, arguments: list[str], code: int, said: str
):
    done = system.running.cli(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
