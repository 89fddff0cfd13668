"""A database as its users see it: work is a plain function of a connection, and an adapter runs it."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import sqlalchemy as sa

T = TypeVar("T")
Work = Callable[[sa.Connection], T]


class Database(Protocol):
    """Safe for many concurrent callers of one event loop. ``work`` runs at once, and does not wait for anything else.

    Raises DatabaseUnavailableError (try again) and DatabaseConfigurationError (trying again is of no use).
    """

    async def read(self, work: Work[T]) -> T:
        """Run a single statement that changes nothing, in one round trip; it may run twice."""
        ...

    async def read_by_key(self, work: Work[T]) -> T:
        """As ``read``, for a statement that finds a row by its key: where that takes microseconds, it is run at once."""
        return await self.read(work)

    async def snapshot(self, work: Work[T]) -> T:
        """Run statements that change nothing and all see the same moment."""
        ...

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction, which is committed when it returns and rolled back when it raises.

        If the answer is lost (DatabaseUnavailableError), it may or may not have been committed.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads."""
        ...
