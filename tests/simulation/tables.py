"""The read model in memory, as a process sees a database over a network.

The rows are in SQLite's memory, so what runs here are the very statements that ship.
"""

import sqlite3
from collections.abc import Sequence
from functools import cache, partial

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from cml_contracts.queries import OperationView, WorkerView
from cml_workers.domain.fold import evolve
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.names import worker_of
from cml_workers.eventstore.port import StoredEvent
from cml_workers.eventstore.worker_streams import decode
from cml_workers.foundation.outages import Dependency, Outages
from cml_workers.readmodels.batch import changes_of
from cml_workers.readmodels.generation import GENERATIONS, Generation, State
from cml_workers.readmodels.generations import Generations
from cml_workers.readmodels.model import active
from cml_workers.readmodels.waiting import HELD
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.tables import OPERATIONS, WORKERS
from cml_workers.sql.errors import DatabaseUnavailableError
from cml_workers.sql.port import Database, T, Work
from simulation.store import LONGEST_OUTAGE
from simulation.world import Process

_ENGINE = sa.create_engine("sqlite://", poolclass=NullPool, isolation_level="AUTOCOMMIT")
"""Each of its connections is a database of its own; what it compiles serves all of them."""


class MemoryDatabase(Database):
    """What a database holds: every piece of work is one moment."""

    def __init__(self, content: bytes | None = None) -> None:
        self._connection = _ENGINE.connect()
        if content is None:
            GENERATIONS.create(self._connection)
            HELD.create(self._connection)
        else:
            self._raw.deserialize(content)

    @property
    def content(self) -> bytes:
        """All of it, to begin another one with."""
        return self._raw.serialize()

    @property
    def _raw(self) -> sqlite3.Connection:
        raw = self._connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        return raw

    def seen(self, work: Work[T]) -> T:
        """What is there now."""
        return work(self._connection)

    def change(self, work: Work[T]) -> T:
        """Do it in a transaction."""
        self._connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            result = work(self._connection)
        except BaseException:
            self._connection.exec_driver_sql("ROLLBACK")
            raise
        self._connection.exec_driver_sql("COMMIT")
        return result

    async def read(self, work: Work[T]) -> T:
        return self.seen(work)

    async def snapshot(self, work: Work[T], *, lasting: bool = False) -> T:
        return self.seen(work)

    async def write(self, work: Work[T], *, lasting: bool = False) -> T:
        return self.change(work)

    async def close(self) -> None:
        self._connection.close()


@cache
def _with_tables() -> bytes:
    """What a database is as a read model's first generation is there, without a row."""
    database = MemoryDatabase()
    generations = Generations(WORKERS_VIEW, database)
    first = database.change(generations._begin)
    assert database.change(partial(generations._switch, first, None))
    return database.content


class Tables:
    """What is in the database: the read model, active and without a row."""

    def __init__(self) -> None:
        self.database = MemoryDatabase(_with_tables())
        self.generations = Generations(WORKERS_VIEW, self.database)
        self.away_until = 0.0
        """Until when it answers nobody."""

    @property
    def active(self) -> Generation:
        """What queries see."""
        found = self.database.seen(partial(self.generations._find, state=State.ACTIVE))
        assert found is not None
        return found

    @property
    def workers(self) -> list[WorkerView]:
        views = self.database.seen(lambda connection: connection.scalars(_VIEWS_OF_WORKERS).all())
        return [WorkerView.model_validate_json(view) for view in views]

    @property
    def operations(self) -> list[OperationView]:
        views = self.database.seen(lambda connection: connection.scalars(_VIEWS_OF_OPERATIONS).all())
        return [OperationView.model_validate_json(view) for view in views]

    def project(self, events: Sequence[StoredEvent]) -> None:
        """The rows of a worker's whole stream, as they were before anything began."""
        worker = Worker(worker_of(events[0].stream))
        steps = []
        for stored in events:
            before, recorded = worker, decode(stored)
            worker = evolve(before, recorded)
            steps.append((before, recorded, worker))
        write = partial(
            self.generations._write,
            self.active,
            changes_of(WORKERS_VIEW, steps),
            events[-1].position,
            len(steps),
        )
        self.database.change(write)


_VIEWS_OF_WORKERS = sa.select(active(WORKERS).c.view)
_VIEWS_OF_OPERATIONS = sa.select(active(OPERATIONS).c.view)


class DatabaseOfProcess(Database):
    """The port; a transaction is one moment, before and after which anything happens."""

    def __init__(self, process: Process, tables: Tables) -> None:
        self.process = process
        self.tables = tables
        self.dependency = Dependency("database", self.ping, (DatabaseUnavailableError,), sleep=process.sleep)
        self.outages = Outages(self.dependency)

    async def ping(self) -> None:
        """Raise DatabaseUnavailableError while it answers nobody."""
        await self.process.sleep(0.01)
        if self._away:
            raise DatabaseUnavailableError("no connection")

    async def read(self, work: Work[T]) -> T:
        await self._begin("query")
        return self.tables.database.seen(work)

    async def snapshot(self, work: Work[T], *, lasting: bool = False) -> T:
        return await self.read(work)

    async def write(self, work: Work[T], *, lasting: bool = False) -> T:
        await self._begin("rows")
        result = self.tables.database.change(work)
        await self._end("rows")
        return result

    async def close(self) -> None:
        await self.process.living()

    async def _begin(self, what: str) -> None:
        await self.process.step(f"{what} begins")
        world = self.process.world
        if self._away:
            raise DatabaseUnavailableError("no connection")
        if world.happens("unavailable", what):
            if world.random.random() < 0.3:
                world.seen["outage", "database"] += 1
                self.tables.away_until = world.loop.time() + world.random.random() * LONGEST_OUTAGE
            raise DatabaseUnavailableError("no connection")

    @property
    def _away(self) -> bool:
        return self.tables.away_until > self.process.world.loop.time()

    async def _end(self, what: str) -> None:
        await self.process.step(f"{what} end")
        if self.process.world.happens("lost answer", what):
            raise DatabaseUnavailableError("the answer was lost")
