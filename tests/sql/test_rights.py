"""The shipped rights in PostgreSQL: enough for all that roles do, and no more; for a superuser to give, and for others."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa

from cml_workers.bus.port import Message
from cml_workers.deadletters.archive import Archive, Limits, OperatorAction
from cml_workers.deadletters.letter import letter_of
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.readmodels.rebuild import Rebuild
from cml_workers.readmodels.runner import Runner
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.sql.adapters import connect
from cml_workers.sql.database import dispose, migrate, open_database, schema, transaction
from cml_workers.sql.earlier import EarlierCheckpoint
from cml_workers.sql.errors import DatabaseConfigurationError
from cml_workers.sql.port import DatabaseOptions
from cml_workers.sql.schema import CHECKPOINTS, METADATA
from support.earlier_model import EARLIER, make_earlier_schema
from support.given import NOW
from support.postgresql import SpawnedPostgreSQL
from support.projecting import CREATED, LAUNCH, LAUNCHED, TAGS, Projected

SHIPPED = Path(__file__).parents[2] / "deploy/postgresql"
MIGRATOR, PROJECTOR, RELAY = "cml_migrator", "cml_projector", "cml_relay"
pytestmark = pytest.mark.timeout(300)
LETTER = letter_of(Message(body=b"{}", type="cml.worker.create.v1", message_id="dead"))


async def run(url: str, script: str) -> None:
    """As psql does."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(script)
    finally:
        await connection.close()


class Given:
    """A database as an administrator has prepared it."""

    def __init__(self, server: SpawnedPostgreSQL, store: SqliteEventStore) -> None:
        self._server = server
        self.store = store

    def url(self, user: str) -> str:
        return f"postgresql://{user}@127.0.0.1:{self._server.port}/cml"

    def options(self, user: str) -> DatabaseOptions:
        """For a machine that is busy."""
        return DatabaseOptions(self.url(user), call_seconds=60)

    async def migrated(self) -> None:
        """As after each update."""
        engine = open_database(self.options(MIGRATOR))
        await migrate(engine)
        await dispose(engine)
        await run(self.url(MIGRATOR), (SHIPPED / "rights.sql").read_text())

    async def may_not(self, user: str, *statements: str) -> None:
        engine = open_database(self.options(user))
        for statement in statements:
            with pytest.raises(DatabaseConfigurationError, match=r"permission denied|must be owner"):
                async with transaction(engine) as connection:
                    await connection.exec_driver_sql(statement)
        await dispose(engine)


@pytest.fixture(params=["superuser", "managed"])
async def given(
    request: pytest.FixtureRequest, spawn: Callable[[], SpawnedPostgreSQL], tmp_path: Path
) -> AsyncIterator[Given]:
    server = spawn()
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    found = Given(server, store)
    administrator = "cml"
    if request.param == "managed":
        administrator = "administrator"
        await run(server.url, "CREATE ROLE administrator LOGIN CREATEROLE CREATEDB")
    await run(
        server.url.replace("cml@", f"{administrator}@"),
        "CREATE DATABASE cml ENCODING 'UTF8' TEMPLATE template0",
    )
    await run(found.url(administrator), (SHIPPED / "roles.sql").read_text())
    yield found
    await store.close()
    server.stop()


async def test_roles_have_what_they_need_and_no_more(given: Given):
    await given.migrated()
    await given.migrated()
    database = connect(given.options(PROJECTOR))
    engine = open_database(given.options(PROJECTOR), durable=True)
    projected = Projected(given.store, database)
    assert (await migrate(engine)).pending == []

    await projected.workers(3, CREATED, LAUNCH, LAUNCHED, *TAGS)
    await projected.catch_up()
    assert len(await projected.names(name_part="LAB", tag="a=1", terminated_since=NOW)) == 3
    for generation in (2, 4):  # a copy is the one between
        rebuilt = await Rebuild(given.store, projected.generations).run()
        assert (rebuilt.generation.number, rebuilt.switched, rebuilt.differences) == (generation, True, [])
    await given.migrated()
    assert (await Rebuild(given.store, projected.generations).run()).switched

    archive = Archive(engine)
    assert await archive.keep(LETTER, NOW)
    assert not await archive.keep(LETTER, NOW)
    for action in ("edited", "redriven", "discarded"):
        found = await archive.find(LETTER.id)
        assert found
        done = OperatorAction(action, NOW, "operator", "ann", "because")
        await (
            archive.discarded(found, done) if action == "discarded" else archive.redriven(found, LETTER, done)
        )
    details = await archive.details(LETTER.id)
    assert details
    assert [each.what for each in details.history] == ["died", "edited", "redriven", "discarded"]
    assert await archive.waiting() == 0
    later = datetime.now(UTC) + timedelta(days=2)
    limits = Limits(timedelta(days=1), dealt_with=10, waiting=10)
    assert await archive.tidy(limits, later) == {"discarded": 0, "gone": 1}
    await database.close()
    await dispose(engine)

    await given.may_not(
        PROJECTOR,
        "UPDATE dead_letter_outcomes SET reason = ''",
        "TRUNCATE dead_letters",
        "DROP TABLE dead_letters",
        "UPDATE alembic_version SET version_num = '0001'",
        "SELECT * FROM checkpoints",
        "CREATE TABLE public.things (id int)",
    )


async def test_the_projector_has_its_rights_to_every_table_but_the_relays(given: Given):
    await given.migrated()
    engine = open_database(given.options(PROJECTOR))
    async with transaction(engine) as connection:
        for table in METADATA.tables.values():
            if table is not CHECKPOINTS:
                await connection.execute(sa.select(table))
                assert await connection.scalar(
                    sa.select(sa.func.has_table_privilege(table.name, "INSERT"))
                ), table.name
    await dispose(engine)


async def test_the_relay_takes_its_checkpoint_over_and_may_do_nothing_else(given: Given):
    await given.migrated()
    engine = open_database(given.options(MIGRATOR))
    async with transaction(engine) as connection:
        await connection.execute(sa.insert(CHECKPOINTS), {"follower": "relay", "position": "16"})
    await dispose(engine)
    earlier = EarlierCheckpoint(given.options(RELAY))
    assert await earlier.load() == "16"
    await earlier.forget()
    assert await earlier.load() is None
    await given.may_not(
        RELAY,
        "SELECT * FROM workers",
        "SELECT * FROM dead_letters",
        "SELECT * FROM read_model_generations",
        "UPDATE checkpoints SET position = '1'",
        "CREATE TABLE things (id int)",
    )


async def test_an_update_waits_for_the_migrator(given: Given):
    """Also where the projector has rebuilt since, and owns what a migration may change."""
    engine = open_database(given.options(MIGRATOR))
    await make_earlier_schema(engine)
    await run(given.url(MIGRATOR), (SHIPPED / "rights.sql").read_text())
    running = open_database(given.options(PROJECTOR))
    database = connect(given.options(PROJECTOR))
    before = Projected(given.store, database, EARLIER)
    await before.workers(2, CREATED, LAUNCH)
    await before.catch_up()
    assert (await Rebuild(given.store, before.generations).run()).switched

    with pytest.raises(DatabaseConfigurationError, match="run `cml-workers migrate`"):
        await migrate(running)
    assert (await schema(engine)).pending
    await given.migrated()
    assert (await migrate(running)).pending == []

    runner = Runner(model=WORKERS_VIEW, store=given.store, database=database)
    await runner.prepare()
    now = Projected(given.store, database)
    assert len(await now.names(terminated_since=NOW)) == 2
    assert (await Rebuild(given.store, now.generations).run()).switched
    for each in (engine, running):
        await dispose(each)
    await database.close()
