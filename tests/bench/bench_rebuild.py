"""A read model rebuilt beside the live one while commands run: progress, rate, equal, switched, no query saw half of it.

    PYTHONPATH=tests .venv/bin/python -m bench.bench_rebuild [--events 100000] [--workers 2000]

The store is an SQLite file, and so is the database, unless DATABASE_URL names a server: then it is one of our own there. A projector's runner follows in the same process as
the rebuild; another task appends tag updates all the while, and readers check in a loop that every query sees all workers, each
with its first operation, and revisions that only grow. Exits with 1 if any of it is not so.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa
import structlog
import uvloop

from cml_contracts.events import TagsUpdated, TagsUpdateRequested, WorkerEvent
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.port import EventStore
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import append
from cml_workers.readmodels.generation import Generation
from cml_workers.readmodels.generations import Generations
from cml_workers.readmodels.model import active
from cml_workers.readmodels.rebuild import Progress, Rebuild, Rebuilt
from cml_workers.readmodels.runner import Runner
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.tables import OPERATIONS, WORKERS
from cml_workers.sql.port import Database
from support.given import NOW, recorded
from support.postgresql import any_postgresql
from support.projecting import CREATED, LAUNCH, LAUNCHED, opened

FIRST = 3
"""Events of a worker before its tag updates."""
_WORKERS, _OPERATIONS = active(WORKERS), active(OPERATIONS)
_SEEN = sa.select(
    sa.select(sa.func.count()).select_from(_WORKERS).scalar_subquery(),
    sa.select(sa.func.count())
    .select_from(_OPERATIONS)
    .where(_OPERATIONS.c.command_id.between("create/", "create0"))
    .scalar_subquery(),
)
"""The workers and their first operations, counted in one statement."""
_ONE = sa.select(_WORKERS.c.view).where(_WORKERS.c.id == sa.bindparam("id", type_=sa.Uuid))


@dataclass
class Load:
    """Commands and queries beside the rebuild."""

    store: SqliteEventStore
    database: Database
    workers: list[Worker]
    appended: int = 0
    queries: int = 0
    slowest: float = 0.0
    broken: list[str] = field(default_factory=list)
    ended: bool = False

    async def command(self) -> None:
        """Update tags of one worker after the other, about a hundred times a second."""
        number = 0
        while not self.ended:
            number += 1
            place = number % len(self.workers)
            self.workers[place] = await _record(self.store, self.workers[place], _tags(f"live-{number}"))
            self.appended += 2
            await asyncio.sleep(0.01)

    async def query(self) -> None:
        """Whether what one query sees belongs together, and never goes back."""
        revision = -1
        watched = self.workers[1].id
        while not self.ended:
            began = time.perf_counter()
            seen = await self.database.read(lambda connection: tuple(connection.execute(_SEEN).one()))
            if seen != (len(self.workers), len(self.workers)):
                self.broken.append(f"a query saw {seen} of {len(self.workers)} workers and operations")
            view = await self.database.read(lambda connection: connection.scalar(_ONE, {"id": watched}))
            now = json.loads(view)["revision"] if view else -1
            if now < revision:
                self.broken.append(f"a query saw revision {now} after {revision}")
            revision = now
            self.queries += 2
            self.slowest = max(self.slowest, time.perf_counter() - began)
            await asyncio.sleep(0.01)


async def _record(store: EventStore, worker: Worker, events: Sequence[WorkerEvent]) -> Worker:
    """The worker with its new revision, and without a state, which takes memory."""
    history = []
    for event in events:
        operation = {"operation_id": f"{getattr(event, 'operation_id', '')}/{worker.id}"}
        own = event.model_copy(update=operation) if hasattr(event, "operation_id") else event
        history.append(recorded(worker, own, NOW, "bench"))
    await append(store, worker, [(each.event, each.metadata) for each in history])
    return worker._replace(revision=worker.revision + len(history))


def _tags(command_id: str) -> Sequence[WorkerEvent]:
    tags = {"Name": "lab", "course": command_id}
    return (
        TagsUpdateRequested(operation_id=command_id, tags=tags),
        TagsUpdated(operation_id=command_id, tags=tags),
    )


async def filled(store: EventStore, events: int, workers: int) -> list[Worker]:
    """Streams of equal length, interleaved as commands of many workers are."""
    fleet = [Worker(uuid4()) for _ in range(workers)]
    for start in range(0, workers, 200):
        some = range(start, min(start + 200, workers))
        made = await asyncio.gather(*(_record(store, fleet[n], (CREATED, LAUNCH, LAUNCHED)) for n in some))
        fleet[start : start + len(made)] = made
    for number in range((events // workers - FIRST) // 2):
        for start in range(0, workers, 200):
            some = range(start, min(start + 200, workers))
            made = await asyncio.gather(*(_record(store, fleet[n], _tags(f"{number}")) for n in some))
            fleet[start : start + len(made)] = made
    return fleet


async def _until_caught_up(generations: Generations, events: int) -> Generation:
    while True:
        now = await generations.active()
        if now is not None and now.events >= events:
            return now
        await asyncio.sleep(0.05)


async def measure(events: int, workers: int, folder: Path, url: str) -> bool:
    """One rebuild, in an empty database; whether all was as it should be."""
    store = SqliteEventStore(folder / "events.sqlite3")
    fleet = await filled(store, events, workers)
    stored = sum(worker.revision + 1 for worker in fleet)
    async with opened(url) as database:
        runner = Runner(model=WORKERS_VIEW, store=store, database=database)
        generations = Generations(WORKERS_VIEW, database)
        live = asyncio.create_task(runner.run())
        began = time.perf_counter()
        await _until_caught_up(generations, stored)
        print(f"live: {stored} events of {workers} workers in {time.perf_counter() - began:.1f} s")
        load = Load(store, database, fleet)
        beside = [asyncio.create_task(load.command()), *(asyncio.create_task(load.query()) for _ in range(2))]
        rebuilt = await Rebuild(store, generations, on_progress=Shown()).run()
        await asyncio.sleep(1)
        load.ended = True
        await asyncio.gather(*beside)
        now = await _until_caught_up(generations, stored + load.appended)
        verified = await Rebuild(store, generations, switch=False, keep=False).run()
        live.cancel()
        with suppress(asyncio.CancelledError):
            await live
    await store.close()
    return _reported(rebuilt, verified, now, load)


class Shown:
    """A line for every tenth of the rebuild."""

    def __init__(self) -> None:
        self._next = 10.0

    def __call__(self, progress: Progress) -> None:
        if progress.percent is not None and progress.percent >= self._next:
            print(
                f"  {progress.percent:3.0f} %  {progress.events} events, {progress.rate:.0f}/s, "
                f"position {progress.position}",
                flush=True,
            )
            self._next += 10


def _reported(rebuilt: Rebuilt, verified: Rebuilt, now: Generation, load: Load) -> bool:
    print(f"rebuilt: {rebuilt.events} events in {rebuilt.seconds:.1f} s, {rebuilt.rate:.0f}/s")
    print(
        f"beside it: {load.appended} events appended, {load.queries} queries, the slowest pair {load.slowest:.3f} s"
    )
    checks = {
        "equal when it was switched": rebuilt.differences is not None and not rebuilt.differences,
        "switched": rebuilt.switched and now.number == rebuilt.generation.number,
        "no query saw half of it, or went back": not load.broken,
        "equal after what came since": verified.differences is not None and not verified.differences,
    }
    for what, so in checks.items():
        print(f"{what}: {'yes' if so else 'NO'}")
    for each in [*load.broken[:5], *(rebuilt.differences or ()), *(verified.differences or ())]:
        print(f"  {each}")
    return all(checks.values())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2_000)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        url = f"sqlite:///{folder}/read-model.sqlite3"
        if os.environ.get("DATABASE_URL"):
            url, _ = stack.enter_context(any_postgresql())
        good = uvloop.run(measure(given.events, given.workers, Path(folder), url))
    sys.exit(not good)


if __name__ == "__main__":
    main()
