"""A read model of the version before: upgraded while that one still writes and answers, and right at every moment."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
import sqlalchemy as sa

from cml_contracts.events import TerminationRequested, WorkerTerminated
from cml_contracts.queries import GetOperation
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.readmodels.generations import NewerReadModelError
from cml_workers.readmodels.model import ReadModel, active
from cml_workers.readmodels.rebuild import Rebuild
from cml_workers.readmodels.runner import Runner
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.fold import worker_row
from cml_workers.readmodels.workers.queries import pending, worker
from cml_workers.sql.adapters import connect
from cml_workers.sql.database import dispose, migrate, open_database
from cml_workers.sql.port import DatabaseOptions
from support.earlier_model import EARLIER, WORKERS, make_earlier_schema
from support.given import NOW
from support.postgresql import emptied
from support.projecting import CREATED, LAUNCH, LAUNCHED, Projected

END = TerminationRequested(operation_id="end"), WorkerTerminated(operation_id="end")
SHOWN = sa.select(active(WORKERS))
"""As the version before asks."""


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database as the version before made it."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'read-model.sqlite3'}"
    else:
        url = await emptied(request.getfixturevalue("postgresql_url"))
    engine = open_database(url)
    await make_earlier_schema(engine)
    await dispose(engine)
    return url


@pytest.fixture
async def before(url: str, tmp_path: Path) -> AsyncIterator[Projected]:
    """A process of the version before."""
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    database = connect(DatabaseOptions(url, call_seconds=60))
    yield Projected(store, database, EARLIER)
    await database.close()
    await store.close()


async def upgraded(url: str) -> None:
    engine = open_database(url)
    await migrate(engine)
    await dispose(engine)


def runner(projected: Projected, model: ReadModel) -> Runner:
    """A process of one version or the other."""
    return Runner(model=model, store=projected.store, database=projected.database, backoff=lambda _: 0.01)


async def test_it_is_replaced_while_the_version_before_goes_on_writing_and_answering(
    url: str, before: Projected
):
    workers = await before.workers(20, CREATED, LAUNCH)
    answered = 0
    done = asyncio.Event()

    async def command() -> None:
        for worker_id in workers:
            await before.record(worker_id, LAUNCHED, *END)
            await asyncio.sleep(0.02)

    async def answer() -> None:
        nonlocal answered
        while not done.is_set():
            rows = await before.database.read(lambda connection: connection.execute(SHOWN).all())
            assert len(rows) >= 20
            answered += 1
            await asyncio.sleep(0.005)

    old = asyncio.create_task(runner(before, EARLIER).run())
    await before.caught_up()
    answering = asyncio.create_task(answer())
    commanding = asyncio.create_task(command())
    await upgraded(url)
    new = runner(before, WORKERS_VIEW)
    await new.prepare()
    assert new.problem() is None
    following = asyncio.create_task(new.run())
    async with asyncio.timeout(60):
        while (await before.active()).version != WORKERS_VIEW.version:
            await asyncio.sleep(0.01)
        await commanding
        await before.workers(1, CREATED)
        with pytest.raises(NewerReadModelError):  # it learns of it when it writes
            await old
    await before.caught_up()
    done.set()
    await answering
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following
    assert answered
    for worker_id in workers:
        assert await worker(before.database, worker_id) == worker_row(await before.folded(worker_id))
    ended = await before.names(terminated_since=NOW + timedelta(seconds=1))
    assert len(ended) == 1  # the one that came last


async def test_until_then_the_tables_that_are_there_answer_rightly(url: str, before: Projected):
    ended, lives = await before.workers(2, CREATED, LAUNCH, LAUNCHED)
    await before.record(ended, *END)
    await before.catch_up()
    await upgraded(url)
    await runner(before, WORKERS_VIEW).prepare()
    now = Projected(before.store, before.database)
    assert (await now.active()).version == EARLIER.version
    assert len(await now.names()) == 2
    assert len(await now.names(terminated_since=NOW + timedelta(seconds=1))) == 1
    await now.record(lives, *END)
    await now.catch_up()
    assert await now.names(terminated_since=NOW + timedelta(seconds=1)) == []
    assert len(await now.names(terminated_since=NOW)) == 2
    for tag, sort in product(("Name", "Name=lab"), ("name", "created_at")):
        assert await now.names(tag=tag, sort=sort) == ["lab", "lab"], tag
        assert await now.names(tag=tag, sort=sort, owner=CREATED.created_by) == ["lab", "lab"], tag
        assert await now.names(tag=tag, sort=sort, owner="nobody") == [], tag
    for worker_id, operation in ((ended, "create"), (lives, "end")):
        found = await now.ask(GetOperation(command_id=f"{operation}/{worker_id}"))
        assert (found.worker_id, found.data["result"]["outcome"]) == (worker_id, "succeeded")


async def test_pending_operations_of_then_are_reminded_of_by_their_ids(url: str, before: Projected):
    (worker_id,) = await before.workers(1, CREATED, LAUNCH)
    await before.catch_up()
    await upgraded(url)
    await runner(before, WORKERS_VIEW).prepare()
    (found,) = await pending(before.database, NOW + timedelta(seconds=1))
    assert found.operation_id == found.view.command_id == f"create/{worker_id}"


async def test_what_the_version_before_still_makes_is_completed(url: str, before: Projected):
    """Its rebuild ends after the migration: tables and view know nothing of a new column."""
    await before.workers(2, CREATED, LAUNCH)
    await before.catch_up()
    await upgraded(url)
    rebuilt = await Rebuild(before.store, before.generations).run()
    assert rebuilt.switched
    await runner(before, WORKERS_VIEW).prepare()
    now = Projected(before.store, before.database)
    assert (await now.active()).number == rebuilt.generation.number
    assert len(await now.names(terminated_since=NOW)) == 2
    await before.workers(1, CREATED)
    await before.catch_up()  # as it does
    assert len(await now.names()) == 3
    assert (await Rebuild(now.store, now.generations).run()).switched
    assert (await now.active()).version == WORKERS_VIEW.version
