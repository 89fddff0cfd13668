"""Errors of the database as ours: what to try again, and what an operator must fix."""

import sqlite3
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from cml_workers.foundation.failures import ConfigurationError


class DatabaseUnavailableError(ConnectionError):
    """The database did not answer, or not now; try again."""


class DatabaseConfigurationError(ConfigurationError):
    """The database cannot be used as configured; says what to fix."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """``kind``: as what an error is raised. ``advice``: what an operator should know besides what the server said."""

    kind: type[DatabaseUnavailableError | DatabaseConfigurationError]
    advice: str = ""


_AGAIN = Meaning(DatabaseUnavailableError)
_POOLED = (
    "behind a pooler in transaction mode, as PgBouncer's may be, set CML_DATABASE_TRANSACTION_POOLING=true"
)


def _fix(advice: str) -> Meaning:
    return Meaning(DatabaseConfigurationError, advice)


READ_ONLY, DENIED, LOCKED = "25006", "42501", "55P03"

MEANINGS: Mapping[str, Meaning] = {
    "08": _AGAIN,  # the connection
    READ_ONLY: Meaning(
        DatabaseUnavailableError, "it is read-only, as a standby is: DATABASE_URL must name the primary"
    ),
    "25P03": _AGAIN,  # a transaction was idle, or
    "25P04": _AGAIN,  # took too long
    "26000": _fix(_POOLED),  # a prepared statement is not there, or
    "42P05": _fix(_POOLED),  # is there already: another session prepared it
    "28": _fix("it does not let us in: fix user and password in DATABASE_URL"),
    "3D000": _fix("fix DATABASE_URL"),
    "3F000": _fix("the search_path of DATABASE_URL and its user must name a schema that there is"),
    "40": _AGAIN,  # deadlock, serialization
    DENIED: _fix("grant it to the user in DATABASE_URL"),
    "42P01": _fix("the user in DATABASE_URL must have the search_path of the one that made the tables"),
    "53": _AGAIN,  # too many connections, disk full, out of memory
    LOCKED: _AGAIN,  # lock time-out
    "57": _AGAIN,  # starting up, shutting down, crashed, statement time-out
    "58": _AGAIN,  # its disk
    "XX": _AGAIN,  # its own faults
    "XX001": _fix("it is damaged: restore it from a backup"),
    "XX002": _fix("an index is damaged: REINDEX it"),
}
"""By SQLSTATE, or by its class (https://www.postgresql.org/docs/current/errcodes-appendix.html). What is not here is caused by a
statement, and so perhaps by the message that it is for."""

_OUTDATED = AsyncAdapt_asyncpg_dbapi.InvalidCachedStatementError
_OF_THE_DRIVER = (_OUTDATED, AsyncAdapt_asyncpg_dbapi.InternalClientError)
"""Without an SQLSTATE: a plan that the schema has outdated, no host that is as asked for; try again."""

_OF_POOLERS: Mapping[str, Meaning] = {
    "statement pooling mode": _fix("let PgBouncer pool transactions or sessions"),
    "unsupported startup parameter": _fix(
        "say it by ALTER ROLE ... SET instead of in DATABASE_URL, as PgBouncer does not pass it on"
    ),
    "bouncer config error": _fix("PgBouncer must know the database that DATABASE_URL names"),
    "no such database": _fix("PgBouncer must know the database that DATABASE_URL names"),
}
"""What PgBouncer says of a configuration, in its words: their SQLSTATE is that of a lost connection."""

_NO_TLS = "rejected SSL upgrade"
"""What the driver says of a server without TLS, where it must have it."""

_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


@contextmanager
def explained(engine: AsyncEngine | sa.Engine) -> Iterator[None]:
    """Errors of the database as ours.

    Raises:
        DatabaseUnavailableError: it does not answer, or not now; try again.
        DatabaseConfigurationError: it does not let us in, we do not trust it, or it lacks what must be there.
    """
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise DatabaseConfigurationError(
            f"no trusted connection to {_where(engine)}: sslrootcert in DATABASE_URL must name the certificate "
            f"authority of its server ({error.verify_message})"
        ) from error
    except (OperationalError, OSError, PoolTimeoutError) as error:
        if _NO_TLS in str(error):
            raise DatabaseConfigurationError(
                f"{_where(engine)} has no TLS, and sslmode in DATABASE_URL asks for it: let the server have it"
            ) from error
        raise DatabaseUnavailableError(
            f"no answer from {_where(engine)} (DATABASE_URL): {str(error) or type(error).__name__}"
        ) from error
    except (DBAPIError, sqlite3.DatabaseError) as error:
        original = error.orig if isinstance(error, DBAPIError) else error
        if getattr(original, "sqlite_errorcode", None) in _DAMAGED:
            raise DatabaseConfigurationError(
                f"{_where(engine)} is damaged or no SQLite file ({original}): restore it from a backup, or move it away: "
                "read models are made again from the events, the archive of dead letters is not"
            ) from error
        meaning = _meaning(error) if isinstance(error, DBAPIError) else None
        if meaning is None:
            raise
        advice = f"; {meaning.advice}" if meaning.advice else ""
        raise meaning.kind(f"{_where(engine)} says: {original}{advice}") from error


def is_to_be_asked_again(error: DBAPIError) -> bool:
    """Whether the same query is answered if it is asked again at once: its pooled connection had gone, or its plan is of another schema.

    A read model's new generation may have other types of columns. The library forgets the plans with the error.
    """
    return error.connection_invalidated or isinstance(error.orig, _OUTDATED)


def _meaning(error: DBAPIError) -> Meaning | None:
    state = getattr(error.orig, "sqlstate", None) or ""
    again = error.connection_invalidated or isinstance(error.orig, _OF_THE_DRIVER)
    of_pooler = (
        meaning for words, meaning in _OF_POOLERS.items() if state[:2] == "08" and words in str(error.orig)
    )
    return (
        next(of_pooler, None) or MEANINGS.get(state) or MEANINGS.get(state[:2]) or (_AGAIN if again else None)
    )


def _where(engine: AsyncEngine | sa.Engine) -> str:
    return f"the database at {engine.url.set(drivername=engine.dialect.name).render_as_string()}"
