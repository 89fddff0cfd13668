"""The migrations make exactly the tables that the code uses, once, whoever starts first."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncEngine

from cml_workers.deadletters import archive
from cml_workers.projector import read_model
from cml_workers.sql.database import METADATA, DatabaseConfigurationError, migrate, open_database
from support.postgresql import emptied


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
    assert archive.DEAD_LETTERS.metadata is read_model.WORKERS.metadata is METADATA
    await migrate(engine)
    async with engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), METADATA)
        )
    assert differences == []


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
