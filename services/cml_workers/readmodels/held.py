"""Workers whose events wait in a read model's quarantine, and how they go on."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from types import MappingProxyType

import structlog

from cml_workers.eventstore.names import about_stream
from cml_workers.eventstore.port import (
    EventStore,
    StoredEvent,
    StoreUnavailableError,
    StreamDeletedError,
    StreamNotFoundError,
)
from cml_workers.eventstore.quarantine import (
    OURSELVES,
    Broken,
    Case,
    Decision,
    NotHeldError,
    Quarantine,
    Waiting,
    What,
    of_read_model,
)
from cml_workers.readmodels.batch import Batch, changes_of
from cml_workers.readmodels.folding import Folding
from cml_workers.readmodels.generation import Generation
from cml_workers.readmodels.generations import Changes, Generations
from cml_workers.readmodels.waiting import of_an_event

log = structlog.get_logger(__name__)


class Held:
    """Those of one generation, for its writer, of whom no two calls may be under way at once.

    An event that cannot be folded or written is recorded in the quarantine before the checkpoint passes it; those behind it pass,
    too. Once it was decided that the worker goes on, they are read from its stream and written.
    """

    def __init__(self, store: EventStore, generations: Generations) -> None:
        self.quarantine = Quarantine(store, of_read_model(generations.model.name))
        self.folding = Folding(store, skips=self.quarantine.skips)
        self.waiting: dict[str, Waiting] = {}
        """By stream, the workers of which the generation does not show all up to its checkpoint."""
        self.somebody_waits = asyncio.Event()
        self._store = store
        self._generations = generations
        self._tried: set[str] = set()
        """Those of which we know that we cannot handle what they wait with."""

    async def begin(self, at: Generation) -> None:
        """Begin with what is saved. Raises as ``Generations.held`` and ``Quarantine.load`` do."""
        self.folding.forget()
        self.waiting = await self._generations.held(at)
        await self.quarantine.load()
        self._tried.clear()
        self.note()

    def note(self) -> None:
        """See whether somebody waits."""
        if self.waiting or self.quarantine.undecided:
            self.somebody_waits.set()
        else:
            self.somebody_waits.clear()

    @property
    def released(self) -> list[str]:
        """Streams of workers who wait, and about whom it was decided that they go on."""
        return [stream for stream in self.waiting if not self.quarantine.holds(stream)]

    async def take(
        self, batch: Batch, waiting: dict[str, Waiting], event: StoredEvent, broken: Exception | None
    ) -> None:
        """The next event of a worker, into the batch, or among those that wait; ``broken``: why it cannot be written."""
        stream, revision = event.stream, event.revision
        there = waiting.get(stream)
        if there is not None and revision >= there.first:
            batch.events += revision > there.last
            waiting[stream] = there.up_to(revision)
            return
        error = broken or await self._fold(batch, event)
        if error is not None:
            await self._hold(batch, waiting, event, error)

    async def _fold(self, batch: Batch, event: StoredEvent) -> Exception | None:
        """The next event of a worker, into the batch, unless it is skipped; why it cannot be folded, if it cannot."""
        try:
            if self.quarantine.skips(event.stream, event.revision):
                batch.events += await self.folding.skip(event)
                return None
            step = await self.folding.step(event)
        except Exception as error:
            if not of_an_event(error):
                raise
            return error
        if step is not None:
            batch.add(step)
        return None

    async def _hold(
        self, batch: Batch, waiting: dict[str, Waiting], event: StoredEvent, error: Exception
    ) -> None:
        self.folding.drop(event.stream)
        batch.events += 1
        if not self.quarantine.omits(event.stream):
            await self._record(Broken.of(event, error))
            waiting[event.stream] = Waiting(event.revision, event.revision)

    async def _record(self, broken: Broken) -> None:
        self._tried.add(broken.stream)
        await self.quarantine.hold(broken)

    async def take_up(self, at: Generation) -> None:
        """Decide about what this version can handle, and what was recorded by another process and this generation shows."""
        for case in self.quarantine.undecided:
            stream, reason = case.broken.stream, None
            if stream in self.waiting:
                if stream not in self._tried and await self._can_fold(case):
                    reason = "this version can read it"
                self._tried.add(stream)
            elif at.position is not None and not self._store.is_after(case.broken.position, at.position):
                reason = "it was handled before"
            if reason is not None:
                decision = Decision(What.TAKEN_UP, OURSELVES, None, reason)
                with suppress(NotHeldError):  # somebody else was quicker
                    await self.quarantine.decide(stream, case.broken.revision, decision)

    async def _can_fold(self, case: Case) -> bool:
        stream = case.broken.stream
        try:
            (event,) = await self._store.read(stream, after=self.waiting[stream].first - 1, limit=1)
            step = await Folding(self._store, skips=self.quarantine.skips).step(event)
            changes_of(self._generations.model, [step] if step else [])
        except Exception as error:
            if not of_an_event(error):
                raise
            return False
        return True

    async def catch_up(self, at: Generation, stream: str) -> Generation:
        """Show what a worker has waited with, up to the checkpoint, which stays where it is."""
        waiting = self.waiting[stream]
        self.folding.drop(stream)
        if self.quarantine.omits(stream):
            return await self._now_waits(at, stream, None)
        try:
            stored = await self._store.read(stream, after=waiting.first - 1)
        except StreamNotFoundError as error:
            raise StoreUnavailableError(f"a replica lags behind: no {stream} yet") from error
        except StreamDeletedError as error:
            lost = self.quarantine.lost(stream, waiting.first, at.position, error)
            return await self._hold_again(at, lost)
        events = [
            each for each in stored if at.position and not self._store.is_after(each.position, at.position)
        ]
        if waiting.last >= waiting.first and (not events or events[-1].revision < waiting.last):
            raise StoreUnavailableError(f"a replica lags behind: no {stream}@{waiting.last} yet")
        try:
            return await self._show(at, stream, events, None)
        except Exception as error:
            if not of_an_event(error):
                raise
            self.folding.drop(stream)
        for event in events:
            behind = Waiting(event.revision + 1, waiting.last) if event is not events[-1] else None
            try:
                at = await self._show(at, stream, [event], behind)
            except Exception as error:
                if not of_an_event(error):
                    raise
                return await self._hold_again(at, Broken.of(event, error))
            if self.quarantine.holds(stream):
                break
        return at

    async def _show(
        self, at: Generation, stream: str, events: Sequence[StoredEvent], behind: Waiting | None
    ) -> Generation:
        """Fold and write these events; ``behind``: what waits after them. One that cannot be folded goes into quarantine again."""
        batch, last = Batch(self._generations.model), self.waiting[stream].last
        for event in events:
            error = await self._fold(batch, event)
            if error is not None:
                await self._record(Broken.of(event, error))
                behind = Waiting(event.revision, last)
                break
        await batch.show()
        return await self._now_waits(at, stream, behind, batch.changes())

    async def _hold_again(self, at: Generation, broken: Broken) -> Generation:
        await self._record(broken)
        self.folding.drop(broken.stream)
        last = max(broken.revision, self.waiting[broken.stream].last)
        return await self._now_waits(at, broken.stream, Waiting(broken.revision, last))

    async def _now_waits(
        self, at: Generation, stream: str, waiting: Waiting | None, changes: Changes = MappingProxyType({})
    ) -> Generation:
        at = await self._generations.write(at, changes, at.position, held={stream: waiting})
        if waiting is None:
            del self.waiting[stream]
            log.info(
                "a worker that waited in quarantine goes on",
                quarantine=self.quarantine.stream,
                **about_stream(stream),
            )
        else:
            self.waiting[stream] = waiting
        return at
