"""The port on SQLite and on PostgreSQL.

SQLite is called in threads, one hop for each call: through its asynchronous driver a query took seven times as much CPU. What
is found by its key takes less than the way to it: SQLite is asked without a thread (readers do not wait for a writer), and
PostgreSQL for many rows at once.
Queries have connections of their own, so that they never take those of the writer.
"""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from cml_workers.foundation.batching import Batcher
from cml_workers.sql.database import answered, dispose, open_database, open_sqlite, patient, transaction
from cml_workers.sql.errors import explained, is_to_be_asked_again
from cml_workers.sql.port import ByKey, Database, DatabaseOptions, Row, T, Work

READERS = 4
"""Queries that SQLite answers side by side."""
MOST_FOUND = 100
"""Rows that PostgreSQL is asked for at once."""
TOGETHER = 0.002
"""Seconds after such a query in which keys are collected for the next one."""


def connect(options: DatabaseOptions | str) -> Database:
    """The database that ``open_database`` opens. Raises DatabaseConfigurationError."""
    engine = open_database(options)
    if engine.dialect.name == "sqlite":
        return SqliteDatabase(open_sqlite(engine.url))
    return PostgresqlDatabase(writer=engine, reader=open_database(options, reader=True))


class SqliteDatabase(Database):
    """A file, which other processes may use as well."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engines = (engine,)
        self._engine = engine
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="database-reader")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database-writer")

    async def read(self, work: Work[T]) -> T:
        return await self._run(self._readers, partial(self._plain, work))

    async def find(self, rows: ByKey, key: Hashable) -> Row | None:
        return self._plain(lambda connection: connection.execute(rows.one, {"key": key}).first())

    async def snapshot(self, work: Work[T], *, lasting: bool = False) -> T:  # noqa: ARG002 - a file answers
        return await self._run(self._readers, partial(self._transaction, work, "DEFERRED"))

    async def write(self, work: Work[T], *, lasting: bool = False) -> T:  # noqa: ARG002 - likewise
        # One that reads before it writes would be refused where another process has written meanwhile.
        return await self._run(self._writer, partial(self._transaction, work, "IMMEDIATE"))

    async def close(self) -> None:
        for threads in (self._readers, self._writer):
            await asyncio.to_thread(threads.shutdown)
        self._engine.dispose()

    async def _run(self, threads: ThreadPoolExecutor, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, job)

    def _plain(self, work: Work[T]) -> T:
        with explained(self._engine), self._engine.connect() as connection:
            return work(connection)

    def _transaction(self, work: Work[T], kind: str) -> T:
        with explained(self._engine), self._engine.connect() as connection:
            connection.exec_driver_sql(f"BEGIN {kind}")
            try:
                result = work(connection)
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                # Some errors have rolled back already.
                if connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
                    connection.exec_driver_sql("ROLLBACK")
                raise
            return result


class PostgresqlDatabase(Database):
    """A server. A connection of the ``reader`` that has gone away is noticed by its query, which is asked again; with it goes the rest of the pool."""

    def __init__(self, *, writer: AsyncEngine, reader: AsyncEngine) -> None:
        self.engines = (writer.sync_engine, reader.sync_engine)
        self._writer = writer
        self._reader = reader
        self._frozen = reader.execution_options(isolation_level="REPEATABLE READ")
        self._found: dict[ByKey, Batcher[Hashable, Row]] = {}

    async def read(self, work: Work[T]) -> T:
        return await _again(self._reader, work)

    async def find(self, rows: ByKey, key: Hashable) -> Row | None:
        batcher = self._found.get(rows)
        if batcher is None:
            batcher = self._found[rows] = Batcher(
                partial(self._find, rows), most=MOST_FOUND, pause=TOGETHER, sleep=asyncio.sleep
            )
        return await batcher.get(key)

    async def _find(self, rows: ByKey, keys: Sequence[Hashable]) -> Mapping[Hashable, Row]:
        found = await self.read(lambda connection: connection.execute(rows.some, {"keys": keys}).all())
        return {row[-1]: row for row in found}

    async def snapshot(self, work: Work[T], *, lasting: bool = False) -> T:
        return await _again(patient(self._frozen) if lasting else self._frozen, work)

    async def write(self, work: Work[T], *, lasting: bool = False) -> T:
        async with transaction(patient(self._writer) if lasting else self._writer) as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        await dispose(self._reader)
        await dispose(self._writer)


async def _again(engine: AsyncEngine, work: Work[T]) -> T:
    """Run it, a second time if that helps at once."""
    async with answered(engine):
        try:
            async with engine.connect() as connection:
                return await connection.run_sync(work)
        except DBAPIError as error:
            if not is_to_be_asked_again(error):
                raise
        async with engine.connect() as connection:
            return await connection.run_sync(work)
