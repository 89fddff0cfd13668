"""``cml-workers rebuild`` on the files of a system, running or not."""

import json
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa
import typer

from cml_workers.cli import terminal
from cml_workers.cli.rebuild import rebuild as rebuild_command
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.readmodels.rebuild import Rebuild, SupersededError
from cml_workers.readmodels.workers.tables import WORKERS
from support.projecting import CREATED, LAUNCH, LAUNCHED, Projected, opened
from support.running import COMMAND, unconfigured


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """Of a system that has projected two workers, one of which was damaged since."""
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    async with opened(f"sqlite:///{tmp_path / 'read-model.sqlite3'}") as database:
        projected = Projected(store, database)
        one, _ = await projected.workers(2, CREATED, LAUNCH, LAUNCHED)
        await projected.catch_up()
        damage = sa.update(WORKERS).where(WORKERS.c.id == one).values(name="damaged")
        await database.write(lambda connection: connection.execute(damage).rowcount)
    await store.close()
    return tmp_path


def rebuild(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "rebuild", *arguments],
        env={**unconfigured(), "CML_DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_differences_are_shown_and_gone_afterwards(folder: Path):
    done = rebuild(folder, "workers", "--verify", "--json")
    assert done.returncode == 1, done.stderr
    (reported,) = json.loads(done.stdout)
    assert (reported["events"], reported["switched"]) == (6, False)
    assert [(each["table"], each["missing"], each["added"]) for each in reported["differences"]] == [
        ("workers", 1, 1)
    ]
    done = rebuild(folder)
    assert done.returncode == 0, done.stderr
    assert "workers: 6 events in" in done.stdout
    assert "in use now" in done.stdout
    assert "differences" in done.stdout
    assert "6 events" in done.stderr  # the progress
    done = rebuild(folder, "--verify")
    assert done.returncode == 0, done.stderr
    assert "equal to the one in use before" in done.stdout


def test_a_read_model_that_there_is_not_is_said_to_be_so(folder: Path):
    done = rebuild(folder, "nothing")
    assert (done.returncode, "there are: workers" in done.stderr) == (2, True)


def test_one_that_another_has_replaced_is_said_to_be_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    async def superseded(_: Rebuild) -> None:
        raise SupersededError("another rebuild has replaced this one; run it again")

    monkeypatch.setattr(Rebuild, "run", superseded)
    monkeypatch.setattr(terminal, "configure_logging", lambda _: None)
    monkeypatch.setenv("CML_DATA_DIR", str(folder))
    with pytest.raises(typer.Exit) as raised:
        rebuild_command("workers", verify=True)
    assert raised.value.exit_code == 1
    assert "run it again" in capsys.readouterr().err
