"""Who may change the schema, when, and in which database; what roles say that find another one."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from cml_workers.sql.database import dispose, migrate, open_database, schema, transaction
from cml_workers.sql.errors import DatabaseConfigurationError
from support.earlier_model import REVISION, make_earlier_schema
from support.postgresql import SpawnedPostgreSQL, emptied


@pytest.fixture
async def engine(server: SpawnedPostgreSQL) -> AsyncIterator[AsyncEngine]:
    engine = open_database(await emptied(server.url))
    yield engine
    await dispose(engine)


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with transaction(engine) as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def another(engine: AsyncEngine, name: str, kind: str) -> AsyncEngine:
    """A new database of this kind."""
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name}")
        await connection.exec_driver_sql(f"CREATE DATABASE {name} {kind}")
    return open_database(engine.url.set(database=name).render_as_string(hide_password=False))


async def test_what_is_to_be_done_is_said_and_not_done(engine: AsyncEngine):
    before = await schema(engine)
    assert before.revision is None
    assert before.pending[0] == "0001 The read model and the checkpoints."
    assert await schema(engine) == before
    await make_earlier_schema(engine)
    assert (await schema(engine)).revision == REVISION
    assert list((await migrate(engine)).pending) == [each for each in before.pending if each > REVISION + "~"]
    assert (await schema(engine)).pending == []
    assert (await migrate(engine)).pending == []


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_that_is_not_utf_8_is_not_used(engine: AsyncEngine, encoding: str):
    """Not even one that has the tables: a name could not be stored, or be stored as something else."""
    locale = "TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    other = await another(engine, "other", f"ENCODING '{encoding}' {locale}")
    for look in (schema, migrate):
        with pytest.raises(DatabaseConfigurationError, match=f"encoding {encoding}.* ENCODING 'UTF8'"):
            await look(other)
    await dispose(other)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
async def test_one_of_any_locale_is_used(engine: AsyncEngine, locale: str):
    kind = f"ENCODING 'UTF8' TEMPLATE template0 LC_COLLATE '{locale}' LC_CTYPE '{locale}'"
    other = await another(engine, "other", kind)
    await migrate(other)
    await dispose(other)


async def test_who_may_not_change_the_schema_says_who_should(engine: AsyncEngine):
    await execute(engine, "DROP ROLE IF EXISTS running", "CREATE ROLE running LOGIN")
    running = open_database(engine.url.set(username="running").render_as_string())
    await make_earlier_schema(engine)
    await execute(
        engine,
        "GRANT ALL ON SCHEMA public TO running",
        "GRANT SELECT ON alembic_version TO running",
    )
    with pytest.raises(
        DatabaseConfigurationError, match=r"\(0009 .*run `cml-workers migrate`.*permission denied"
    ):
        await migrate(running)
    assert (await schema(engine)).revision == REVISION
    await migrate(engine)
    assert (await migrate(running)).pending == []
    await dispose(running)


async def test_a_search_path_that_leads_elsewhere_is_said(engine: AsyncEngine, server: SpawnedPostgreSQL):
    """Where nothing is seen, nothing is made either: the user may not."""
    await migrate(engine)
    await execute(engine, "DROP SCHEMA IF EXISTS elsewhere", "CREATE SCHEMA elsewhere")
    await execute(engine, "DROP ROLE IF EXISTS astray", "CREATE ROLE astray LOGIN")
    await execute(engine, "GRANT USAGE ON SCHEMA elsewhere TO astray")
    url = f"{server.url.replace('cml@', 'astray@')}?options=-csearch_path%3Delsewhere"
    astray = open_database(url)
    with pytest.raises(DatabaseConfigurationError, match="fix the search_path"):
        await migrate(astray)
    await dispose(astray)
    ours = open_database(f"{server.url}?options=-csearch_path%3Delsewhere")
    await migrate(ours)  # who may, makes all of it there
    await dispose(ours)
    tables = sa.text(
        "SELECT schemaname, count(*) FROM pg_tables WHERE schemaname IN ('public', 'elsewhere') GROUP BY 1"
    )
    async with transaction(engine) as connection:
        counted = {tuple(row) for row in await connection.execute(tables)}
    assert {schema for schema, _ in counted} == {"public", "elsewhere"}
    assert len({count for _, count in counted}) == 1


async def test_nobody_waits_behind_a_migration_that_waits_for_a_backup(engine: AsyncEngine):
    """``pg_dump`` holds every table for as long as it takes."""
    await make_earlier_schema(engine)
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'workers'::regclass"
    async with transaction(engine) as backup:
        await backup.exec_driver_sql("LOCK TABLE workers IN ACCESS SHARE MODE")
        migrating = asyncio.create_task(migrate(engine))
        async with asyncio.timeout(60):
            while not (await backup.exec_driver_sql(waits)).scalar_one():
                await asyncio.sleep(0.05)
        await execute(engine, "SET LOCAL statement_timeout = '30s'", "SELECT count(*) FROM workers")
        assert not migrating.done()
    async with asyncio.timeout(60):
        assert (await migrating).revision == REVISION
    assert (await schema(engine)).pending == []
