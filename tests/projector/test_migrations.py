"""The migrations make exactly the tables that the code uses, once, whoever starts first."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncEngine

from cml_workers.deadletters import archive
from cml_workers.readmodels.generation import GENERATIONS, Generation, State
from cml_workers.readmodels.generations import Generations
from cml_workers.readmodels.model import active
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.tables import TABLES, VERSION, WORKERS
from cml_workers.sql.database import (
    _upgrade,
    migrate,
    open_database,
)
from cml_workers.sql.earlier import EarlierCheckpoint
from cml_workers.sql.errors import DatabaseConfigurationError
from cml_workers.sql.port import DatabaseOptions
from cml_workers.sql.schema import CHECKPOINTS, METADATA
from support import earlier_model
from support.postgresql import emptied
from support.projecting import opened


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'read-model.sqlite3'}"
    return await emptied(request.getfixturevalue("postgresql_url"))


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = open_database(url)
    yield engine
    await engine.dispose()


async def test_the_migrated_schema_is_the_one_in_the_code(engine: AsyncEngine):
    """The tables of read models are made by whoever fills them; those of the first generation were there before."""
    assert archive.DEAD_LETTERS.metadata is GENERATIONS.metadata is METADATA
    await migrate(engine)
    both = sa.MetaData()
    for table in (*METADATA.tables.values(), *TABLES):
        table.to_metadata(both)
    # What only PostgreSQL has is compared by readmodels/test_workers_plans.py.
    options = {"include_object": lambda _, name, *__: name != "workers_by_name_part"}
    async with engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync, opts=options), both)
        )
    assert differences == []


async def test_the_read_model_of_before_goes_on_where_it_was(engine: AsyncEngine, url: str):
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade, "0003")
        worker = {"id": uuid4(), "name": "a", "status": "RUNNING", "aws_region": "r", "owner": "o"}
        row = {**worker, "created_at": "c", "view": '{"revision": 4}'}
        await connection.execute(sa.insert(earlier_model.WORKERS), row)
        await connection.execute(sa.insert(CHECKPOINTS), {"follower": "read-model", "position": "17"})
        await connection.execute(sa.insert(CHECKPOINTS), {"follower": "relay", "position": "16"})
    await migrate(engine)
    async with opened(url) as database:
        adopted = await Generations(WORKERS_VIEW, database).active()
        assert adopted == Generation(1, 1, State.ACTIVE, "17", 5)
        shown = await database.read(lambda seen: seen.scalars(sa.select(active(WORKERS).c.name)).all())
    assert shown == ["a"]
    assert await EarlierCheckpoint(DatabaseOptions(url)).load() == "16"


async def test_an_empty_database_begins_with_the_version_of_the_code(engine: AsyncEngine, url: str):
    await migrate(engine)
    async with opened(url) as database:
        assert await Generations(WORKERS_VIEW, database).active() == Generation(
            1, VERSION, State.ACTIVE, None, 0
        )


async def test_processes_that_start_together_migrate_once(url: str):
    engines = [open_database(url) for _ in range(8)]
    await asyncio.gather(*(migrate(engine) for engine in engines))
    await migrate(engines[0])
    for engine in engines:
        await engine.dispose()


async def test_a_schema_of_a_newer_version_is_left_alone(engine: AsyncEngine):
    await migrate(engine)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseConfigurationError, match="newer version"):
        await migrate(engine)


async def test_the_file_and_those_beside_it_are_for_their_owner_alone(tmp_path: Path):
    before = os.umask(0o022)
    try:
        engine = open_database(f"sqlite:///{tmp_path / 'made' / 'read-model.sqlite3'}")
        await migrate(engine)
        async with engine.begin() as connection:
            await connection.exec_driver_sql("DELETE FROM checkpoints")
            modes = {each.name: oct(each.stat().st_mode & 0o777) for each in (tmp_path / "made").iterdir()}
        await engine.dispose()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys((f"read-model.sqlite3{each}" for each in ("", "-wal", "-shm")), oct(0o600))


def test_a_file_that_cannot_be_made_is_said_in_a_line():
    with pytest.raises(DatabaseConfigurationError, match=r"^DATABASE_URL: /dev/null/x cannot be made"):
        open_database("sqlite:////dev/null/x")


async def test_rows_of_the_first_version_are_changed_together(engine: AsyncEngine):
    """However many there are, it takes as many statements."""
    operations = sa.table(
        "operations", sa.column("command_id"), sa.column("worker_id", sa.Uuid), sa.column("view")
    )
    requested = '"requested_at": "2026-01-31T12:00:00.5Z"'
    views = [f'{{"result": {result}, {requested}}}' for result in ("null", '{"outcome": "succeeded"}')]
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade, "0001")
        rows = [{"command_id": f"{n}", "worker_id": uuid4(), "view": views[n % 2]} for n in range(300)]
        await connection.execute(sa.insert(operations), rows)
        worker = {"status": "RUNNING", "aws_region": "r", "owner": "o", "created_at": "c", "name": "a"}
        workers = [{**worker, "id": uuid4(), "view": '{"revision": 4}'} for _ in range(300)]
        await connection.execute(sa.insert(earlier_model.WORKERS), workers)
        await connection.execute(sa.insert(CHECKPOINTS), {"follower": "read-model", "position": "17"})
    statements: list[str] = []
    sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    await migrate(engine)
    assert 0 < len(statements) < 150
    async with engine.connect() as connection:
        pending = sa.text("SELECT pending_since, count(*) FROM operations GROUP BY 1 ORDER BY 2 DESC, 1")
        assert {tuple(row) for row in await connection.execute(pending)} == {
            ("2026-01-31T12:00:00.5+00:00", 150),
            (None, 150),
        }
        assert await connection.scalar(sa.select(GENERATIONS.c.events)) == 1500
