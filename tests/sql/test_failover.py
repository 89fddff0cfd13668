"""A standby that lacks the last transactions takes over: what goes on, what comes again, and what is lost."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa

from cml_workers.bus.port import Message
from cml_workers.deadletters.archive import OUTCOMES, Archive, OperatorAction
from cml_workers.deadletters.letter import Letter, letter_of
from cml_workers.eventstore.names import worker_of
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.readmodels.rebuild import Rebuild
from cml_workers.readmodels.runner import Runner
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.fold import worker_row
from cml_workers.readmodels.workers.queries import worker
from cml_workers.sql.database import dispose, migrate, open_database, transaction
from cml_workers.sql.errors import DatabaseUnavailableError
from cml_workers.sql.port import DatabaseOptions
from support.given import NOW
from support.missing import missing
from support.postgresql import NoPostgreSQLError, SpawnedPostgreSQL, private_postgresql
from support.projecting import CREATED, LAUNCH, LAUNCHED, TAGS, Projected, opened

REPLAYED = "SELECT pg_last_wal_replay_lsn() >= CAST('{}' AS pg_lsn)"


@pytest.fixture
def primary() -> Iterator[SpawnedPostgreSQL]:
    try:
        with private_postgresql() as server:
            yield server
    except NoPostgreSQLError as error:
        missing(error)


@pytest.fixture
def standby(primary: SpawnedPostgreSQL) -> Iterator[SpawnedPostgreSQL]:
    with private_postgresql(primary=primary) as server:
        yield server


@pytest.fixture
def options(primary: SpawnedPostgreSQL, standby: SpawnedPostgreSQL) -> DatabaseOptions:
    """Both of them, as documented."""
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    return DatabaseOptions(f"postgresql://cml@{hosts}/postgres?target_session_attrs=read-write")


@pytest.fixture
async def projected(options: DatabaseOptions, tmp_path: Path) -> AsyncIterator[Projected]:
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    async with opened(options) as database:
        yield Projected(store, database)
    await store.close()


@pytest.fixture
async def archive(options: DatabaseOptions) -> AsyncIterator[Archive]:
    engine = open_database(replace(options, call_seconds=2), durable=True)
    await migrate(engine)
    yield Archive(engine)
    await dispose(engine)


@pytest.fixture
async def runner(projected: Projected) -> AsyncIterator[Runner]:
    """As the projector has one."""
    found = Runner(
        model=WORKERS_VIEW, store=projected.store, database=projected.database, backoff=lambda _: 0.1
    )
    task = asyncio.create_task(found.run())
    yield found
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def said(server: SpawnedPostgreSQL, statement: str) -> object:
    """By this server, whatever it is."""
    engine = open_database(server.url)
    try:
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            result = await connection.exec_driver_sql(statement)
            return result.scalar() if result.returns_rows else None
    finally:
        await engine.dispose()


async def until_replayed(primary: SpawnedPostgreSQL, standby: SpawnedPostgreSQL) -> None:
    """The standby has all that the primary has."""
    place = await said(primary, "SELECT CAST(pg_current_wal_lsn() AS text)")
    async with asyncio.timeout(60):
        while not await said(standby, REPLAYED.format(place)):
            await asyncio.sleep(0.05)


async def cut_off(primary: SpawnedPostgreSQL, standby: SpawnedPostgreSQL) -> None:
    """From now on it gets nothing."""
    await until_replayed(primary, standby)
    engine = open_database(standby.url)
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.exec_driver_sql("ALTER SYSTEM SET primary_conninfo = ''")
        await connection.exec_driver_sql("SELECT pg_reload_conf()")
    await engine.dispose()
    async with asyncio.timeout(60):
        while await said(standby, "SELECT count(*) FROM pg_stat_wal_receiver"):
            await asyncio.sleep(0.05)


async def promote(standby: SpawnedPostgreSQL) -> None:
    assert await said(standby, "SELECT pg_promote(true, 60)")


async def is_the_fold(projected: Projected) -> None:
    """Wait until the read model has everything, and compare it."""
    stored = await projected.stored()
    async with asyncio.timeout(60):
        while True:
            with suppress(DatabaseUnavailableError):
                active = await projected.active()
                if (active.position, active.events) == (stored[-1].position, len(stored)):
                    break
            await asyncio.sleep(0.05)
    for worker_id in {worker_of(each.stream) for each in stored}:
        assert await worker(projected.database, worker_id) == worker_row(await projected.folded(worker_id))


def letter(name: str) -> Letter:
    return letter_of(Message(body=b"{}", type="cml.worker.create.v1", message_id=name))


async def keep(archive: Archive, name: str) -> UUID:
    """Archived, as when the message is acknowledged."""
    found = letter(name)
    async with asyncio.timeout(60):
        while True:
            with suppress(DatabaseUnavailableError):  # the message is delivered again
                await archive.keep(found, NOW)
                return found.id


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("runner")
async def test_the_read_model_is_complete_again_and_the_last_dead_letters_are_lost(
    projected: Projected, archive: Archive, primary: SpawnedPostgreSQL, standby: SpawnedPostgreSQL
):
    workers = await projected.workers(5, CREATED, LAUNCH)
    kept = await keep(archive, "kept")
    await is_the_fold(projected)
    await cut_off(primary, standby)
    for worker_id in workers[:3]:
        await projected.record(worker_id, LAUNCHED, *TAGS)
    await projected.workers(2, CREATED)
    await is_the_fold(projected)
    before = await projected.active()
    lost = await keep(archive, "lost")
    assert await archive.find(lost)

    primary.stop(signal.SIGKILL)
    await promote(standby)
    await projected.record(workers[3], LAUNCHED)
    await is_the_fold(projected)  # though its checkpoint went back
    assert (await projected.active()).events == before.events + 1
    assert await archive.find(kept)
    assert await archive.find(lost) is None

    # An old primary that is not kept away is a primary again, and the first host. Rows and checkpoint belong together there, too.
    primary.start()
    standby.stop()
    await projected.workers(1, CREATED)
    await is_the_fold(projected)
    assert await archive.find(lost)


@pytest.mark.timeout(300)
async def test_of_a_synchronous_standby_no_dead_letter_is_lost_that_was_acknowledged(
    archive: Archive, primary: SpawnedPostgreSQL, standby: SpawnedPostgreSQL
):
    await said(primary, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    await said(primary, "SELECT pg_reload_conf()")
    async with asyncio.timeout(60):
        while await said(primary, "SHOW synchronous_standby_names") != "*":
            await asyncio.sleep(0.05)
    one = await keep(archive, "one")
    await cut_off(primary, standby)
    for _ in range(2):  # not either when it is delivered again, and is there already
        with pytest.raises(DatabaseUnavailableError):
            await archive.keep(letter("two"), NOW)
    primary.stop(signal.SIGKILL)
    await promote(standby)
    two = await keep(archive, "two")
    assert await archive.find(one)
    assert await archive.find(two)


@pytest.mark.timeout(300)
async def test_a_backup_of_the_database_that_is_older_than_the_store_is_brought_up_to_date(
    projected: Projected, archive: Archive, primary: SpawnedPostgreSQL, tmp_path: Path
):
    workers = await projected.workers(3, CREATED, LAUNCH)
    await projected.catch_up()
    kept = await keep(archive, "kept")
    primary.dump("cml.dump")
    await projected.record(workers[0], LAUNCHED, *TAGS)
    await projected.workers(2, CREATED)
    await projected.catch_up()
    lost = await keep(archive, "lost")

    restored = primary.restore("cml.dump", "restored")
    engine = open_database(restored, durable=True)
    assert await Archive(engine).find(kept)
    assert await Archive(engine).find(lost) is None
    async with opened(restored) as database:
        again = Projected(projected.store, database)
        await again.catch_up()
        await is_the_fold(again)
        assert (await Rebuild(again.store, again.generations).run()).differences == []
    await keep(Archive(engine), "new")  # its sequence goes on
    await dispose(engine)


async def test_what_operators_have_dealt_with_can_be_deleted(archive: Archive, options: DatabaseOptions):
    """As ``docs/operations.md`` says, and only that."""
    waiting, dealt = await keep(archive, "waiting"), await keep(archive, "dealt with")
    found = await archive.find(dealt)
    assert found
    await archive.discarded(found, OperatorAction("discarded", NOW, "operator", "ann", "because"))
    engine = open_database(options)
    async with transaction(engine) as connection:
        for statement in documented_deletes():
            await connection.exec_driver_sql(statement)
        left = await connection.scalar(sa.select(sa.func.count()).select_from(OUTCOMES))
    await dispose(engine)
    assert await archive.find(waiting)
    assert await archive.find(dealt) is None
    assert left == 1


def documented_deletes() -> list[str]:
    document = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    found = re.findall(r"^DELETE [^;]+;", document, re.MULTILINE)
    assert len(found) == 2
    return found
