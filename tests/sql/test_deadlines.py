"""No call to PostgreSQL waits without end: silent connections, a frozen server, a host that hangs."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import sqlalchemy as sa

from cml_workers.readmodels.model import active
from cml_workers.readmodels.workers.tables import WORKERS
from cml_workers.runtime.endpoints import database_options
from cml_workers.runtime.settings import Settings
from cml_workers.sql.adapters import connect
from cml_workers.sql.database import dispose, migrate, open_database, transaction
from cml_workers.sql.earlier import EarlierCheckpoint
from cml_workers.sql.errors import DatabaseUnavailableError
from cml_workers.sql.port import ByKey, Database, DatabaseOptions
from support.postgresql import SpawnedPostgreSQL
from support.tcp_proxy import TcpProxy, Trap

SECONDS = 1.0
AT_MOST = SECONDS + 4
"""A connection that is given up may take two seconds to close, and the machine may be busy."""
BY_ID = ByKey(active(WORKERS).c.id, active(WORKERS).c.name)
PID = sa.text("SELECT pg_backend_pid()")
SLEEP = sa.text("SELECT pg_sleep(2)")


@pytest.fixture
async def network(server: SpawnedPostgreSQL) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def options(network: TcpProxy) -> DatabaseOptions:
    return DatabaseOptions(f"postgresql://cml@127.0.0.1:{network.port}/postgres", call_seconds=SECONDS)


@pytest.fixture
async def database(options: DatabaseOptions) -> AsyncIterator[Database]:
    engine = open_database(options)
    await migrate(engine)
    await dispose(engine)
    database = connect(options)
    yield database
    await database.close()


def pid(connection: sa.Connection) -> int:
    found = connection.scalar(PID)
    assert found is not None
    return int(found)


async def given_up(call: Awaitable[object]) -> None:
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match="longer than 1 s"):
        await call
    assert SECONDS - 0.1 < time.monotonic() - began < AT_MOST


CALLS: dict[str, Callable[[Database], Awaitable[object]]] = {
    "read": lambda database: database.read(pid),
    "find": lambda database: database.find(BY_ID, "0" * 32),
    "snapshot": lambda database: database.snapshot(pid),
    "write": lambda database: database.write(pid),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("connected", [True, False])
async def test_every_call_of_the_port_is_given_up(
    network: TcpProxy, database: Database, call: str, connected: bool
):
    if connected:
        await CALLS[call](database)
    network.pause()
    await given_up(CALLS[call](database))
    network.heal()
    await CALLS[call](database)


async def test_every_other_call_is_given_up(network: TcpProxy, options: DatabaseOptions):
    """The archive of dead letters writes by ``transaction``."""
    engine = open_database(options, durable=True)
    await migrate(engine)

    async def write() -> None:
        async with transaction(engine) as connection:
            await connection.execute(PID)

    network.pause()
    await given_up(write())
    await given_up(migrate(engine))
    await given_up(EarlierCheckpoint(options).load())
    await asyncio.wait_for(dispose(engine), AT_MOST)
    network.heal()
    await write()
    await dispose(engine)


@pytest.mark.parametrize("call", ["read", "snapshot"])
async def test_what_is_pooled_is_as_silent_and_not_tried_one_by_one(
    network: TcpProxy, database: Database, call: str
):
    def slowly(connection: sa.Connection) -> int:
        connection.execute(sa.text("SELECT pg_sleep(0.2)"))
        return pid(connection)

    run = getattr(database, call)
    pooled = set(await asyncio.gather(*(run(slowly) for _ in range(4))))
    assert len(pooled) == 4
    network.arm(Trap(b"pg_conf_load_time", "server", "silence", seconds=60))
    await given_up(run(lambda connection: connection.execute(sa.text("SELECT pg_conf_load_time()"))))
    assert await run(pid) not in pooled
    network.heal()


async def test_a_frozen_server_is_not_waited_for(server: SpawnedPostgreSQL, database: Database):
    await database.write(pid)
    server.signal(signal.SIGSTOP)
    try:
        await asyncio.gather(given_up(database.write(pid)), given_up(database.read(pid)))
    finally:
        server.signal(signal.SIGCONT)
    await database.write(pid)
    await database.read(pid)


async def test_a_statement_that_is_given_up_does_not_go_on_at_the_server(
    server: SpawnedPostgreSQL, database: Database
):
    await given_up(database.write(lambda connection: connection.execute(sa.text("SELECT pg_sleep(33)"))))
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%sleep(33)'"
    assert await database.read(lambda connection: connection.scalar(sa.text(running))) == 0


async def test_work_on_whole_tables_may_take_longer_and_so_may_who_waits_for_it(
    options: DatabaseOptions, database: Database
):
    await database.write(lambda connection: connection.execute(SLEEP), lasting=True)
    await database.snapshot(lambda connection: connection.execute(SLEEP), lasting=True)
    engine = open_database(options)
    async with asyncio.TaskGroup() as group:
        group.create_task(
            database.write(
                lambda c: (c.execute(sa.text("LOCK alembic_version")), c.execute(SLEEP)), lasting=True
            )
        )
        await asyncio.sleep(0.2)
        await migrate(engine)
    await dispose(engine)


def test_the_setting_says_how_long():
    assert database_options(Settings()).call_seconds == 5
    settings = Settings(database_call_seconds=7)
    assert database_options(settings).call_seconds == 7
