"""What there is now: workers by status, open operations and their age, how far rebuilds have come, dead letters that wait."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from cml_contracts.instance import WorkerStatus
from cml_workers.foundation.metrics import READ_MODEL_EVENTS, WORKERS
from cml_workers.readmodels.generation import GENERATIONS, State
from cml_workers.readmodels.model import active
from cml_workers.readmodels.workers import tables
from cml_workers.readmodels.workers.fold import sortable
from cml_workers.sql.port import Database, Row

COUNTED = tuple(status.value for status in WorkerStatus if status is not WorkerStatus.TERMINATED)
"""Terminated workers stay in the read model, so there are more and more of them."""
_WORKERS, _OPERATIONS = active(tables.WORKERS), active(tables.OPERATIONS)
_BY_STATUS = (
    sa.select(_WORKERS.c.status, sa.func.count().label("workers"))
    .where(_WORKERS.c.status.in_(COUNTED))
    .group_by(_WORKERS.c.status)
)
_OPEN = sa.select(
    sa.func.count().label("open"),
    sa.func.min(_OPERATIONS.c.pending_since).label("since"),
    sa.func.count(sa.case((_OPERATIONS.c.pending_since < sa.bindparam("before"), 1))).label("overdue"),
).where(_OPERATIONS.c.pending_since > "")  # which an index finds, as it does not find every "is not null"
_FILLED = sa.select(GENERATIONS.c.name, GENERATIONS.c.state, GENERATIONS.c.events).where(
    GENERATIONS.c.state.in_((State.ACTIVE.value, State.BUILDING.value))
)


class Survey:
    """Counts now and then, whoever asks for the metrics.

    ``dead_letters``: how many wait; ``deadline``: the age from which an operation is overdue.
    """

    def __init__(
        self,
        database: Database,
        *,
        dead_letters: Callable[[], Awaitable[int]],
        now: Callable[[], datetime],
        deadline: timedelta,
    ) -> None:
        self._database = database
        self._dead_letters = dead_letters
        self._now = now
        self._deadline = deadline
        self._counts: Mapping[str, int] = {}

    def counts(self) -> Mapping[str, int]:
        """Operations and dead letters, as they were at the last look; empty if they could not be counted."""
        return self._counts

    async def look(self, *, usable: bool) -> None:
        """Count; ``usable``: whether there are rows of workers. Raises as ``Database`` does, and then nothing is shown."""
        before = sortable(self._now() - self._deadline)
        try:
            filled = await self._rows(_FILLED)
            workers = await self._rows(_BY_STATUS) if usable else None
            operations = await self._rows(_OPEN, before=before) if usable else ()
            counts = {"dead_letters_waiting": await self._dead_letters()}
        except Exception:
            self._counts = {}
            _show((), None)
            raise
        _show(filled, workers)
        for row in operations:
            age = self._now() - datetime.fromisoformat(row.since) if row.since else timedelta()
            counts |= {
                "operations_open": row.open,
                "operations_oldest_seconds": max(int(age.total_seconds()), 0),
                "operations_overdue": row.overdue,
            }
        self._counts = counts

    async def _rows(self, query: sa.Select[*tuple[object, ...]], **values: object) -> Sequence[Row]:
        return await self._database.read(lambda connection: connection.execute(query, values).all())


def _show(filled: Sequence[Row], workers: Sequence[Row] | None) -> None:
    READ_MODEL_EVENTS.clear()
    for row in filled:
        READ_MODEL_EVENTS.labels(row.name, State.BUILDING.value)  # 0 where none is being built
        READ_MODEL_EVENTS.labels(row.name, row.state).set(row.events)
    WORKERS.clear()
    if workers is not None:
        counted = {row.status: row.workers for row in workers}
        for status in COUNTED:
            WORKERS.labels(status).set(counted.get(status, 0))
