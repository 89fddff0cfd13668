"""Rebuild: fill a new generation beside the active one while commands and queries go on, compare the two, switch."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from cml_workers.eventstore.following import Item, backoff, follow_from
from cml_workers.eventstore.port import CaughtUp, Checkpoint, EventStore, StoreUnavailableError
from cml_workers.eventstore.worker_streams import WORKER_STREAMS
from cml_workers.readmodels.generations import Difference, Generation, Generations, State
from cml_workers.readmodels.writing import Writer

log = structlog.get_logger(__name__)

BATCH = 1_000
"""Items in one transaction."""
REMEMBERED = 100_000
"""Folded workers kept in memory until the rebuild is done."""
PATIENCE = 30.0
"""Seconds to try to find the two generations at one position, where they can be compared."""
PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild has come. ``total``: the events in the active generation; None if there is none."""

    model: str
    position: str | None
    events: int
    total: int | None
    rate: float
    """Events a second since it was begun or resumed."""

    @property
    def percent(self) -> float | None:
        """Of the events; None if nobody knows how many there are."""
        return min(100.0, 100.0 * self.events / self.total) if self.total else None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did. ``differences``: None if the two were never seen at one position."""

    model: str
    generation: Generation
    before: Generation | None
    events: int
    seconds: float
    differences: Sequence[Difference] | None
    switched: bool

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds if self.seconds else 0.0


class SupersededError(Exception):
    """Another process has finished this rebuild, or has begun one of another version."""


class _ReachedError(Exception):
    """Not a failure: the way to stop following."""


@dataclass
class Rebuild:
    """One rebuild of one read model. It may be cancelled or die at any point: the next one resumes it.

    ``switch``: whether the new generation becomes the active one at the end; where not, it stays for another process, or is
    dropped if ``keep`` is false.
    """

    store: EventStore
    generations: Generations
    switch: bool = True
    keep: bool = True
    on_progress: Callable[[Progress], None] = lambda _: None
    backoff: Callable[[int], float] = backoff
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _began: float = field(default=0.0, init=False)
    _events: int = field(default=0, init=False)

    async def run(self) -> Rebuilt:
        """Do it, whatever becomes of the connections meanwhile.

        Raises:
            SupersededError: somebody else finished this rebuild, or began another.
            ConfigurationError: trying again is of no use.
        """
        self._began = _now()
        failures = 0
        while True:
            try:
                return await self._rebuilt()
            except ConnectionError as error:
                failures += 1
                log.warning("rebuild continues later", read_model=self._name, cause=str(error))
            await self.sleep(self.backoff(failures))

    @property
    def _name(self) -> str:
        return self.generations.model.name

    async def _rebuilt(self) -> Rebuilt:
        begun = await self.generations.begin()
        writer = Writer(self.store, self.generations, self._chosen(begun.number), remembered=REMEMBERED)
        differences: Sequence[Difference] | None = None
        end: float | None = None
        while True:
            active = await self.generations.active()
            at = await self._follow(writer, active)
            end = end or _now() + PATIENCE
            if active is not None and differences is None and self.generations.usable(active):
                differences = await self.generations.compare(at)
                if differences is None and _now() < end:
                    await self.sleep(PAUSE)
                    continue
            if not self.switch or await self.generations.switch(at, active):
                break
            await self.sleep(PAUSE)
        if self.switch:
            await self.generations.drop()
        elif not self.keep:
            await self.generations.drop(at)
        seconds = _now() - self._began
        return Rebuilt(self._name, at, active, self._events, seconds, differences, self.switch)

    def _chosen(self, number: int) -> Callable[[], Awaitable[Generation]]:
        async def choose() -> Generation:
            found = await self.generations.numbered(number)
            if found is None or found.state is not State.BUILDING:
                raise SupersededError(
                    f"read model {self._name}: somebody else finished or replaced this rebuild"
                )
            return found

        return choose

    async def _follow(self, writer: Writer, active: Generation | None) -> Generation:
        """Go on until exactly where the active one is, else to the end of what is stored.

        The end is looked for after the active one's position was read: either way nothing that it has is missing.
        """
        target = active.position if active else None

        async def handle(items: Sequence[Item]) -> None:
            here = next((n for n, item in enumerate(items, 1) if _position(item) == target), None)
            before = writer.at.events if writer.at else 0
            await writer.handle(items[:here] if target is not None else items)
            assert writer.at is not None  # noqa: S101 - it has just been written
            self._events += writer.at.events - before
            self._tell(writer.at, active)
            if (target is not None and here is not None) or any(isinstance(item, CaughtUp) for item in items):
                raise _ReachedError

        if await writer.resumed() != target or target is None:
            try:
                await follow_from(
                    self.store,
                    writer.resumed,
                    handle,
                    prefix=WORKER_STREAMS,
                    most=BATCH,
                    backoff=self.backoff,
                    sleep=self.sleep,
                )
            except _ReachedError:
                pass
            else:
                raise StoreUnavailableError("the event store is closed")
        assert writer.at is not None  # noqa: S101 - see above
        if target is not None and writer.at.position != target and await self._nothing_behind(target):
            await writer.skip_to(target)
        return writer.at

    async def _nothing_behind(self, position: str) -> bool:
        """Whether no event follows; a checkpoint may be at a place without one, of which there are many."""
        async with aclosing(self.store.follow(after=position, prefix=WORKER_STREAMS)) as items:
            async for item in items:
                if not isinstance(item, Checkpoint):
                    return isinstance(item, CaughtUp)
        return False

    def _tell(self, at: Generation, active: Generation | None) -> None:
        seconds = _now() - self._began
        total = active.events if active else None
        self.on_progress(
            Progress(self._name, at.position, at.events, total, self._events / seconds if seconds else 0.0)
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


def _position(item: Item) -> str | None:
    return None if isinstance(item, CaughtUp) else item.position
