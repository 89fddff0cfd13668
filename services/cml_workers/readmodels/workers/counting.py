"""What there is now, by the read model: workers by status, open operations and their age, and how far rebuilds have come."""

from collections.abc import Callable, Mapping, Sequence
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
    """Counts now and then, whoever asks for the metrics. ``deadline``: the age from which an operation is overdue."""

    def __init__(self, database: Database, *, now: Callable[[], datetime], deadline: timedelta) -> None:
        self._database = database
        self._now = now
        self._deadline = deadline
        self._open: Mapping[str, int] = {}

    def counts(self) -> Mapping[str, int]:
        """Open operations, as they were at the last look; empty if they could not be counted."""
        return self._open

    async def look(self, *, usable: bool) -> None:
        """Count; ``usable``: whether there are rows of workers. Raises as ``Database`` does, and then nothing is shown."""
        before = sortable(self._now() - self._deadline)
        try:
            filled = await self._rows(_FILLED)
            workers = await self._rows(_BY_STATUS) if usable else None
            operations = await self._rows(_OPEN, before=before) if usable else ()
        except ConnectionError:
            self._show((), None, ())
            raise
        self._show(filled, workers, operations)

    def _show(self, filled: Sequence[Row], workers: Sequence[Row] | None, operations: Sequence[Row]) -> None:
        READ_MODEL_EVENTS.clear()
        for row in filled:
            READ_MODEL_EVENTS.labels(row.name, State.BUILDING.value)  # 0 where none is being built
            READ_MODEL_EVENTS.labels(row.name, row.state).set(row.events)
        WORKERS.clear()
        if workers is not None:
            counted = {row.status: row.workers for row in workers}
            for status in COUNTED:
                WORKERS.labels(status).set(counted.get(status, 0))
        self._open = {}
        for row in operations:
            age = self._now() - datetime.fromisoformat(row.since) if row.since else timedelta()
            self._open = {
                "operations_open": row.open,
                "operations_oldest_seconds": max(int(age.total_seconds()), 0),
                "operations_overdue": row.overdue,
            }

    async def _rows(self, query: sa.Select[*tuple[object, ...]], **values: object) -> Sequence[Row]:
        return await self._database.read(lambda connection: connection.execute(query, values).all())
