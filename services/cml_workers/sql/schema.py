"""The tables that migrations make, and statements that SQLite and PostgreSQL take alike."""

from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

METADATA = sa.MetaData()

CHECKPOINTS = sa.Table(
    "checkpoints",
    METADATA,
    sa.Column("follower", sa.String(64), primary_key=True),
    sa.Column("position", sa.String(64), nullable=False),
)
"""Of followers in earlier versions; only the relay's may still be there."""

_SCHEMA_LOCK = 0x434D4C57
"""Any number that nobody else uses for an advisory lock in this database."""


def alone(connection: sa.Connection) -> None:
    """Wait until nobody else changes the schema, in a transaction that may write; SQLite has one of these at a time."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))


def insert(dialect: str, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """An insert that knows ``on_conflict``, which SQLite and PostgreSQL write alike."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


@lru_cache
def upsert(dialect: str, table: sa.Table) -> sa.Executable:
    """The statement that inserts rows, or overwrites the ones with the same primary key."""
    statement = insert(dialect, table)
    key = [column.name for column in table.primary_key]
    overwritten = {
        column.name: statement.excluded[column.name] for column in table.columns if column.name not in key
    }
    if not overwritten:
        return statement.on_conflict_do_nothing(index_elements=key)
    return statement.on_conflict_do_update(index_elements=key, set_=overwritten)
