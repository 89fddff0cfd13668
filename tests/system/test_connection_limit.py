"""The projector as a database user that may have no more connections than ``docs/operations.md`` says."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]
import pytest

from bench.bench_rebuild import filled
from cml_contracts.client import WorkerClient
from cml_contracts.deadletters import ListDeadLetters
from cml_contracts.queries import ListCMLWorkers
from cml_contracts.results import OperationResult
from cml_workers.eventstore.relay_stream import begin
from cml_workers.eventstore.sqlite import SqliteEventStore
from support.buses import emptied
from support.missing import missing
from support.ports import free_port
from support.postgresql import NoPostgreSQLError, SpawnedPostgreSQL, private_postgresql
from support.roles import Roles
from support.waiting import until_probed

LIMIT = 24
ALL_BUSY = 15
"""Connections: those that queries share are all in use, and some of its own."""
QUERIES = 60
HELD = 1.0
"""Seconds for which nothing can be read, so that each query keeps its connection."""


@pytest.fixture
def server() -> Iterator[SpawnedPostgreSQL]:
    """Without PostgreSQL a failure in CI, else a skip."""
    try:
        with private_postgresql() as server:
            yield server
    except NoPostgreSQLError as error:
        missing(error)


@pytest.fixture
async def administrator(server: SpawnedPostgreSQL) -> AsyncIterator[asyncpg.Connection]:
    """In the database of the limited user."""
    connection = await asyncpg.connect(server.url)
    await connection.execute("CREATE ROLE limited LOGIN")
    await connection.execute(f"ALTER ROLE limited CONNECTION LIMIT {LIMIT}")
    await connection.execute("CREATE DATABASE limited OWNER limited ENCODING 'UTF8' TEMPLATE template0")
    await connection.close()
    connection = await asyncpg.connect(f"postgresql://cml@127.0.0.1:{server.port}/limited")
    yield connection
    await connection.close()


async def most_connections(
    administrator: asyncpg.Connection, queries: asyncio.Future[list[OperationResult]]
) -> int:
    """While all that they read is locked for some time, and then until they are answered."""
    most = 0

    async def look() -> int:
        found: int = await administrator.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'limited'"
        )
        return max(most, found)

    tables = await administrator.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    names = ", ".join(f'"{each["tablename"]}"' for each in tables)
    while most < ALL_BUSY and not queries.done():
        async with administrator.transaction():
            try:
                await administrator.execute(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")
            except asyncpg.DeadlockDetectedError:
                continue  # with a transaction of the projector's, which has some of them
            for _ in range(10):
                await asyncio.sleep(HELD / 10)
                most = await look()
    while not queries.done():
        await asyncio.sleep(0.05)
        most = await look()
    return most


@pytest.mark.timeout(180)
async def test_the_projector_has_enough_with_the_limit_that_is_advised(
    rabbitmq_url: str, server: SpawnedPostgreSQL, administrator: asyncpg.Connection, tmp_path: Path
):
    """Queries of several senders, dead letters and events at once."""
    await emptied(rabbitmq_url)
    store = SqliteEventStore(tmp_path / "data" / "events.sqlite3")
    await begin(store, None, uuid4())
    await filled(store, 1_000, 100)
    port = free_port()
    roles = Roles(
        tmp_path,
        processes=["projector"],
        RABBITMQ_URL=rabbitmq_url,
        DATABASE_URL=f"postgresql://limited@127.0.0.1:{server.port}/limited",
        CML_AUTHORIZE="false",
        CML_HEALTH_PORT=str(port),
    )
    try:
        await until_probed(port, "readyz", 200)
        async with WorkerClient(rabbitmq_url) as client:
            asked = [client.query(ListCMLWorkers(limit=200), deadline=60) for _ in range(QUERIES)]
            asked += [client.operate(ListDeadLetters(), deadline=60) for _ in range(QUERIES)]
            queries = asyncio.gather(*asked)
            writing = asyncio.create_task(filled(store, 1_000, 100))
            most = await most_connections(administrator, queries)
            assert {each.outcome for each in await queries} == {"succeeded"}
            await writing
        await until_probed(port, "readyz", 200)
    finally:
        roles.kill()
        await store.close()
        await emptied(rabbitmq_url)
    print(f"at most {most} connections of {LIMIT}")
    assert ALL_BUSY <= most <= LIMIT
    assert "too many connections" not in roles.log()
