"""Brings one generation of a read model's tables up to date with the event store, batch by batch."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from cml_workers.eventstore.anchor import Anchor
from cml_workers.eventstore.names import is_workers
from cml_workers.eventstore.port import (
    CaughtUp,
    Checkpoint,
    EventStore,
    Item,
    StoredEvent,
)
from cml_workers.readmodels.batch import BREATHES, Batch
from cml_workers.readmodels.generation import Generation
from cml_workers.readmodels.generations import CheckpointMovedError, Generations
from cml_workers.readmodels.held import Held
from cml_workers.readmodels.waiting import of_an_event

log = structlog.get_logger(__name__)

LOOKS_EVERY = 5.0
"""Seconds after which it is looked at what is saved, at most, when the store says that there is nothing new."""


class NotResumedError(Exception):
    """After a failure, begin with ``resumed``: what failed may have been written or not."""


class Writer:
    """Follows the store into the generation that ``choose`` finds: hand ``resumed`` and ``handle`` to ``follow_from``.

    Changes and checkpoint are written in one transaction for each batch, and only over the checkpoint that was read. So of
    two writers of a generation one is refused, and begins again from what the other has written.

    An event that cannot be folded or written goes into quarantine. Its worker's later events pass, and are read from its stream
    when ``look`` finds that it goes on.
    """

    def __init__(
        self,
        store: EventStore,
        generations: Generations,
        choose: Callable[[], Awaitable[Generation]],
    ) -> None:
        self.held = Held(store, generations)
        self.not_ours = 0
        """Events of streams that are not ours, since it was made."""
        self._generations = generations
        self._choose = choose
        self._at: Generation | None = None
        self._turn = asyncio.Lock()
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
        async with self._turn:
            if self._at is None:
                at = await self._choose()
                await self.held.begin(at)
                self._at = at
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
        async with self._turn:
            at, self._at = self._at, None
            if at is None:
                raise NotResumedError
            try:
                self._at = await self._write(at, items)
            except Exception as error:
                if not of_an_event(error):
                    raise
                log.warning("events are written one by one", cause=type(error).__name__)
                self.held.folding.forget()
                self._at = await self._write_one_by_one(at, items)
            self.held.note()

    async def look(self, *, decides: bool = False) -> None:
        """See what was decided about those who wait, and show what they have waited with.

        ``decides``: take up what this version can handle, which is tried once. Raises as ``handle`` does.
        """
        async with self._turn:
            if self._at is None:
                return
            await self.held.quarantine.load()
            if decides:
                await self.held.take_up(self._at)
            for stream in self.held.released:
                self._at = await self.held.catch_up(self._at, stream)
            self.held.note()

    async def _write_one_by_one(self, at: Generation, items: Sequence[Item]) -> Generation:
        """As one of them cannot be written, and it is not known which."""
        for item in items:
            try:
                at = await self._write(at, [item])
            except Exception as error:
                if not of_an_event(error):
                    raise
                at = await self._write(at, [item], broken=error)
        return at

    async def _write(
        self, at: Generation, items: Sequence[Item], *, broken: Exception | None = None
    ) -> Generation:
        """``broken``: why they cannot be written."""
        batch = Batch(self._generations.model)
        waiting = dict(self.held.waiting)
        position, anchor, not_ours = at.position, None, 0
        for number, item in enumerate(items, 1):
            match item:
                case StoredEvent():
                    if is_workers(item.stream):
                        await self.held.take(batch, waiting, item, broken)
                    else:
                        not_ours += 1
                    if item.position != position:  # what a subscription left out has that of the item before
                        anchor = Anchor.of(item)
                    position = item.position
                case Checkpoint():
                    position = item.position
                case CaughtUp():
                    pass
            if not number % BREATHES:
                await asyncio.sleep(0)
        await batch.show()
        changed = {stream: each for stream, each in waiting.items() if self.held.waiting.get(stream) != each}
        if position != at.position or batch.events or changed:
            at = await self._generations.write(at, batch.changes(), position, batch.events, changed, anchor)
            self._seen_at = _now()
        elif _now() - self._seen_at > LOOKS_EVERY:
            await self._see_saved(at)
        self.held.waiting = waiting
        self.not_ours += not_ours
        return at

    async def _see_saved(self, at: Generation) -> None:
        """While no event comes, see that nobody else has written: a standby that took over may lack what is saved."""
        self._seen_at = _now()
        if await self._choose() != at:
            raise CheckpointMovedError(
                f"read model {self._generations.model.name}: its checkpoint is another one; going on from what is saved"
            )


def _now() -> float:
    return asyncio.get_running_loop().time()
