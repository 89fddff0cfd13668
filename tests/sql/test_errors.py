"""What PostgreSQL's errors mean: each is caused on a real server, by what causes it, or raised there under its SQLSTATE."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from cml_contracts.queries import GetCMLWorker
from cml_workers.bus.delivery import MAX_FAULTS, settle
from cml_workers.bus.port import Ack, DeadLetter, Message, Verdict
from cml_workers.bus.topology import DEAD_LETTER_QUEUE, PROJECTOR_QUERIES
from cml_workers.domain.policy import Access
from cml_workers.projector.queries import Queries
from cml_workers.sql.adapters import connect
from cml_workers.sql.database import migrate, open_database, transaction
from cml_workers.sql.errors import (
    MEANINGS,
    DatabaseConfigurationError,
    DatabaseUnavailableError,
    explained,
)
from cml_workers.sql.port import Database, DatabaseOptions
from support.buses import Outbox, queue_of
from support.postgresql import SpawnedPostgreSQL, emptied
from support.projecting import opened

SLOW = "SELECT pg_sleep(30)"
THINGS = "SELECT * FROM things"


@pytest.fixture
async def url(postgresql_url: str) -> str:
    return await emptied(postgresql_url)


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_at(url) as engine:
        yield engine


@asynccontextmanager
async def engine_at(url: str | URL, *, pool_timeout: float | None = None) -> AsyncIterator[AsyncEngine]:
    engine = open_database(url if isinstance(url, str) else url.render_as_string(hide_password=False))
    if pool_timeout is not None:
        engine.pool._timeout = pool_timeout  # type: ignore[attr-defined]
    try:
        yield engine
    finally:
        await engine.dispose()


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with transaction(engine) as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


def raising(state: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '{state}'; END $$"


@pytest.mark.parametrize("state", MEANINGS)
async def test_each_sqlstate_is_what_the_table_says_and_no_messages_fault(engine: AsyncEngine, state: str):
    with pytest.raises(MEANINGS[state].kind, match="planted") as caught:
        await execute(engine, raising(state.ljust(5, "1")))
    assert MEANINGS[state].advice in str(caught.value)
    assert "RAISE" not in str(caught.value)  # a statement may hold what somebody sent
    for queue in (PROJECTOR_QUERIES, DEAD_LETTER_QUEUE):
        settled = settle(queue, caught.value, attempt=100, faults=MAX_FAULTS - 1)
        assert settled.faults == MAX_FAULTS - 1
        assert not isinstance(settled.verdict, DeadLetter)


@pytest.mark.parametrize("state", ["22021", "23505", "42601", "0A000"])
async def test_what_a_statement_or_its_message_causes_stays_what_it_is(engine: AsyncEngine, state: str):
    with pytest.raises(DBAPIError, match="planted"):
        await execute(engine, raising(state))
    await execute(engine, "SELECT 1")


async def a_lock_time_out(engine: AsyncEngine) -> None:
    await execute(engine, "CREATE TABLE things (id int)")
    async with transaction(engine) as connection:
        await connection.exec_driver_sql("LOCK TABLE things")
        await execute(engine, "SET LOCAL lock_timeout = 50", "SELECT * FROM things")


async def a_statement_time_out(engine: AsyncEngine) -> None:
    await execute(engine, "SET LOCAL statement_timeout = 50", SLOW)


async def a_deadlock(engine: AsyncEngine) -> None:
    locks = ["SELECT pg_advisory_xact_lock(1)", "SELECT pg_advisory_xact_lock(2)"]
    await asyncio.gather(
        *(
            execute(engine, "SET LOCAL deadlock_timeout = 10", first, "SELECT pg_sleep(0.2)", second)
            for first, second in (locks, locks[::-1])
        )
    )


async def a_terminated_session(engine: AsyncEngine) -> None:
    running = asyncio.create_task(execute(engine, SLOW))
    while not running.done():
        await execute(
            engine, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = '{SLOW}'"
        )
        await asyncio.sleep(0.05)
    await running


async def a_read_only_database(engine: AsyncEngine) -> None:
    await execute(engine, "SET LOCAL transaction_read_only = on", "CREATE TABLE things (id int)")


async def an_exhausted_pool(engine: AsyncEngine) -> None:
    async with engine_at(engine.url, pool_timeout=0.1) as small, AsyncExitStack() as stack:
        while True:
            await stack.enter_async_context(transaction(small))


async def an_outdated_plan(engine: AsyncEngine) -> None:
    await execute(engine, "CREATE TABLE things (id int)")
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(engine.connect())
        await connection.exec_driver_sql(THINGS)
        await connection.commit()
        await execute(engine, "ALTER TABLE things ADD name text")
        with explained(engine):
            await connection.exec_driver_sql(THINGS)


async def too_many_connections(engine: AsyncEngine) -> None:
    await execute(
        engine, "DROP ROLE IF EXISTS limited", "CREATE ROLE limited LOGIN PASSWORD 'x' CONNECTION LIMIT 0"
    )
    async with engine_at(engine.url.set(username="limited", password="x")) as limited:
        await execute(limited, "SELECT 1")


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (a_lock_time_out, "lock timeout"),
        (a_statement_time_out, "statement timeout"),
        (a_deadlock, "deadlock"),
        (a_terminated_session, "administrator command"),
        (a_read_only_database, "must name the primary"),
        (an_exhausted_pool, "QueuePool limit"),
        (an_outdated_plan, "cached statement plan"),
        (too_many_connections, "too many connections"),
    ],
)
async def test_what_passes_is_tried_again(
    engine: AsyncEngine, cause: Callable[[AsyncEngine], Awaitable[None]], said: str
):
    with pytest.raises(DatabaseUnavailableError, match=said):
        await cause(engine)
    await execute(engine, "SELECT 1")


async def test_a_session_that_the_server_ended_as_it_was_idle_costs_at_most_one_try(
    server: SpawnedPostgreSQL,
):
    """``idle_session_timeout`` is the server's, and may be shorter than the time between two calls."""
    async with engine_at(server.url) as engine:
        await execute(
            engine,
            "DROP ROLE IF EXISTS idle",
            "CREATE ROLE idle LOGIN",
            "ALTER ROLE idle SET idle_session_timeout = '1s'",
        )
    database = connect(DatabaseOptions(server.url.replace("cml@", "idle@")))
    try:
        for call in (database.read, database.snapshot, database.write):
            before = await call(pid)
            await asyncio.sleep(2)
            with suppress(DatabaseUnavailableError):  # which whoever asked tries again
                assert await call(pid) != before
            assert await call(pid) != before
    finally:
        await database.close()


def pid(connection: sa.Connection) -> int:
    return int(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())


async def test_a_connection_to_what_has_become_a_standby_is_not_used_again(engine: AsyncEngine):
    """It may stay open while the name of the primary leads elsewhere."""

    async def used() -> int:
        async with transaction(engine) as connection:
            return int((await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one())

    before = await used()
    assert await used() == before
    with pytest.raises(DatabaseUnavailableError):
        await a_read_only_database(engine)
    assert await used() != before


async def test_what_the_schema_and_its_rights_lack_is_configuration(engine: AsyncEngine):
    await migrate(engine)
    await execute(engine, "DROP ROLE IF EXISTS stranger", "CREATE ROLE stranger LOGIN PASSWORD 'x'")
    await execute(engine, "GRANT USAGE ON SCHEMA public TO stranger")
    async with engine_at(engine.url.set(username="stranger", password="x")) as stranger:
        with pytest.raises(DatabaseConfigurationError, match="permission denied"):
            await execute(stranger, "SELECT * FROM dead_letters")
        with pytest.raises(DatabaseConfigurationError, match="permission denied"):
            await migrate(stranger)
    with pytest.raises(DatabaseConfigurationError, match="search_path"):
        await execute(engine, "SET LOCAL search_path = nowhere", "SELECT * FROM dead_letters")


async def asked(database: Database) -> Verdict | Exception:
    """How a query ended."""
    query = GetCMLWorker(worker_id=uuid4())
    message = Message(
        body=query.model_dump_json().encode(), type=query.TYPE, message_id="q", reply_to=queue_of("caller")
    )
    try:
        return await Queries(database=database, unavailable=lambda _: None, access=Access()).on_query(
            message, Outbox()
        )
    except Exception as error:  # noqa: BLE001 - the delivery policy knows what it means
        return error


async def test_queries_outlive_what_happens_to_the_server(server: SpawnedPostgreSQL):

    async def unavailable(said: str) -> None:
        ended = await asked(database)
        assert isinstance(ended, DatabaseUnavailableError)
        assert said in str(ended)

    async with opened(server.url) as database:
        assert await asked(database) == Ack()
        server.stop()
        await unavailable("no answer")
        server.start("hot_standby=off", standby=True)
        await unavailable("not accepting connections")
        server.stop()
        server.start(standby=True)
        assert await asked(database) == Ack()
        with pytest.raises(DatabaseUnavailableError, match="must name the primary"):
            await database.write(lambda connection: connection.execute(sa.text("DROP VIEW workers_view")))
        await database.write(lambda connection: connection.execute(sa.text("SELECT pg_promote()")))
        await database.write(lambda connection: connection.execute(sa.text("CREATE TABLE things (id int)")))
        server.stop(signal.SIGKILL)
        server.start()
        assert await asked(database) == Ack()
