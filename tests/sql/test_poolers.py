"""Behind PgBouncer: sessions need nothing, transactions a setting, and where it is not set the error names it."""

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.readmodels.rebuild import Rebuild
from cml_workers.runtime.endpoints import database_options
from cml_workers.runtime.settings import Settings
from cml_workers.sql.database import dispose, migrate, open_database
from cml_workers.sql.errors import DatabaseConfigurationError, DatabaseUnavailableError
from cml_workers.sql.port import Database, DatabaseOptions
from support.missing import missing
from support.pgbouncer import Mode, NoPgBouncerError, private_pgbouncer, program
from support.postgresql import SpawnedPostgreSQL, emptied
from support.projecting import CREATED, LAUNCH, Projected, opened

CLIENTS = 3
ROUNDS = 60


def make_things(connection: sa.Connection) -> None:
    connection.execute(sa.text("CREATE TABLE things (id int)"))


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    """Without PgBouncer a failure in CI, else a skip."""
    try:
        program()
    except NoPgBouncerError as error:
        missing(error)


async def behind(url: str, stack: AsyncExitStack, *, pooling: bool) -> list[Database]:
    """As several processes have it."""
    options = DatabaseOptions(url, transaction_pooling=pooling)
    return [await stack.enter_async_context(opened(options)) for _ in range(CLIENTS)]


async def used(database: Database) -> int:
    """Transactions of every kind, some of which hold their connection; how many."""

    def three(connection: sa.Connection) -> None:
        connection.execute(sa.text("SELECT pg_sleep(0.001), count(*) FROM dead_letters"))
        connection.execute(sa.text("SELECT CAST(:name AS text)"), {"name": "a"}).scalar_one()
        connection.execute(sa.text("INSERT INTO things VALUES (:id)"), [{"id": 1}, {"id": 2}])

    def one(connection: sa.Connection) -> None:
        assert connection.execute(sa.text("SELECT CAST(:id AS int) + 1"), {"id": 1}).scalar_one() == 2

    for _ in range(ROUNDS):
        await database.write(three)
        await asyncio.gather(database.read(one), database.snapshot(one))
    return 3 * ROUNDS


@pytest.mark.parametrize(("mode", "pooling"), [("transaction", True), ("session", False), ("session", True)])
async def test_every_transaction_of_several_processes_succeeds(
    server: SpawnedPostgreSQL, mode: Mode, pooling: bool
):
    await emptied(server.url)
    connections = 2 if mode == "transaction" else 4 * CLIENTS
    with private_pgbouncer(server, mode, connections=connections) as url:
        async with AsyncExitStack() as stack:
            databases = await behind(url, stack, pooling=pooling)
            await databases[0].write(make_things)
            done = await asyncio.gather(*(used(database) for database in databases))
            assert done == [3 * ROUNDS] * CLIENTS


async def test_nothing_stays_prepared_at_the_server(server: SpawnedPostgreSQL):
    await emptied(server.url)
    with private_pgbouncer(server, "transaction", connections=1) as url:
        async with opened(DatabaseOptions(url, transaction_pooling=True)) as database:
            await database.write(make_things)
            await used(database)
            prepared = sa.text("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''")
            assert await database.read(lambda connection: connection.scalar(prepared)) == 0


async def test_a_read_model_is_followed_and_rebuilt(server: SpawnedPostgreSQL, tmp_path: Path):
    await emptied(server.url)
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    with private_pgbouncer(server, "transaction") as url:
        async with opened(DatabaseOptions(url, transaction_pooling=True)) as database:
            projected = Projected(store, database)
            await projected.workers(5, CREATED, LAUNCH)
            await projected.catch_up()
            assert len(await projected.names()) == 5
            rebuilt = await Rebuild(store, projected.generations).run()
            assert (rebuilt.differences, rebuilt.switched) == ([], True)
            assert len(await projected.names()) == 5
    await store.close()


async def test_without_the_setting_every_error_names_it(server: SpawnedPostgreSQL):
    await emptied(server.url)
    with private_pgbouncer(server, "transaction") as url:
        async with AsyncExitStack() as stack:
            databases = await behind(url, stack, pooling=False)
            await databases[0].write(make_things)
            ended = await asyncio.gather(*(used(each) for each in databases), return_exceptions=True)
    failed = [each for each in ended if isinstance(each, Exception)]
    assert failed
    for each in failed:
        assert isinstance(each, DatabaseConfigurationError), repr(each)
        assert "PgBouncer" in str(each)
        assert "CML_DATABASE_TRANSACTION_POOLING=true" in str(each)


@pytest.mark.parametrize(
    ("mode", "more", "advice"),
    [
        ("statement", "", "pool transactions or sessions"),
        ("transaction", "?options=-csearch_path%3Dours", "options; say it by ALTER ROLE"),
        ("session", "none", "must know the database"),
    ],
)
async def test_what_a_pooler_does_not_do_is_configuration(
    server: SpawnedPostgreSQL, mode: Mode, more: str, advice: str
):
    with private_pgbouncer(server, mode) as url:
        engine = open_database(DatabaseOptions(url + more, transaction_pooling=True))
        with pytest.raises(DatabaseConfigurationError, match=advice):
            await migrate(engine)
        await dispose(engine)


async def test_a_database_that_is_away_behind_its_pooler_is_asked_again(server: SpawnedPostgreSQL):
    await emptied(server.url)
    with private_pgbouncer(server, "transaction") as url:
        options = DatabaseOptions(url, call_seconds=2, transaction_pooling=True)
        async with opened(options) as database:
            await database.write(make_things)
            server.stop()
            try:
                for call in (database.write, database.read):
                    with pytest.raises(DatabaseUnavailableError):
                        await call(lambda connection: connection.execute(sa.text("SELECT 1")))
            finally:
                server.start()
            async with asyncio.timeout(30):  # it waits before it connects again
                while True:
                    with suppress(DatabaseUnavailableError):
                        await used(database)
                        break


def test_the_setting_reaches_the_database():
    assert not database_options(Settings()).transaction_pooling
    assert database_options(Settings(database_transaction_pooling=True)).transaction_pooling
