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
