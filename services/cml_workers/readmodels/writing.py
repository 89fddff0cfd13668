"""Brings one generation of a read model's tables up to date with the event store, batch by batch."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from uuid import UUID

from cml_workers.domain.worker import Worker
from cml_workers.eventstore.port import CaughtUp, Checkpoint, EventStore, Item, StoredEvent
from cml_workers.readmodels.changes import Change
from cml_workers.readmodels.folding import Folding, Step
from cml_workers.readmodels.generation import Generation
from cml_workers.readmodels.generations import Changes, CheckpointMovedError, Generations
from cml_workers.readmodels.model import ReadModel

LOOKS_EVERY = 5.0
"""Seconds after which it is looked at what is saved, at most, when the store says that there is nothing new."""
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
    ) -> None:
        self._generations = generations
        self._choose = choose
        self._folding = Folding(store)
        self._at: Generation | None = None
        self._seen_at = float("-inf")

    @property
    def at(self) -> Generation | None:
        """The generation as it was written last; None while that is not known."""
        return self._at

    def begin_again(self) -> None:
        """Go on from what is saved."""
        self._at = None

    async def resumed(self) -> str | None:
        """Where to go on: behind what was written last; after a failure, which it may be part of, behind what is saved."""
        if self._at is None:
            self._folding.forget()
            self._at = await self._choose()
            self._seen_at = _now()
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
        batch = Batch(self._generations.model)
        position = at.position
        for number, item in enumerate(items, 1):
            match item:
                case StoredEvent():
                    step = await self._folding.step(item)
                    if step is not None:
                        batch.add(step)
                    position = item.position
                case Checkpoint():
                    position = item.position
                case CaughtUp():
                    pass
            if not number % BREATHES:
                await asyncio.sleep(0)
        for number, worker in enumerate(batch.workers(), 1):
            batch.show(worker)
            if not number % BREATHES:
                await asyncio.sleep(0)
        if position != at.position:
            at = await self._generations.write(at, batch.changes(), position, batch.events)
            self._seen_at = _now()
        elif _now() - self._seen_at > LOOKS_EVERY:
            await self._look(at)
        self._at = at

    async def _look(self, at: Generation) -> None:
        """While no event comes, see that nobody else has written: a standby that took over may lack what is saved."""
        self._seen_at = _now()
        if await self._choose() != at:
            raise CheckpointMovedError(
                f"read model {self._generations.model.name}: its checkpoint is another one; going on from what is saved"
            )


def _now() -> float:
    return asyncio.get_running_loop().time()


class Batch:
    """What events change in the tables: the last change of each row."""

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

    def workers(self) -> Sequence[Worker]:
        """Those that had events, as they are after the last one."""
        return list(self._last.values())

    def show(self, worker: Worker) -> None:
        """The rows of one of them, after all events."""
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
    for worker in batch.workers():
        batch.show(worker)
    return batch.changes()
