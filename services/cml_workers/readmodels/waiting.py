"""Workers whose events wait in a read model's quarantine: for each generation, in its database, beside its checkpoint."""

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from cml_workers.eventstore.quarantine import NOT_AN_EVENTS_FAULT, Waiting
from cml_workers.sql.schema import METADATA, upsert

HELD = sa.Table(
    "read_model_held",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("stream", sa.String(64), primary_key=True),
    sa.Column("first", sa.Integer, nullable=False),
    sa.Column("last", sa.Integer, nullable=False),
)
"""Of the generation ``number`` of the read model ``name``."""
_OF_A_VALUE = ("22", "23", "54")
"""Classes of SQLSTATE: a value is not one, breaks a constraint, or is too large."""

Changed = Mapping[str, Waiting | None]
"""By stream, who waits now; None: no longer."""


def held_of(connection: sa.Connection, name: str, number: int) -> dict[str, Waiting]:
    """By stream, who waits in this generation."""
    query = sa.select(HELD.c.stream, HELD.c.first, HELD.c.last).where(*_of(name, number))
    return {row.stream: Waiting(row.first, row.last) for row in connection.execute(query)}


def write_held(connection: sa.Connection, name: str, number: int, changed: Changed) -> None:
    """What changed of it, in the transaction of the checkpoint."""
    rows = [
        {"name": name, "number": number, "stream": stream, "first": each.first, "last": each.last}
        for stream, each in changed.items()
        if each is not None
    ]
    if rows:
        connection.execute(upsert(connection.dialect.name, HELD), rows)
    gone = [stream for stream, each in changed.items() if each is None]
    if gone:
        connection.execute(sa.delete(HELD).where(*_of(name, number), HELD.c.stream.in_(gone)))


def forget_held(connection: sa.Connection, name: str, number: int) -> None:
    """The generation is gone."""
    connection.execute(sa.delete(HELD).where(*_of(name, number)))


def of_an_event(error: Exception) -> bool:
    """Whether an error is that of an event that is folded and written, and not of what it is written to."""
    if isinstance(error, NOT_AN_EVENTS_FAULT):
        return False
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None) or ""
        return state[:2] in _OF_A_VALUE or isinstance(error, DataError | IntegrityError)
    return not isinstance(error, SQLAlchemyError)


def _of(name: str, number: int) -> tuple[sa.ColumnElement[bool], ...]:
    return HELD.c.name == name, HELD.c.number == number
