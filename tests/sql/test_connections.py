"""How many connections a process opens, and that queries leave the writer its own."""

import asyncio

import sqlalchemy as sa

from cml_workers.runtime.endpoints import database_options
from cml_workers.runtime.settings import Settings
from cml_workers.sql.adapters import connect
from cml_workers.sql.database import OWN, dispose, open_database, transaction
from cml_workers.sql.port import DatabaseOptions
from support.postgresql import SpawnedPostgreSQL, emptied

QUERIES = 4
ALL = QUERIES + OWN
SLOW = sa.text("SELECT pg_sleep(0.3)")


async def limited(server: SpawnedPostgreSQL, connections: int) -> DatabaseOptions:
    """As a role that may have so many."""
    engine = open_database(await emptied(server.url))
    async with transaction(engine) as connection:
        await connection.exec_driver_sql("DROP ROLE IF EXISTS limited")
        await connection.exec_driver_sql(f"CREATE ROLE limited LOGIN CONNECTION LIMIT {connections}")
    await dispose(engine)
    return DatabaseOptions(server.url.replace("cml@", "limited@"), call_seconds=30, connections=QUERIES)


async def test_slow_queries_leave_the_writer_its_connections(server: SpawnedPostgreSQL):
    database = connect(await limited(server, ALL))
    other = open_database(server.url)
    blocked = sa.text("SELECT pg_advisory_xact_lock_shared(1)")
    try:
        async with transaction(other) as connection:
            await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")
            asking = asyncio.gather(
                *(database.read(lambda each: each.execute(blocked)) for _ in range(4 * QUERIES))
            )
            await asyncio.sleep(0.1)
            await database.write(lambda each: each.execute(sa.text("SELECT 1")))
            assert not asking.done()
        await asking
    finally:
        await dispose(other)
        await database.close()


async def test_a_process_opens_no_more_than_it_says(server: SpawnedPostgreSQL):
    """A role's limit may be as tight: no call is refused for it."""
    database = connect(await limited(server, ALL))
    try:
        for call in (database.read, database.snapshot, database.write):
            await asyncio.gather(*(call(lambda each: each.execute(SLOW)) for _ in range(3 * QUERIES)))
    finally:
        await database.close()


def test_the_setting_says_how_many():
    assert database_options(Settings()).connections == 15
    assert database_options(Settings(database_connections=7)).connections == 7
