"""Brings one generation of a read model's tables up to date with the event store, batch by batch."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from uuid import UUID

import sqlalchemy as sa

from cml_workers.domain.worker import Worker
from cml_workers.eventstore.following import Item
from cml_workers.eventstore.port import CaughtUp, Checkpoint, EventStore, StoredEvent
from cml_workers.readmodels.changes import Change
from cml_workers.readmodels.folding import REMEMBERED, Folding, Step
from cml_workers.readmodels.generations import Changes, Generation, Generations
from cml_workers.readmodels.model import ReadModel

BREATHES = 50
"""Events after which others of this process have their turn."""


class NotResumedError(Exception):
    """After a failure, begin with ``resumed``: what failed may have been written or not."""


class Writer:
    """Follows the store into the generation that ``choose`` finds: hand ``resumed`` and ``handle`` to ``follow_from``.

    Changes and checkpoint are written in one transaction for each batch, and only over the checkpoint that was read. So of
    two writers of a generation one is refused, and begins again from what the other has written.
    """

    def __init__(
        self,
        store: EventStore,
        generations: Generations,
        choose: Callable[[], Awaitable[Generation]],
        *,
        remembered: int = REMEMBERED,
    ) -> None:
        self._generations = generations
        self._choose = choose
        self._folding = Folding(store, remembered=remembered)
        self._at: Generation | None = None

    @property
    def at(self) -> Generation | None:
        """The generation as it was written last; None while that is not known."""
        return self._at

    async def resumed(self) -> str | None:
        """Where to go on: behind what was written last; after a failure, which it may be part of, behind what is saved."""
        if self._at is None:
            self._folding.forget()
            self._at = await self._choose()
        return self._at.position

    async def skip_to(self, position: str) -> None:
        """Move the checkpoint over places without events. Raises CheckpointMovedError."""
        at, self._at = self._at, None
        if at is None:
            raise NotResumedError
        self._at = await self._generations.write(at, {}, position)

    async def handle(self, items: Sequence[Item]) -> None:
        """Take the next items of the store's order: one transaction, however many they are.

        Raises CheckpointMovedError: somebody else writes these rows, or they are no longer the ones to write.
        """
        at, self._at = self._at, None
        if at is None:
            raise NotResumedError
        steps: list[Step] = []
        position = at.position
        for number, item in enumerate(items, 1):
            match item:
                case StoredEvent():
                    step = await self._folding.step(item)
                    if step is not None:
                        steps.append(step)
                    position = item.position
                case Checkpoint():
                    position = item.position
                case CaughtUp():
                    pass
            if not number % BREATHES:
                await asyncio.sleep(0)
        if position != at.position:
            changes = changes_of(self._generations.model, steps)
            at = await self._generations.write(at, changes, position, len(steps))
        self._at = at


def changes_of(model: ReadModel, steps: Iterable[Step]) -> Changes:
    """What these events change in the tables, the last change of each row."""
    changes: dict[str, dict[tuple[object, ...], Change]] = {}
    keys = {table.name: _key(table) for table in model.tables}
    last: dict[UUID, Worker] = {}

    def keep(made: Iterable[Change]) -> None:
        for change in made:
            key = tuple(change.row[each] for each in keys[change.table])
            changes.setdefault(change.table, {})[key] = change

    for before, recorded, after in steps:
        last[after.id] = after
        keep(model.of_event(before, recorded, after))
    for worker in last.values():
        keep(model.of_worker(worker))
    return {name: list(by_key.values()) for name, by_key in changes.items()}


def _key(table: sa.Table) -> Sequence[str]:
    return [column.name for column in table.primary_key]
