"""``cml-workers migrate`` as an operator runs it."""

import subprocess
from pathlib import Path

import pytest

from support.postgresql import emptied
from support.running import COMMAND, unconfigured

REVISIONS = sorted((Path(__file__).parents[1] / "services/cml_workers/sql/migrations/versions").glob("0*.py"))


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'read-model.sqlite3'}"
    return await emptied(request.getfixturevalue("postgresql_url"))


def run(url: str, *arguments: str) -> tuple[int, list[str], str]:
    """Its exit code, the lines it says, and what is wrong."""
    done = subprocess.run(
        [COMMAND, "migrate", *arguments],
        env={**unconfigured(), "DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_it_says_what_is_to_be_done_does_it_and_does_it_once(url: str) -> None:
    code, to_do, _ = run(url, "--check")
    assert code == 1
    assert [line.split()[:3] for line in to_do] == [["to", "do:", each.name[:4]] for each in REVISIONS]
    code, done, _ = run(url)
    assert (code, done) == (0, [line.replace("to do", "done") for line in to_do])
    last = REVISIONS[-1].name[:4]
    for again in ((), ("--check",)):
        assert run(url, *again) == (0, [f"up to date: {last}"], "")


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_a_database_that_does_not_answer_is_another_exit_code(check: tuple[str, ...]) -> None:
    code, _, said = run("postgresql://cml@127.0.0.1:1/cml", *check)
    assert (code, said.startswith("cml-workers: no answer from the database")) == (3, True)


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_a_url_that_is_none_is_a_wrong_configuration(check: tuple[str, ...]) -> None:
    code, _, said = run("mysql://cml", *check)
    assert (code, said.startswith("cml-workers: DATABASE_URL must begin with ")) == (2, True)
