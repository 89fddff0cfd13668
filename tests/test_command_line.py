"""What the command line does without a system that runs."""

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
import typer
from typer.testing import CliRunner

from cml_contracts.client import NoAnswerError, WorkerClient
from cml_contracts.deadletters import DeadLetterDetails, DeadLetterState
from cml_contracts.instance import WorkerStatus
from cml_contracts.queries import ListCMLWorkers, WorkerPage, WorkerView
from cml_workers.cli import commands, deadletters, queries, terminal
from cml_workers.cli.app import app
from cml_workers.cli.resolving import resolve
from cml_workers.cli.show import as_text
from cml_workers.cli.terminal import err, run_to_end
from cml_workers.eventstore.sqlite import SqliteEventStore
from support.running import COMMAND, unconfigured

INTERRUPTED = """
import sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "cml_workers.cli.app":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
from cml_workers.cli import main
main()
"""


@pytest.fixture(autouse=True)
def logs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in this very process must not leave its logs going to a captured stream."""
    monkeypatch.setattr(terminal, "configure_logging", lambda _: None)


def test_ctrl_c_while_it_loads_ends_it_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


ANSWERED = """
from cml_contracts.queries import WorkerPage
import cml_workers.cli.queries
from cml_workers.cli import main
cml_workers.cli.queries.with_client = lambda _: WorkerPage(workers=[])
main()
"""


def alone(*command: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = unconfigured()
    environment.pop("COLUMNS", None)
    return subprocess.run(
        command, env={**environment, **settings}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("arguments", ["list", "list --json", "--help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_takes_is_said_in_a_line(arguments: str, unbuffered: str) -> None:
    done = alone(
        *("bash", "-c", f'"$0" -c "$1" {arguments} > /dev/full', sys.executable, ANSWERED),
        PYTHONUNBUFFERED=unbuffered,
    )
    assert (done.returncode, done.stderr) == (1, "cml-workers: cannot write: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_not_mistaken_for_what_is_opened_next(closed: str) -> None:
    done = alone("bash", "-c", f'"$0" list {closed}', COMMAND, RABBITMQ_URL="amqp://127.0.0.1:1/")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("folder", ["/dev/null", "/proc/x"])
@pytest.mark.parametrize("command", ["run", "list"])
def test_a_data_folder_that_cannot_be_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, folder: str, command: str
) -> None:
    for name in os.environ.keys() - unconfigured().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("CML_DATA_DIR", folder)
    done = CliRunner().invoke(app, [command])
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert "CML_DATA_DIR" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The data folder of whoever uses a system that runs elsewhere."""
    for name in os.environ.keys() - unconfigured().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("RABBITMQ_URL", "amqp://127.0.0.1:1/")
    monkeypatch.setenv("CML_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("command", [["history", str(uuid4())], ["replay", "queue"], ["rebuild"]])
def test_without_an_event_store_it_is_said_what_to_set_and_none_is_made(
    elsewhere: Path, command: list[str]
) -> None:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "no event store: set KURRENTDB_URI" in done.stderr
    assert list(elsewhere.iterdir()) == []


async def test_a_worker_without_a_history_is_said_to_have_none_in_that_store(elsewhere: Path) -> None:
    """It may be another system's."""
    file = elsewhere / "events.sqlite3"
    store = SqliteEventStore(file)
    await store.ping()
    await store.close()
    done = await asyncio.to_thread(CliRunner().invoke, app, ["history", str(uuid4())])
    assert done.exit_code == 1
    assert f"has no history in sqlite:///{file}" in done.stderr


@pytest.fixture
def letter(monkeypatch: pytest.MonkeyPatch) -> DeadLetterDetails:
    """A dead letter that can be seen; nobody answers when something is to be done about it."""
    now = datetime.now(UTC)
    details = DeadLetterDetails(
        id=uuid4(),
        state=DeadLetterState.WAITING,
        cause="ValidationFailed",
        reason="name: missing",
        queue="cml.lifecycle.commands",
        type="cml.worker.create.v1",
        deaths=1,
        redrives=0,
        deliveries=1,
        attempts=0,
        faults=0,
        first_died_at=now,
        last_died_at=now,
        body="{}",
        encoding="utf-8",
        size=2,
        history=(),
    )
    monkeypatch.setattr(deadletters, "details_of", lambda _: details)
    return details


@pytest.mark.parametrize("editor", ["/bin/false", "nosuch", "'", "rm"])
def test_an_editor_that_fails_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, letter: DeadLetterDetails, editor: str
) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", editor)
    done = CliRunner().invoke(app, ["deadletters", "edit", str(letter.id)])
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    assert isinstance(done.exception, SystemExit)
    assert "the dead letter is unchanged" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--body", "garbage"], "cml-workers: the body: Invalid JSON: expected value at line 1 column 1"),
        (["--body", "{}"], "cml-workers: name: Field required; "),
        (["--body", "{}", "--type", "cml.worker.start.v1", "--by", "x"], "cml-workers: worker_id: Field req"),
    ],
)
def test_what_is_wrong_with_a_new_body_is_said_of_its_place(
    letter: DeadLetterDetails, arguments: list[str], said: str
) -> None:
    done = CliRunner().invoke(app, ["deadletters", "edit", str(letter.id), *arguments])
    assert (done.exit_code, done.stderr[: len(said)]) == (2, said)


def test_how_long_ago_is_not_negative() -> None:
    done = CliRunner().invoke(app, ["deadletters", "list", "--since", "-3h"])
    assert done.exit_code == 2
    assert done.stderr == "cml-workers: --since says how long ago; '-3h' would be in the future\n"


@pytest.mark.parametrize(
    ("since", "said"),
    [
        ("0001-01-01T00:00+14:00", "since: must be a time in the years 1 to 9999, in UTC too"),
        ("9999-12-31T23:59-01:00", "since: must be a time in the years 1 to 9999, in UTC too"),
        ("9e99d", "--since is a time like"),
    ],
)
def test_a_time_beyond_the_calendar_is_a_usage_error_and_no_traceback(since: str, said: str) -> None:
    done = CliRunner().invoke(app, ["deadletters", "list", "--since", since])
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_argument_that_is_no_text_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    async def send() -> None:
        "\udcff".encode()

    with pytest.raises(typer.Exit) as ended:
        run_to_end(send())
    assert (ended.value.exit_code, capsys.readouterr().err) == (2, "cml-workers: '\\udcff' is not UTF-8\n")


TABLES = """
from datetime import UTC, datetime
from uuid import uuid4
from cml_contracts.queries import WorkerPage, WorkerView
import cml_workers.cli.queries
from cml_workers.cli import main
now = datetime.now(UTC)
worker = WorkerView(
    id=uuid4(), name="lab" * 10, status="RUNNING", aws_region="ap-southeast-4", instance_type="m5zn.12xlarge",
    owner="somebody" * 8, tags={}, created_at=now, updated_at=now, revision=1,
)
cml_workers.cli.queries.with_client = lambda _: WorkerPage(workers=[worker])
main()
"""


@pytest.mark.parametrize(("columns", "whole"), [(None, True), ("80", False), ("240", True)])
def test_a_table_is_cut_for_terminals_only_or_for_whom_wants_it(columns: str | None, whole: bool) -> None:
    done = alone(
        *("bash", "-c", '"$0" -c "$1" list', sys.executable, TABLES),
        **({"COLUMNS": columns} if columns else {}),
    )
    assert done.returncode == 0, done.stderr
    assert ("m5zn.12xlarge" in done.stdout and "lab" * 10 in done.stdout) == whole
    assert all(len(line) < 300 for line in done.stdout.splitlines())


@pytest.mark.parametrize("program", ["system.chaos", "fuzz.run"])
def test_long_tests_say_what_their_options_are_unless_given(program: str) -> None:
    done = alone(sys.executable, "-m", program, "--help", PYTHONPATH=str(Path(__file__).parent))
    options = done.stdout.partition("options:")[2].split("\n  --")[1:]
    assert len(options) >= 3
    for option in options:
        assert "(default: " in " ".join(option.split())


def test_the_version_is_shown() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"cml-workers {version('cml-workers')}\n")


@pytest.mark.parametrize("command", [["create", "lab"], ["tag", str(uuid4())]])
def test_a_tag_that_is_given_twice_is_an_error(command: list[str]) -> None:
    """One of the two would be lost without a word."""
    tags = ["--tag", "a=1", "--tag", "a=2"] if command[0] == "create" else ["a=1", "a=2"]
    done = CliRunner().invoke(app, [*command, *tags])
    assert (done.exit_code, done.stderr) == (2, "cml-workers: tag 'a' is given twice\n")


VIEW = WorkerView(
    id=uuid4(),
    name="lab",
    status=WorkerStatus.RUNNING,
    aws_region="us-east-1",
    instance_type="m5.large",
    owner="ann",
    created_at=datetime.now(UTC),
    updated_at=datetime.now(UTC),
    revision=1,
)


class Answering:
    """A client that never comes to an answer, or one that lists these workers."""

    def __init__(self, *views: WorkerView, ends: BaseException | None = None) -> None:
        self.views, self.ends = views, ends
        self.sent: list[str] = []
        self.wanted: list[ListCMLWorkers] = []

    async def send(self, _: object, *, command_id: str, deadline: float) -> None:
        self.sent.append(command_id)
        assert self.ends
        raise self.ends

    async def workers(self, wanted: ListCMLWorkers) -> WorkerPage:
        self.wanted.append(wanted)
        return WorkerPage(workers=self.views)


@pytest.mark.parametrize(
    ("arguments", "hides"),
    [([], True), (["--status", "running"], True), (["--all"], False), (["--status", "terminated"], False)],
)
def test_what_was_terminated_long_ago_is_listed_only_if_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], hides: bool
) -> None:
    client = Answering()
    monkeypatch.setattr(queries, "with_client", lambda use: run_to_end(use(client)))
    done = CliRunner().invoke(app, ["list", *arguments])
    assert (done.exit_code, done.stdout) == (0, "no workers\n")
    (wanted,) = client.wanted
    assert (wanted.terminated_since is not None) is hides
    if wanted.terminated_since:
        assert datetime.now(UTC) - wanted.terminated_since - timedelta(days=1) < timedelta(minutes=1)


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), ConnectionError("gone")])
@pytest.mark.parametrize("given", [None, "mine"])
def test_who_is_cut_off_from_a_command_learns_its_id(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ends: BaseException,
    given: str | None,
) -> None:
    """It may have been sent, and an instance may run that nobody asks for any more."""
    client = Answering(ends=ends)
    monkeypatch.setattr(commands, "with_client", lambda use: run_to_end(use(client)))
    with pytest.raises((KeyboardInterrupt, typer.Exit)):
        commands.create("lab", command_id=given)
    (used,) = client.sent
    assert used == given or given is None
    assert f"cml-workers operation {used}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statuses", "found"),
    [
        (["RUNNING", "FAILED", "TERMINATED"], 0),
        (["TERMINATED", "FAILED", "STOPPED"], 2),
        (["TERMINATED", "FAILED"], 1),
        (["TERMINATED"], 0),
        (["RUNNING", "STOPPED"], None),
        (["FAILED", "FAILED", "TERMINATED"], None),
    ],
)
def test_a_worker_that_ended_gives_its_name_free(statuses: list[str], found: int | None) -> None:
    views = [VIEW.model_copy(update={"id": uuid4(), "status": WorkerStatus(status)}) for status in statuses]
    client = cast("WorkerClient", Answering(*views))
    if found is None:
        with pytest.raises(typer.Exit):
            asyncio.run(resolve(client, "lab"))
    else:
        assert asyncio.run(resolve(client, "lab")) == views[found].id


def test_a_name_from_a_tag_may_be_longer_than_one_that_can_be_asked_for() -> None:
    view = VIEW.model_copy(update={"name": "n" * 256})
    client = Answering(view, view.model_copy(update={"id": uuid4(), "name": "n" * 255}))
    assert asyncio.run(resolve(cast("WorkerClient", client), "n" * 256)) == view.id


def test_a_query_without_an_answer_is_no_command_whose_operation_can_be_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def ask() -> None:
        raise NoAnswerError(str(uuid4()), 15)

    with pytest.raises(typer.Exit) as ended:
        run_to_end(ask())
    assert ended.value.exit_code == 3
    assert capsys.readouterr().err == "cml-workers: no answer within 15 s; ask again\n"


def test_letters_of_every_language_are_shown_as_they_are() -> None:
    name = "\u06a9\u062a\u0627\u0628\u200c\u062e\u0627\u0646\u0647"
    assert as_text({"Name": name}) == f'{{"Name": "{name}"}}'
    with pytest.raises(typer.Exit), err.capture() as captured:
        asyncio.run(resolve(cast("WorkerClient", Answering()), name))
    assert name in captured.get()


@pytest.mark.parametrize("pattern", ["cml.workers.#", "created", "cml.*", "", "cml.worker.created.v1.#.x"])
def test_a_pattern_that_no_event_matches_is_an_error(pattern: str) -> None:
    """It would wait without end, and look as if nothing happened."""
    done = CliRunner().invoke(app, ["watch", pattern])
    assert done.exit_code == 2
    assert "no event matches" in done.stderr
    assert "cml.worker.created.v1" in done.stderr


@pytest.mark.parametrize(
    "pattern", ["#", "cml.#", "cml.worker.#", "cml.worker.created.v1", "cml.worker.*.v1", "#.created.#"]
)
def test_a_pattern_that_an_event_matches_is_followed(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.setenv("RABBITMQ_URL", "amqp://127.0.0.1:1/")
    done = CliRunner().invoke(app, ["watch", pattern])
    assert (done.exit_code, "cannot connect" in done.stderr) == (3, True)
