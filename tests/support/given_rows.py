"""Given these events, then this row: the voice of the read models' fold tests.

Every check folds the events three times: all at once, one by one, and in pieces with some of them delivered again. The rows must
be the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cml_contracts.events import WorkerEvent
from cml_workers.domain.fold import evolve
from cml_workers.domain.history import Recorded
from cml_workers.domain.worker import Worker
from cml_workers.readmodels.batch import changes_of
from cml_workers.readmodels.changes import Put
from cml_workers.readmodels.folding import Step
from cml_workers.readmodels.model import ReadModel
from support.given import NOW, WORKER, recorded

Table = dict[tuple[object, ...], Mapping[str, Any]]


@dataclass
class GivenEvents:
    model: ReadModel
    history: Sequence[Recorded]

    def rows(self, table: str) -> list[Mapping[str, Any]]:
        """The rows of the table; the same however the events come."""
        size = len(self.history)
        whole, single, again = (
            self._folded(pieces)
            for pieces in (
                [range(size)],
                [[number] for number in range(size)],
                [range(size // 2 + 1), range(size // 2, size), range(size)],
            )
        )
        assert whole == single == again
        return list(whole.get(table, {}).values())

    def then_row(self, table: str, **columns: Any) -> Mapping[str, Any]:
        """One row, with these values among its columns."""
        (row,) = self.rows(table)
        assert {name: row[name] for name in columns} == columns
        return row

    def then_no_row(self, table: str) -> None:
        assert self.rows(table) == []

    def _folded(self, pieces: Iterable[Iterable[int]]) -> dict[str, Table]:
        keys = {table.name: [column.name for column in table.primary_key] for table in self.model.tables}
        tables: dict[str, Table] = {}
        for piece in pieces:
            for name, changes in changes_of(self.model, self._steps(piece)).items():
                rows = tables.setdefault(name, {})
                for change in changes:
                    key = tuple(change.row[each] for each in keys[name])
                    if isinstance(change, Put):
                        rows[key] = change.row
                    else:
                        rows.pop(key, None)
        return tables

    def _steps(self, numbers: Iterable[int]) -> list[Step]:
        steps = []
        for number in numbers:
            before = Worker(WORKER)
            for each in self.history[:number]:
                before = evolve(before, each)
            steps.append((before, self.history[number], evolve(before, self.history[number])))
        return steps


def given_events(model: ReadModel, *events: WorkerEvent, at: datetime = NOW) -> GivenEvents:
    """A worker's whole stream."""
    worker, history = Worker(WORKER), []
    for event in events:
        history.append(recorded(worker, event, at, "cause"))
        worker = evolve(worker, history[-1])
    return GivenEvents(model, history)
