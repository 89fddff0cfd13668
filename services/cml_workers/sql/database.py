"""The SQL database: its engine, and its schema."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from cml_workers.foundation.private_file import make_private
from cml_workers.foundation.sqlite_files import write_ahead
from cml_workers.sql.address import SCHEMES, Address
from cml_workers.sql.errors import (
    DENIED,
    LOCKED,
    MEANINGS,
    READ_ONLY,
    DatabaseConfigurationError,
    DatabaseUnavailableError,
    explained,
)
from cml_workers.sql.port import DatabaseOptions
from cml_workers.sql.schema import alone

SQLITE_BUSY_SECONDS = 20
"""How long one process waits for the others that use an SQLite file."""
LASTING = 60
"""How many times as long as others a call may take that works on whole tables, or waits for one."""
KEPT = 5
"""How many connections for queries stay open when nothing is asked."""
OWN = 3
"""How many connections each of the others has: the writer's, the archive's and the migrations'. They seldom need more than one."""
LOCK_SECONDS, LOCK_PAUSE, LOCK_TRIES = 2, 1, 100
"""How long a migration waits for a table, others then have their turn, and how often it tries."""
_READ_ONLY = sa.text("SELECT current_setting('transaction_read_only')")
_SECONDS = "cml_call_seconds"
"""The execution option of an engine that says how long a call may take."""

_UNPREPARED: Mapping[str, Any] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: "",
}
"""Arguments of the driver for a session that may be another one for each transaction: every statement is the unnamed one, which is
sent again with its parameters and leaves nothing behind."""


def open_database(
    options: DatabaseOptions | str, *, durable: bool = False, reader: bool = False
) -> AsyncEngine:
    """The engine for ``sqlite:///path`` or ``postgresql://user:password@host/name``, with these options or the default ones.

    ``reader``: for single statements that change nothing: each is a transaction of its own, and a pooled connection is not asked
    whether it still works before it is used; both are round trips on PostgreSQL.

    ``durable``: for what cannot be rebuilt from the event store: what is committed outlives the machine, in SQLite
    too. That costs an fsync for each transaction, so what can be rebuilt goes without.

    Raises:
        DatabaseConfigurationError: another kind of URL, or an option or file that there is not.
    """
    given = DatabaseOptions(options) if isinstance(options, str) else options
    address = _address(given.url)
    if address.url.drivername == "sqlite":
        path = address.url.database
        if path and not path.startswith((":memory:", "file:")):
            _make_file(Path(path))
        engine = create_async_engine(address.url.set(drivername="sqlite+aiosqlite"), hide_parameters=True)
        sa.event.listen(engine.sync_engine, "connect", partial(_tune_sqlite, durable=durable))
        return engine
    engine = create_async_engine(
        address.url,
        hide_parameters=True,  # errors quote them, and they hold what others sent
        pool_pre_ping=not reader,
        pool_size=min(given.connections, KEPT) if reader else OWN,
        max_overflow=max(given.connections - KEPT, 0) if reader else 0,
        connect_args={**address.arguments, **(_UNPREPARED if given.transaction_pooling else {})},
        execution_options={_SECONDS: given.call_seconds},
        **({"isolation_level": "AUTOCOMMIT"} if reader else {}),
    )
    sa.event.listen(engine.sync_engine, "handle_error", _distrust)
    if reader and not given.transaction_pooling:
        sa.event.listen(engine.sync_engine, "connect", _plan)  # elsewhere nothing stays prepared
    return engine


def _plan(connection: Any, _record: Any) -> None:
    """Plans for the values that are asked for, of data that is in memory, as a read model is."""
    cursor = connection.cursor()
    for setting in ("plan_cache_mode = force_custom_plan", "random_page_cost = 1.1"):
        cursor.execute(f"SET {setting}")
    cursor.close()


def _distrust(context: sa.ExceptionContext) -> None:
    """Which connections are not used again, besides those that are closed."""
    if isinstance(context.original_exception, asyncio.CancelledError):
        context.invalidate_pool_on_disconnect = True  # what is pooled may be as silent as this one
    elif getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True  # the primary may be elsewhere by now


def shown(url: str) -> str:
    """The URL as it may be shown: without password and options. Raises DatabaseConfigurationError."""
    found = _address(url).url
    return found.set(drivername=found.get_backend_name()).render_as_string()


def _address(url: str) -> Address:
    try:
        if url.startswith("sqlite:"):
            return Address(make_url(url), {})
        if not url.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
            raise ValueError("must begin with sqlite:/// or postgresql://")  # noqa: TRY301 - said as the others
        return Address.of(url)
    except (ValueError, ArgumentError) as error:
        raise DatabaseConfigurationError(f"DATABASE_URL {error}") from None


def open_sqlite(url: URL) -> sa.Engine:
    """An SQLite file for threads, in which every statement is its own transaction unless one is begun."""
    engine = sa.create_engine(
        url.set(drivername="sqlite"),
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        connect_args={"check_same_thread": False},
    )
    sa.event.listen(engine, "connect", partial(_tune_sqlite, durable=False))
    return engine


def _make_file(path: Path) -> None:
    """For its owner alone: dead letters hold what others sent."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(path)
    except OSError as error:
        raise DatabaseConfigurationError(f"DATABASE_URL: {path} cannot be made: {error.strerror}") from error


def _tune_sqlite(connection: Any, _record: Any, *, durable: bool) -> None:
    """NORMAL may lose the last transactions with the machine, never corrupt (https://sqlite.org/pragma.html).

    That is enough for what can be rebuilt from the event store: rows and checkpoint go back together.
    """
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_SECONDS * 1000}")
    cursor.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    cursor.close()


def _write_ahead(path: str) -> None:
    with closing(sqlite3.connect(path, timeout=SQLITE_BUSY_SECONDS)) as connection:
        write_ahead(connection, SQLITE_BUSY_SECONDS)


@asynccontextmanager
async def answered(engine: AsyncEngine) -> AsyncIterator[None]:
    """A call that is given up when it takes too long. Raises as ``explained`` does."""
    seconds = engine.get_execution_options().get(_SECONDS)
    with explained(engine):
        try:
            async with asyncio.timeout(seconds) as deadline:
                yield
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise TimeoutError(f"it took longer than {seconds:g} s") from error


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction, committed at the end. Raises as ``answered`` does."""
    async with answered(engine), engine.begin() as connection:
        yield connection


async def ping(engine: AsyncEngine) -> None:
    """Return when it answers, and takes changes. Raises as ``answered`` does."""
    async with answered(engine), engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            await connection.exec_driver_sql("SELECT 1")
            return
        read_only = await connection.scalar(_READ_ONLY)
    if read_only == "on":
        raise DatabaseUnavailableError(f"the database takes no changes: {MEANINGS[READ_ONLY].advice}")


def patient(engine: AsyncEngine) -> AsyncEngine:
    """The same engine for what takes long: work on whole tables, and what waits for it."""
    seconds = engine.get_execution_options().get(_SECONDS)
    return engine.execution_options(**{_SECONDS: seconds and seconds * LASTING})


async def dispose(engine: AsyncEngine) -> None:
    """Close its connections; those that do not answer end with the process."""
    with suppress(DatabaseUnavailableError):
        async with answered(engine):
            await engine.dispose()


@dataclass(frozen=True, slots=True)
class Schema:
    """``revision``: what the tables are of, None if there are none; ``pending``: the changes that this version needs, each in a line."""

    revision: str | None
    pending: Sequence[str]


async def schema(engine: AsyncEngine) -> Schema:
    """What is there, and what is missing. It needs no right but to read, and changes nothing.

    Raises:
        DatabaseUnavailableError: try again.
        DatabaseConfigurationError: a newer version of the system owns the schema, or the database is not UTF-8.
    """
    try:
        async with transaction(engine):
            pass  # it answers; then whoever changes the tables may take his time
        async with transaction(patient(engine)) as connection:
            return await connection.run_sync(_schema)
    except RevisionError as error:
        raise DatabaseConfigurationError(
            f"the database was made by a newer version of cml-workers ({error}); update this one"
        ) from error


async def migrate(engine: AsyncEngine) -> Schema:
    """Bring the schema up to date; processes that start together wait for one another. What it was before.

    Raises as ``schema`` does, and DatabaseConfigurationError where we may not change it.
    """
    before = await schema(engine)
    tries = int(LOCK_TRIES if before.pending else 0)
    while tries:
        try:
            await _migrate(engine)
            break
        except DatabaseUnavailableError as error:
            tries -= 1
            if _sqlstate(error) != LOCKED or not tries:
                raise
        except DatabaseConfigurationError as error:
            if _sqlstate(error) != DENIED:
                raise
            raise DatabaseConfigurationError(
                f"the schema lacks what this version needs ({'; '.join(before.pending)}), and the user in DATABASE_URL may not "
                f"change it: run `cml-workers migrate` as the owner of the tables, or fix the search_path if that was done "
                f"({_said(error)})"
            ) from error
        except ProgrammingError as error:
            raise DatabaseConfigurationError(
                f"the schema of the database cannot be changed: {error.orig}"
            ) from error
        await asyncio.sleep(LOCK_PAUSE)
    return before


async def _migrate(engine: AsyncEngine) -> None:
    async with transaction(patient(engine)) as connection:
        if connection.dialect.name == "sqlite":
            await asyncio.to_thread(_write_ahead, engine.url.database or "")
            await connection.exec_driver_sql("BEGIN IMMEDIATE")
        await connection.run_sync(alone)
        if connection.dialect.name == "postgresql":
            # Behind whoever waits for a table, e.g. one that is just copied to a backup, all others wait, too.
            await connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
        await connection.run_sync(_upgrade)


def _schema(connection: sa.Connection) -> Schema:
    if connection.dialect.name == "postgresql":
        encoding = connection.scalar(sa.text("SHOW server_encoding"))
        if encoding != "UTF8":
            raise DatabaseConfigurationError(
                f"the database {connection.engine.url.database} has the encoding {encoding}, in which names and tags cannot be "
                "stored: make another one, CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0, and name it in DATABASE_URL"
            )
    revision = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(_config(connection))
    missing = scripts.iterate_revisions("heads", revision or "base")
    return Schema(revision, [f"{each.revision} {each.doc}" for each in reversed(list(missing))])


def _sqlstate(error: BaseException) -> str | None:
    """Of what the server said."""
    return getattr(getattr(error.__cause__, "orig", None), "sqlstate", None)


def _said(error: BaseException) -> str:
    return str(getattr(error.__cause__, "orig", error))


def _upgrade(connection: sa.Connection, revision: str = "head") -> None:
    command.upgrade(_config(connection), revision)


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "cml_workers:sql/migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
