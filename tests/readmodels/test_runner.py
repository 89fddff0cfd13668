"""The runner of a read model: what it does by itself when its code has another version than the tables."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import sqlalchemy as sa

from cml_workers.domain.worker import Worker
from cml_workers.readmodels.changes import Change, Put
from cml_workers.readmodels.generation import Generation
from cml_workers.readmodels.generations import Generations, NewerReadModelError
from cml_workers.readmodels.model import ReadModel, active
from cml_workers.readmodels.rebuild import Rebuild
from cml_workers.readmodels.runner import Runner
from cml_workers.readmodels.workers import WORKERS_VIEW
from support.projecting import CREATED, LAUNCH, LAUNCHED, Projected

NEXT = replace(WORKERS_VIEW, version=WORKERS_VIEW.version + 1, usable=frozenset({WORKERS_VIEW.version}))
"""The code of a later version that can use the tables of this one."""
INCOMPATIBLE = replace(NEXT, usable=frozenset())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(projected: Projected, model: ReadModel) -> AsyncIterator[Runner]:
    runner = Runner(model=model, store=projected.store, database=projected.database)
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_new_version_is_built_while_the_old_one_is_followed(projected: Projected):
    (worker_id,) = await projected.workers(1, CREATED, LAUNCH)
    await projected.catch_up()
    async with running(projected, NEXT) as runner:
        await until(lambda: runner.problem() is None)
        async with asyncio.timeout(30):
            while (await projected.active()).version != NEXT.version:
                await asyncio.sleep(0.01)
        await projected.record(worker_id, LAUNCHED)
        await projected.caught_up()
    assert (await projected.active()).number == 2
    assert await projected.generations.numbered(1) is None


async def test_of_a_version_that_cannot_be_used_queries_wait_for_the_new_one(
    projected: Projected, monkeypatch: pytest.MonkeyPatch
):
    await projected.workers(3, CREATED, LAUNCH)
    await projected.catch_up()
    go_on = asyncio.Event()
    original = Rebuild._follow

    async def held(self: Rebuild, *given: object) -> Generation:
        found = await original(self, *given)  # type: ignore[arg-type]
        await go_on.wait()
        return found

    monkeypatch.setattr(Rebuild, "_follow", held)
    async with running(projected, INCOMPATIBLE) as runner:
        assert runner.problem() == "read model workers is being rebuilt"  # before anything is known
        await until(lambda: runner.problem() == "read model workers is being rebuilt (100 %)")
        go_on.set()
        await until(lambda: runner.problem() is None)
        await projected.caught_up()
    assert (await projected.active()).version == INCOMPATIBLE.version


def _names(worker: Worker) -> Iterator[Change]:
    yield Put("names", {"id": worker.id})


async def test_a_read_model_that_is_new_is_built_from_the_beginning(projected: Projected):
    await projected.workers(3, CREATED, LAUNCH)
    table = sa.Table("names", sa.MetaData(), sa.Column("id", sa.Uuid, primary_key=True))
    model = ReadModel("names", 1, (table,), _names, lambda *_: (), {})
    async with running(projected, model) as runner:
        await until(lambda: runner.problem() is None)
        count = sa.select(sa.func.count()).select_from(active(table))
        assert await projected.database.read(lambda connection: connection.scalar(count)) == 3


async def test_an_older_program_leaves_a_newer_read_model_alone(projected: Projected):
    await Rebuild(projected.store, Generations(NEXT, projected.database)).run()
    runner = Runner(model=WORKERS_VIEW, store=projected.store, database=projected.database)
    versions = f"version {NEXT.version} is active, and this program knows version {WORKERS_VIEW.version}"
    with pytest.raises(NewerReadModelError, match=versions):
        await runner.run()


async def test_a_program_that_became_older_while_it_ran_ends(projected: Projected):
    await projected.workers(1, CREATED)
    runner = Runner(
        model=WORKERS_VIEW, store=projected.store, database=projected.database, backoff=lambda _: 0.01
    )
    task = asyncio.create_task(runner.run())
    await until(lambda: runner.following.caught_up)
    await Rebuild(projected.store, Generations(NEXT, projected.database)).run()
    await projected.workers(1, CREATED)
    with pytest.raises(NewerReadModelError):
        async with asyncio.timeout(30):
            await task
