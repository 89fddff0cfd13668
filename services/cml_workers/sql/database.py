"""The SQL database: its engine, and its schema."""

import asyncio
import sqlite3
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from cml_workers.foundation.private_file import make_private
from cml_workers.foundation.sqlite_files import write_ahead
from cml_workers.sql.errors import DatabaseConfigurationError, explained
from cml_workers.sql.schema import alone

SQLITE_BUSY_SECONDS = 20
"""How long one process waits for the others that use an SQLite file."""


_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}


def open_database(url: str, *, durable: bool = False, reader: bool = False) -> AsyncEngine:
    """The engine for ``sqlite:///path`` or ``postgresql://user:password@host/name``.

    ``reader``: for single statements that change nothing: each is a transaction of its own, and a pooled connection is not asked
    whether it still works before it is used; both are round trips on PostgreSQL.

    ``durable``: for what cannot be rebuilt from the event store: what is committed outlives the machine, in SQLite
    too. That costs an fsync for each transaction, so what can be rebuilt goes without.

    For PostgreSQL, ``?sslmode=verify-full&sslrootcert=ca.pem`` and ``sslcert``, ``sslkey`` mean what they mean to
    libpq (https://www.postgresql.org/docs/current/libpq-ssl.html).

    Raises:
        DatabaseConfigurationError: another kind of URL, or an option or file that there is not.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseConfigurationError(f"DATABASE_URL is not a database URL: {error}") from error
    driver = _DRIVERS.get(parsed.drivername, parsed.drivername)
    if driver not in _DRIVERS.values():
        raise DatabaseConfigurationError(
            f"DATABASE_URL must begin with sqlite:/// or postgresql://, not {parsed.drivername}://"
        )
    if driver == "sqlite+aiosqlite":
        if parsed.database and not parsed.database.startswith((":memory:", "file:")):
            _make_file(Path(parsed.database))
        engine = create_async_engine(parsed.set(drivername=driver))
        sa.event.listen(engine.sync_engine, "connect", partial(_tune_sqlite, durable=durable))
        return engine
    return create_async_engine(
        parsed.set(drivername=driver, query={}),
        pool_pre_ping=not reader,
        connect_args={"ssl": _tls(parsed)},
        **({"isolation_level": "AUTOCOMMIT"} if reader else {}),
    )


def open_sqlite(url: URL) -> sa.Engine:
    """An SQLite file for threads, in which every statement is its own transaction unless one is begun."""
    engine = sa.create_engine(
        url.set(drivername="sqlite"),
        isolation_level="AUTOCOMMIT",
        connect_args={"check_same_thread": False},
    )
    sa.event.listen(engine, "connect", partial(_tune_sqlite, durable=False))
    return engine


def _make_file(path: Path) -> None:
    """For its owner alone: dead letters hold what others sent."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_private(path)
    except OSError as error:
        raise DatabaseConfigurationError(f"DATABASE_URL: {path} cannot be made: {error.strerror}") from error


def _tls(url: URL) -> str | ssl.SSLContext:
    """How to secure the connection. The driver takes libpq's modes by name, but the files only as a context."""
    options = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    unknown = options.keys() - {"sslmode", "sslrootcert", "sslcert", "sslkey"}
    if unknown:
        raise DatabaseConfigurationError(
            f"DATABASE_URL has options that are not known: {', '.join(sorted(unknown))}; known are sslmode, "
            "sslrootcert, sslcert and sslkey"
        )
    mode = options.get("sslmode", "verify-full" if "sslrootcert" in options else "prefer")
    if mode in ("disable", "allow", "prefer", "require"):
        return mode
    if mode not in ("verify-ca", "verify-full"):
        raise DatabaseConfigurationError(
            f"DATABASE_URL: sslmode {mode!r} is none of disable, allow, prefer, require, verify-ca, verify-full"
        )
    try:
        context = ssl.create_default_context(cafile=options.get("sslrootcert"))
        context.check_hostname = mode == "verify-full"
        if "sslcert" in options:
            context.load_cert_chain(options["sslcert"], options.get("sslkey"))
    except OSError as error:
        raise DatabaseConfigurationError(
            f"DATABASE_URL: sslrootcert, sslcert or sslkey cannot be read: {error}"
        ) from error
    return context


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
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction, committed at the end. Raises as ``explained`` does."""
    with explained(engine):
        async with engine.begin() as connection:
            yield connection


async def migrate(engine: AsyncEngine) -> None:
    """Bring the schema up to date; processes that start together wait for one another.

    Raises:
        DatabaseUnavailableError: try again.
        DatabaseConfigurationError: a newer version of the system owns the schema, or we may not change it.
    """
    try:
        async with transaction(engine) as connection:
            if connection.dialect.name == "sqlite":
                await asyncio.to_thread(_write_ahead, engine.url.database or "")
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            await connection.run_sync(alone)
            await connection.run_sync(_upgrade)
    except CommandError as error:
        raise DatabaseConfigurationError(
            f"the database was made by a newer version of cml-workers ({error}); update this one"
        ) from error
    except ProgrammingError as error:
        raise DatabaseConfigurationError(
            f"the schema of the database cannot be changed: {error.orig}"
        ) from error


def _upgrade(connection: sa.Connection, revision: str = "head") -> None:
    config = Config()
    config.set_main_option("script_location", "cml_workers:sql/migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
