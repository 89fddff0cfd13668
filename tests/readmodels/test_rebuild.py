"""A rebuild beside the live read model: resumed after a crash, compared, switched, and seen whole or not at all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from cml_contracts.events import TagsUpdated, TagsUpdateRequested
from cml_workers.eventstore.following import follow_from
from cml_workers.eventstore.names import WORKER_STREAMS
from cml_workers.eventstore.port import NewEvent
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.readmodels.generation import State
from cml_workers.readmodels.generations import Generations, NewerReadModelError
from cml_workers.readmodels.model import active
from cml_workers.readmodels.rebuild import Progress, Rebuild, SupersededError
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.tables import OPERATIONS, WORKERS
from cml_workers.sql.errors import DatabaseUnavailableError
from cml_workers.sql.port import Database, T, Work
from support.projecting import CREATED, LAUNCH, LAUNCHED, Projected


@asynccontextmanager
async def following(projected: Projected) -> AsyncIterator[None]:
    """Rows come as events come, as in a projector."""
    writer = projected.new_writer()
    task = asyncio.create_task(
        follow_from(
            projected.store, writer.resumed, writer.handle, prefix=WORKER_STREAMS, backoff=lambda _: 0.01
        )
    )
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.timeout(240)
async def test_a_rebuild_beside_commands_and_queries(projected: Projected):
    """No query sees half of it: the workers and their operations that it sees belong together."""
    workers = await projected.workers(30, CREATED, LAUNCH, LAUNCHED)
    reported: list[Progress] = []
    done = False
    shown = 0

    async def command() -> None:
        number = 0
        while not done:
            number += 1
            for worker_id in workers[:5]:
                tags = {"a": str(number)}
                await projected.record(
                    worker_id,
                    TagsUpdateRequested(operation_id=f"{number}", tags=tags),
                    TagsUpdated(operation_id=f"{number}", tags=tags),
                )
                await asyncio.sleep(0.002)

    async def query() -> None:
        nonlocal shown
        owners = sa.select(active(OPERATIONS).c.worker_id).where(
            active(OPERATIONS).c.command_id.like("create/%")
        )
        query = sa.select(sa.func.count(), sa.func.sum(active(WORKERS).c.id.in_(owners).cast(sa.Integer)))
        query = query.select_from(active(WORKERS))
        while not done:
            row = await projected.database.read(lambda connection: connection.execute(query).one())
            assert tuple(row) == (30, 30)
            shown += 1
            await asyncio.sleep(0.001)

    await projected.catch_up()
    async with following(projected):
        beside = [asyncio.create_task(command()), *(asyncio.create_task(query()) for _ in range(3))]
        try:
            rebuilt = await Rebuild(projected.store, projected.generations, on_progress=reported.append).run()
            await asyncio.sleep(0.1)
        finally:
            done = True
            await asyncio.gather(*beside)
        await projected.caught_up()
    assert (rebuilt.switched, rebuilt.differences) == (True, [])
    assert rebuilt.generation.number == 2
    assert rebuilt.events == rebuilt.generation.events >= 90
    assert reported[-1].percent is not None
    assert reported[-1].percent > 90
    assert shown > 10
    now = await projected.active()
    assert (now.number, now.events) == (2, len(await projected.stored()))
    again = await Rebuild(projected.store, projected.generations, switch=False, keep=False).run()
    assert again.differences == []  # what followed after the switch is equal as well


async def test_differences_are_listed_and_repaired(projected: Projected):
    one, two = await projected.workers(2, CREATED, LAUNCH, LAUNCHED)
    await projected.catch_up()

    def damage(connection: sa.Connection) -> None:
        connection.execute(sa.update(WORKERS).where(WORKERS.c.id == one).values(name="damaged"))
        connection.execute(sa.delete(OPERATIONS).where(OPERATIONS.c.worker_id == two))

    await projected.database.write(damage)
    rebuilt = await Rebuild(projected.store, projected.generations).run()
    found = {each.table: (each.missing, each.added, each.examples) for each in rebuilt.differences or ()}
    assert found == {"workers": (1, 1, (str(one),)), "operations": (0, 1, (f"create/{two}",))}
    assert await projected.names() == ["lab", "lab"]


async def test_one_that_is_only_to_verify_leaves_nothing_behind(projected: Projected):
    await projected.workers(2, CREATED, LAUNCH)
    await projected.catch_up()
    before = await projected.active()
    rebuilt = await Rebuild(projected.store, projected.generations, switch=False, keep=False).run()
    assert (rebuilt.differences, rebuilt.switched) == ([], False)
    assert await projected.active() == before
    assert await projected.generations.numbered(2) is None


class Dying(Database):
    """A database that its process calls so many times, and no more."""

    def __init__(self, database: Database, calls: int) -> None:
        self.database, self.calls = database, calls

    async def _call(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise asyncio.CancelledError

    async def read(self, work: Work[T]) -> T:
        await self._call()
        return await self.database.read(work)

    async def snapshot(self, work: Work[T], *, lasting: bool = False) -> T:
        await self._call()
        return await self.database.snapshot(work, lasting=lasting)

    async def write(self, work: Work[T], *, lasting: bool = False) -> T:
        await self._call()
        return await self.database.write(work, lasting=lasting)

    async def close(self) -> None:
        """It is somebody else's."""


async def test_a_crash_at_any_call_leaves_one_active_and_is_resumed(
    projected: Projected, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cml_workers.readmodels.rebuild.BATCH", 4)
    await projected.workers(5, CREATED, LAUNCH, LAUNCHED)
    await projected.catch_up()
    wanted = await projected.names(sort="name")
    for calls in range(60):
        generations = Generations(WORKERS_VIEW, Dying(projected.database, calls))
        number = (await projected.active()).number
        try:
            rebuilt = await Rebuild(projected.store, generations).run()
        except asyncio.CancelledError:
            assert await projected.names(sort="name") == wanted  # exactly one is active, and whole
            continue
        assert rebuilt.differences == []
        break
    assert calls > 6
    active = (await projected.active()).number
    assert active > number
    for gone in range(1, active):
        assert await projected.generations.numbered(gone) is None


async def test_a_connection_that_breaks_is_no_reason_to_begin_again(projected: Projected):
    class Flaky(Dying):
        async def _call(self) -> None:
            self.calls += 1
            if not self.calls % 7:
                raise DatabaseUnavailableError("planted")

    await projected.workers(5, CREATED, LAUNCH, LAUNCHED)
    await projected.catch_up()
    generations = Generations(WORKERS_VIEW, Flaky(projected.database, 0))
    rebuilt = await Rebuild(projected.store, generations, backoff=lambda _: 0.001).run()
    assert rebuilt.switched
    assert rebuilt.generation.events == 15


async def test_one_that_never_rests_is_compared_all_the_same(
    projected: Projected, monkeypatch: pytest.MonkeyPatch
):
    """Whatever the rebuild does, an event is recorded and shown just before."""
    monkeypatch.setattr("cml_workers.readmodels.rebuild.PATIENCE", 0.5)
    (one,) = await projected.workers(1, CREATED, LAUNCH, LAUNCHED)
    await projected.catch_up()

    class Busy(Dying):
        async def _call(self) -> None:
            await projected.record(one, TagsUpdateRequested(operation_id=str(uuid4()), tags={}))
            await projected.catch_up()

    def damage(connection: sa.Connection) -> None:
        connection.execute(sa.delete(OPERATIONS).where(OPERATIONS.c.command_id == f"create/{one}"))

    busy = Generations(WORKERS_VIEW, Busy(projected.database, 0))
    verified = await Rebuild(projected.store, busy, switch=False, keep=False).run()
    assert verified.differences == []
    await projected.database.write(damage)
    rebuilt = await Rebuild(projected.store, busy).run()
    assert [(each.table, each.missing, each.added) for each in rebuilt.differences or ()] == [
        ("operations", 0, 1)
    ]
    assert rebuilt.switched
    await projected.catch_up()
    assert (await projected.active()).events == len(await projected.stored())


async def test_verifying_leaves_an_unfinished_rebuild_alone(projected: Projected):
    """It would drop what a projector fills, or what was prepared for the next version of the program."""
    await projected.workers(2, CREATED, LAUNCH, LAUNCHED)
    await projected.catch_up()
    prepared = (await Rebuild(projected.store, projected.generations, switch=False).run()).generation
    assert prepared.state is State.BUILDING
    verified = await Rebuild(projected.store, projected.generations, switch=False, keep=False).run()
    assert verified.differences == []
    assert await projected.generations.begin() == prepared
    assert (await Rebuild(projected.store, projected.generations).run()).generation.number == prepared.number


async def test_an_older_program_never_writes_into_a_newer_ones_tables(
    projected: Projected, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cml_workers.readmodels.rebuild.BATCH", 4)
    await projected.workers(5, CREATED, LAUNCH, LAUNCHED)
    await projected.catch_up()
    newer = Generations(replace(WORKERS_VIEW, version=WORKERS_VIEW.version + 1), projected.database)

    class Late(Dying):
        async def _call(self) -> None:
            self.calls -= 1
            if not self.calls:
                await newer.begin()

    for calls in range(2, 7):
        older = Generations(WORKERS_VIEW, Late(projected.database, calls))
        with pytest.raises((SupersededError, NewerReadModelError)):
            await Rebuild(projected.store, older, backoff=lambda _: 0.001).run()
        theirs = await newer.begin()
        assert (theirs.position, theirs.events) == (None, 0)
        await newer.drop(theirs)


async def test_a_store_that_was_restored_is_rebuilt_from(
    projected: Projected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The active generation's position is not in it; what is followed from there says: rebuild."""
    monkeypatch.setattr("cml_workers.readmodels.rebuild.PATIENCE", 0.3)
    await projected.workers(3, CREATED, LAUNCH, LAUNCHED)
    await projected.catch_up()
    restored = SqliteEventStore(tmp_path / "restored.sqlite3")
    try:
        beside = Projected(restored, projected.database)
        await beside.workers(1, CREATED, LAUNCH)
        rebuilt = await Rebuild(restored, projected.generations).run()
        assert (rebuilt.differences, rebuilt.switched, rebuilt.generation.events) == (None, True, 2)
        assert len(await projected.names()) == 1
    finally:
        await restored.close()


async def test_of_two_rebuilds_at_once_one_ends(projected: Projected):
    await projected.workers(5, CREATED, LAUNCH, LAUNCHED)
    await projected.catch_up()
    both = [Rebuild(projected.store, projected.generations, backoff=lambda _: 0.001) for _ in range(2)]
    done = await asyncio.gather(*(each.run() for each in both), return_exceptions=True)
    assert sorted(type(each).__name__ for each in done) in (
        ["Rebuilt", "SupersededError"],
        ["Rebuilt", "Rebuilt"],
    )
    assert all(isinstance(each, SupersededError) or not isinstance(each, BaseException) for each in done)
    await projected.caught_up()
    assert (await Rebuild(projected.store, projected.generations).run()).differences == []


async def test_beside_one_that_stands_the_new_one_has_all_that_is_stored(projected: Projected):
    """The projector is stopped, and commands go on. The two are compared where the old one stands."""
    workers = await projected.workers(3, CREATED, LAUNCH)
    await projected.catch_up()
    for worker_id in workers:
        await projected.record(worker_id, LAUNCHED)
    rebuilt = await Rebuild(projected.store, projected.generations).run()
    assert (rebuilt.differences, rebuilt.switched, rebuilt.generation.events) == ([], True, 9)
    await projected.catch_up()
    assert (await projected.active()).events == 9


async def test_a_checkpoint_between_events_can_be_compared(projected: Projected):
    """Followers are given places without a matching event, and not all of them the same."""
    await projected.workers(2, CREATED, LAUNCH)
    await projected.catch_up()
    at = await projected.active()
    for expected in range(-1, 2):
        await projected.store.append("other", [_event()], expected=expected)
    last = str(int(at.position or "") + 2)
    await projected.generations.write(at, {}, last)
    rebuilt = await Rebuild(projected.store, projected.generations).run()
    assert (rebuilt.differences, rebuilt.generation.position) == ([], last)


def _event() -> NewEvent:
    return NewEvent(uuid4(), "other", b"{}", b"{}")
