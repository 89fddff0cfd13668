"""What some events change in the tables of a read model."""

import asyncio
from collections.abc import Iterable
from uuid import UUID

from cml_workers.domain.worker import Worker
from cml_workers.readmodels.changes import Change
from cml_workers.readmodels.folding import Step
from cml_workers.readmodels.generations import Changes
from cml_workers.readmodels.model import ReadModel

BREATHES = 50
"""Events after which others of this process have their turn."""


class Batch:
    """The last change of each row; ``events``: how many there were."""

    def __init__(self, model: ReadModel) -> None:
        self.events = 0
        self._model = model
        self._keys = {table.name: [column.name for column in table.primary_key] for table in model.tables}
        self._changes: dict[str, dict[tuple[object, ...], Change]] = {}
        self._last: dict[UUID, Worker] = {}

    def add(self, step: Step) -> None:
        """The next event."""
        before, recorded, after = step
        self.events += 1
        self._last[after.id] = after
        self._keep(self._model.of_event(before, recorded, after))

    async def show(self) -> None:
        """The rows of the workers that had events, as they are after all of them."""
        for number, worker in enumerate(self._last.values(), 1):
            self._keep(self._model.of_worker(worker))
            if not number % BREATHES:
                await asyncio.sleep(0)

    def show_at_once(self) -> None:
        """The same, while nobody else has a turn."""
        for worker in self._last.values():
            self._keep(self._model.of_worker(worker))

    def changes(self) -> Changes:
        """All of it, by table."""
        return {name: list(by_key.values()) for name, by_key in self._changes.items()}

    def _keep(self, made: Iterable[Change]) -> None:
        for change in made:
            key = tuple(change.row[name] for name in self._keys[change.table])
            self._changes.setdefault(change.table, {})[key] = change


def changes_of(model: ReadModel, steps: Iterable[Step]) -> Changes:
    """What these events change, at once."""
    batch = Batch(model)
    for step in steps:
        batch.add(step)
    batch.show_at_once()
    return batch.changes()
