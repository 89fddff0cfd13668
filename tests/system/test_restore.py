"""An event store and a database that were restored from backups: what is said, and what an operator does then."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.ec2 import SimulatorAdmin
from support.missing import missing
from support.postgresql import NoPostgreSQLError, SpawnedPostgreSQL, private_postgresql
from support.running import RunningSystem, problems
from support.servers import OwnServer, own_kurrentdb

pytestmark = pytest.mark.timeout(600)


@dataclass
class Site:
    """A running system, and the servers under it."""

    running: RunningSystem
    file: Path
    kurrentdb: OwnServer
    postgresql: SpawnedPostgreSQL

    def back_up_store(self) -> None:
        shutil.copy(self.file, f"{self.file}.backup")

    def restore_store(self) -> None:
        """While nothing runs."""
        self.kurrentdb.kill()
        shutil.copy(f"{self.file}.backup", self.file)
        self.kurrentdb.start()

    def create(self, name: str) -> None:
        """Under a command id of its own."""
        done = self.running.cli_json("create", name, "--command-id", f"create-{name}")
        assert done["outcome"] == "succeeded"

    def names(self) -> list[str]:
        return sorted(each["name"] for each in self.running.cli_json("list")["workers"])

    def until_listed(self, *names: str) -> None:
        until(lambda: self.names() == [*names])


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    file = tmp_path / "store"
    try:
        with private_postgresql() as postgresql, own_kurrentdb(file) as (uri, kurrentdb):
            running = RunningSystem(
                tmp_path / "data", KURRENTDB_URI=uri, DATABASE_URL=postgresql.url, CML_HEALTH_PORT="0"
            )
            try:
                yield Site(running, file, kurrentdb, postgresql)
            finally:
                running.kill()
    except NoPostgreSQLError as error:
        missing(error)


def test_after_backups_in_the_documented_order_nothing_is_to_be_done(site: Site):
    """The database first, then the store, which so has all that the database knows of."""
    site.running.start()
    site.create("lab-1")
    site.until_listed("lab-1")
    site.postgresql.dump("cml.dump")
    site.create("lab-2")
    site.back_up_store()
    site.create("lab-3")
    site.until_listed("lab-1", "lab-2", "lab-3")
    assert site.running.stop() == 0
    site.restore_store()
    site.running.environment["DATABASE_URL"] = site.postgresql.restore("cml.dump", "restored")
    endpoints = site.running.start()
    site.until_listed("lab-1", "lab-2")
    until(lambda: not problems(endpoints))
    done = site.running.cli("rebuild", "--verify")
    assert "equal to the one in use before" in done.stdout, done.stderr


def test_a_store_that_is_older_than_the_database_waits_for_a_rebuild_and_creates_sent_again_find_their_instances(
    site: Site,
):
    site.running.start()
    site.create("lab-1")
    site.until_listed("lab-1")
    site.back_up_store()
    site.create("lab-2")
    site.until_listed("lab-1", "lab-2")
    assert site.running.stop() == 0
    site.restore_store()
    endpoints = site.running.start()
    until(lambda: "run `cml-workers rebuild workers`" in str(problems(endpoints).get("projector")))
    assert site.names() == ["lab-1", "lab-2"]  # queries are answered, with what the rows say
    done = site.running.cli("rebuild", "workers")
    assert done.returncode == 0, done.stderr
    site.until_listed("lab-1")
    until(
        lambda: not problems(endpoints)
    )  # without a restart; the relay goes on from what it had saved by then

    site.create("lab-2")  # its instance runs, and nobody knows of it
    site.until_listed("lab-1", "lab-2")
    assert len(SimulatorAdmin(endpoints["ec2"]).instances()) == 2
