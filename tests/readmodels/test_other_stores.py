"""A read model beside an event store that is not the one it was made from; and one whose database goes back."""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from cml_workers.eventstore.anchor import Anchor
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.names import worker_of
from cml_workers.eventstore.port import Checkpoint, EventStore
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.foundation.tasks import ended
from cml_workers.readmodels.generation import GENERATIONS
from cml_workers.readmodels.model import generation_table
from cml_workers.readmodels.rebuild import Rebuild
from cml_workers.readmodels.runner import Runner
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.fold import worker_row
from cml_workers.readmodels.workers.queries import worker
from support.kurrentdb_standin import KurrentDbStandIn
from support.projecting import CREATED, LAUNCH, LAUNCHED, TAGS, Projected


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cml_workers.eventstore.anchor.LOOKS_AGAIN", 0.02)
    monkeypatch.setattr("cml_workers.eventstore.anchor.MISSING_LOOKS", 1)
    monkeypatch.setattr("cml_workers.readmodels.rebuild.PATIENCE", 0.3)


@asynccontextmanager
async def running(projected: Projected, store: EventStore | None = None) -> AsyncIterator[Runner]:
    runner = Runner(
        model=WORKERS_VIEW,
        store=store or projected.store,
        database=projected.database,
        backoff=lambda _: 0.01,
    )
    task = asyncio.create_task(runner.run())
    try:
        yield runner
        assert not task.done()
    finally:
        await ended(task)


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[EventStore]:
    store = SqliteEventStore(tmp_path / "other.sqlite3")
    yield store
    await store.close()


async def equal_to_the_streams(projected: Projected) -> None:
    for worker_id in {worker_of(each.stream) for each in await projected.stored()}:
        assert await worker(projected.database, worker_id) == worker_row(await projected.folded(worker_id))


async def stopped(runner: Runner) -> str:
    async with asyncio.timeout(30):
        while (problem := runner.elsewhere()) is None:
            await asyncio.sleep(0.01)
    return problem


@pytest.mark.parametrize("grown", [0, 1, 9])
async def test_beside_another_store_it_is_not_written_and_what_to_do_is_said(
    projected: Projected, other: EventStore, grown: int
):
    """Which is empty, or has fewer events or more."""
    await projected.workers(2, CREATED, LAUNCH)
    await projected.catch_up()
    before = await projected.active()
    beside = Projected(other, projected.database)
    await beside.workers(grown, CREATED)
    async with running(projected, other) as runner:
        problem = await stopped(runner)
        assert problem.startswith("the checkpoint of read model workers is another event store's")
        assert problem.endswith("run `cml-workers rebuild workers`")
        assert runner.problem() is None  # queries are answered
        await asyncio.sleep(0.1)
        assert await projected.active() == before
        await Rebuild(other, projected.generations).run()
        async with asyncio.timeout(30):
            while runner.elsewhere() is not None:
                await asyncio.sleep(0.01)
        await beside.workers(1, CREATED)
        await beside.caught_up()
    await equal_to_the_streams(beside)
    assert len(await projected.names()) == grown + 1


async def test_when_its_own_store_is_back_it_goes_on(projected: Projected, other: EventStore):
    (worker_id,) = await projected.workers(1, CREATED, LAUNCH)
    await projected.catch_up()
    async with running(projected, other) as runner:
        await stopped(runner)
    async with running(projected) as runner:
        await projected.record(worker_id, LAUNCHED)
        await projected.caught_up()
        assert runner.elsewhere() is None
    await equal_to_the_streams(projected)


async def test_a_store_that_is_restored_while_it_is_followed_is_noticed(projected: Projected):
    """The server stops, and comes back with what an older backup had, to which other events were added."""
    node = KurrentDbStandIn()
    await node.start()
    store = KurrentDbEventStore(node.uri)
    beside = Projected(store, projected.database)
    await beside.workers(1, CREATED)
    older = copy.deepcopy(node.log)
    async with running(beside) as runner:
        (worker_id,) = await beside.workers(1, CREATED)
        await beside.caught_up()
        assert runner.elsewhere() is None
        node.log = older
        await node.restart()
        await beside.workers(3, CREATED)
        assert f"cml_worker-{worker_id}, revision 0), which this event store does not have" in await stopped(
            runner
        )
    await store.close()
    await node.stop()


async def test_a_checkpoint_of_an_earlier_version_is_taken_over_with_the_next_event(projected: Projected):
    (worker_id,) = await projected.workers(1, CREATED)
    await projected.catch_up()
    await projected.database.write(
        lambda connection: connection.execute(sa.update(GENERATIONS).values(anchor=None))
    )
    async with running(projected) as runner:
        await projected.record(worker_id, LAUNCH)
        await projected.caught_up()
        assert runner.elsewhere() is None
    assert (await projected.active()).anchor == Anchor.of((await projected.stored())[-1])


async def test_a_place_without_an_event_that_was_saved_with_an_empty_store_hides_nothing(
    projected: Projected, other: EventStore
):
    """The wrong store was configured at first, in which others' events were passed over."""
    await projected.writer.resumed()
    await projected.writer.handle([Checkpoint("1000")])
    await projected.workers(2, CREATED)
    async with running(projected):
        await projected.caught_up()
    await equal_to_the_streams(projected)
    assert len(await projected.names()) == 2


async def test_what_a_subscription_had_left_out_is_no_anchor(projected: Projected):
    """It comes at the position of the item before."""
    await projected.workers(1, CREATED, LAUNCH, LAUNCHED)
    first, second, third = await projected.stored()
    await projected.writer.resumed()
    await projected.writer.handle([first, replace(second, position=first.position)])
    assert (await projected.active()).anchor == Anchor.of(first)
    await projected.writer.handle([third])
    assert (await projected.active()).anchor == Anchor.of(third)


async def test_an_unfinished_rebuild_from_another_store_begins_again(projected: Projected, other: EventStore):
    await Projected(other, projected.database).workers(3, CREATED)
    begun = await projected.generations.begin()
    anchor = Anchor(uuid4(), "cml_worker-gone", 0, "2")
    await projected.generations.write(begun, {}, "2", 2, anchor=anchor)
    rebuilt = await Rebuild(other, projected.generations).run()
    assert rebuilt.generation.number > begun.number
    assert rebuilt.generation.events == 3


class Snapshot:
    """The database as it was, as a standby that is promoted has it."""

    def __init__(self, projected: Projected) -> None:
        self._database = projected.database
        self._tables = [GENERATIONS, *(generation_table(table, 1) for table in WORKERS_VIEW.tables)]
        self._rows: dict[str, list[dict[str, object]]] = {}

    async def take(self) -> None:
        self._rows = await self._database.snapshot(self._read)

    async def restore(self) -> None:
        await self._database.write(self._write)

    def _read(self, connection: sa.Connection) -> dict[str, list[dict[str, object]]]:
        return {
            each.name: [dict(row) for row in connection.execute(sa.select(each)).mappings()]
            for each in self._tables
        }

    def _write(self, connection: sa.Connection) -> None:
        for each in self._tables:
            connection.execute(sa.delete(each))
            if self._rows[each.name]:
                connection.execute(sa.insert(each), self._rows[each.name])


@pytest.mark.parametrize("batches", [1, 3])
async def test_a_database_that_goes_back_while_it_is_written_is_filled_again(
    projected: Projected, batches: int
):
    """An asynchronous standby was promoted: transactions that were committed are gone, and the connection does not show it."""
    workers = await projected.workers(3, CREATED, LAUNCH)
    snapshot = Snapshot(projected)
    async with running(projected) as runner:
        await projected.caught_up()
        await snapshot.take()
        before = await projected.active()
        for worker_id in workers[:batches]:
            await projected.record(worker_id, LAUNCHED, *TAGS)
            await projected.caught_up()
        await snapshot.restore()
        assert await projected.active() == before
        await projected.workers(1, CREATED)
        await projected.caught_up()
        assert runner.elsewhere() is None
    await equal_to_the_streams(projected)
    assert (await projected.active()).events == len(await projected.stored())
