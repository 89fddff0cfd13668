"""The tests' own servers that fail over: what chaos does to them is what it says."""

import asyncio
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import StoreUnavailableError
from cml_workers.sql.database import dispose, open_database, transaction
from cml_workers.sql.errors import DatabaseUnavailableError
from support.kurrentdb_cluster import LOSSES
from support.kurrentdb_followers import events
from support.missing import missing
from support.postgresql import NoPostgreSQLError
from support.postgresql_pair import private_pair
from support.servers import own_kurrentdb_cluster
from support.tcp_proxy import network_to


async def said(url: str, statement: str) -> list[str]:
    """At whichever host takes changes, as soon as there is one."""
    engine = open_database(url)
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    async with transaction(engine) as connection:
                        result = await connection.exec_driver_sql(statement)
                        return [row[0] for row in result] if result.returns_rows else []
                except DatabaseUnavailableError:
                    await asyncio.sleep(0.1)
    finally:
        await dispose(engine)


@pytest.mark.timeout(400)
def test_a_database_that_fails_over_lacks_what_its_standby_had_not_got_and_fails_over_again():
    def note(name: str) -> None:
        asyncio.run(said(pair.url, f"INSERT INTO notes VALUES ('{name}')"))

    try:
        with private_pair() as pair:
            asyncio.run(said(pair.url, "CREATE TABLE notes (name text)"))
            for time in ("first", "second"):
                note(f"kept, the {time} time")
                lost_before = pair.lost_bytes
                pair.fail_over(partial(note, f"lost, the {time} time"))
                assert pair.lost_bytes > lost_before
            pair.stand_by()
            pair.kill()
            pair.start()
            note("kept at last")
            kept = asyncio.run(said(pair.url, "SELECT name FROM notes"))
    except NoPostgreSQLError as error:
        missing(error)
    assert kept == ["kept, the first time", "kept, the second time", "kept at last"]


@pytest.mark.timeout(400)
async def test_a_store_loses_its_leader_in_each_way_and_its_clients_stay_in_their_network(tmp_path: Path):
    """In a process of its own, which is killed at the end: it has everything that was acknowledged."""
    appended: list[str] = []

    async def append() -> None:
        new = events()
        async with asyncio.timeout(60):
            while True:
                try:
                    await store.append("s", new, expected=len(appended) - 1)
                except StoreUnavailableError:
                    await asyncio.sleep(0.1)
                else:
                    break
        appended.append(str(new[0].event_id))

    host = "127.0.3.1"
    with own_kurrentdb_cluster(tmp_path / "store") as (uri, server):
        async with network_to(uri, host=host) as network:
            store = KurrentDbEventStore(network.through(uri))
            led = []
            for how in (*LOSSES, "killed again"):
                await append()
                led.append(store._calls.client.connection_target)
                if how != "killed again":
                    await asyncio.to_thread(server.fail_over)
            assert all(target.startswith(f"{host}:") for target in led), led
            assert all(one != another for one, another in pairwise(led)), led
            server.kill()
            server.start()
            await append()
            assert [str(each.event_id) for each in await store.read("s")] == appended
            await store.close()
