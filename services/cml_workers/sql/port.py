"""A database as its users see it: work is a plain function of a connection, and an adapter runs it."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

T = TypeVar("T")
Work = Callable[[sa.Connection], T]
Row = sa.Row[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """Where a database is, as ``Address`` understands it, and how it is used.

    ``call_seconds``: how long a call to PostgreSQL may take until it counts as not answered. ``connections``: how many queries may
    use at once. ``transaction_pooling``: each transaction may be another session's, so that nothing is left in one.
    """

    url: str = field(repr=False)  # with a password
    call_seconds: float = 5.0
    connections: int = 15
    transaction_pooling: bool = False


class ByKey:
    """Rows of which each is found by the value of one column.

    ``every`` selects them all, that column last; ``one`` the row of ``key``; ``some`` those of the array ``keys``, in PostgreSQL.
    """

    def __init__(self, key: sa.ColumnElement[Any], *columns: sa.ColumnElement[Any]) -> None:
        self.every: sa.Select[*tuple[Any, ...]] = sa.select(*columns, key)
        self.one = self.every.where(key == sa.bindparam("key", type_=key.type))
        among = sa.bindparam("keys", type_=postgresql.ARRAY(key.type))
        self.some = self.every.where(key == sa.any_(among))


class Database(Protocol):
    """Safe for many concurrent callers of one event loop. ``work`` runs at once, and does not wait for anything else.

    A call that takes too long is given up, one that is ``lasting``, as on whole tables, only after much longer.

    Raises DatabaseUnavailableError (try again) and DatabaseConfigurationError (trying again is of no use).
    """

    async def read(self, work: Work[T]) -> T:
        """Run a single statement that changes nothing, in one round trip; it may run twice."""
        ...

    async def find(self, rows: ByKey, key: Hashable) -> Row | None:
        """The row with that key; None if there is none."""
        return await self.read(lambda connection: connection.execute(rows.one, {"key": key}).first())

    async def snapshot(self, work: Work[T], *, lasting: bool = False) -> T:
        """Run statements that change nothing and all see the same moment."""
        ...

    async def write(self, work: Work[T], *, lasting: bool = False) -> T:
        """Run ``work`` in a transaction, which is committed when it returns and rolled back when it raises.

        If the answer is lost (DatabaseUnavailableError), it may or may not have been committed.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads."""
        ...
