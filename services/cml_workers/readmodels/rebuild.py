"""Rebuild: fill a new generation beside the active generation while commands and queries go on, compare the two, switch."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial

import structlog

from cml_workers.eventstore.anchor import mismatch
from cml_workers.eventstore.following import backoff, follow_from
from cml_workers.eventstore.names import WORKER_STREAMS
from cml_workers.eventstore.port import (
    CaughtUp,
    Checkpoint,
    EventStore,
    Item,
    StoreConfigurationError,
    StoreUnavailableError,
)
from cml_workers.foundation.outages import NO_OUTAGES, Outages
from cml_workers.readmodels.comparing import Difference
from cml_workers.readmodels.generation import Generation, State
from cml_workers.readmodels.generations import Generations
from cml_workers.readmodels.writing import Writer

log = structlog.get_logger(__name__)

BATCH = 1_000
"""Items in one transaction."""
PATIENCE = 30.0
"""Seconds to try to switch to a generation that is not behind the active generation."""
COPIES = 5
"""With how many copies to compare at most: another process may drop one, and a position without an event may be passed over."""
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
    """What a rebuild did. ``differences``: None if there was nothing that it could be compared with."""

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
    """Another process has begun a rebuild, or has finished one since: this one's tables are gone."""


class _ReachedError(Exception):
    """Not a failure: the way to stop following."""


@dataclass
class Rebuild:
    """One rebuild of one read model. It may be cancelled or die at any point: the next one resumes it.

    ``switch``: whether the new generation becomes the active generation at the end. Where not, it stays for another process; if
    ``keep`` is false, it is only compared, apart from what others rebuild, and dropped.
    """

    store: EventStore
    generations: Generations
    switch: bool = True
    keep: bool = True
    on_progress: Callable[[Progress], None] = lambda _: None
    outages: Outages = NO_OUTAGES
    backoff: Callable[[int], float] = backoff
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _began: float = field(default=0.0, init=False)
    _events: int = field(default=0, init=False)
    _before: Generation | None = field(default=None, init=False)
    _copies: int = field(default=0, init=False)
    _copy: Generation | None = field(default=None, init=False)
    _differences: Sequence[Difference] | None = field(default=None, init=False)

    async def run(self) -> Rebuilt:
        """Do it, whatever becomes of the connections meanwhile.

        Raises:
            SupersededError: somebody else has replaced what this one has begun.
            ConfigurationError: trying again is of no use; NewerReadModelError: a newer program has begun.
        """
        self._began = _now()
        begun = await self._patiently(self._begin)
        writer = Writer(self.store, self.generations, partial(self._current, begun.number))
        done = await self._patiently(partial(self._fill_and_switch, begun.number, writer))
        with suppress(ConnectionError):  # it is done when a process starts, then
            kept = self.switch or self.keep
            await self.generations.drop(*([] if kept else [done]), *([self._copy] if self._copy else []))
        return Rebuilt(
            self._name, done, self._before, self._events, _now() - self._began, self._differences, self.switch
        )

    @property
    def _name(self) -> str:
        return self.generations.model.name

    async def _patiently(self, step: Callable[[], Awaitable[Generation]]) -> Generation:
        failures = 0
        while True:
            try:
                return await step()
            except ConnectionError as error:
                if await self.outages.waited_out(error):
                    continue
                failures += 1
                log.warning("rebuild continues later", read_model=self._name, cause=str(error))
            await self.sleep(self.backoff(failures))

    async def _begin(self) -> Generation:
        """An unfinished one of another store is of no use."""
        temporary = not (self.switch or self.keep)
        begun = await self.generations.begin(temporary=temporary)
        if await mismatch(self.store, begun.anchor) is not None:
            await self.generations.drop(begun)
            begun = await self.generations.begin(temporary=temporary)
        return begun

    async def _current(self, number: int) -> Generation:
        """What has been begun, as it is now: active if a switch was made whose answer was lost."""
        found = await self.generations.numbered(number)
        if found is None or found.state is State.RETIRED:
            raise SupersededError(
                f"read model {self._name}: another rebuild has replaced this one; run it again"
            )
        return found

    async def _fill_and_switch(self, number: int, writer: Writer) -> Generation:
        end: float | None = None
        while True:
            current = await self._current(number)
            if current.state is State.ACTIVE:
                return current
            if writer.at != current:  # another process fills it as well
                writer.begin_again()
            self._before = active = await self.generations.active()
            await self.generations.adopt()  # to be compared
            while self._differences is None and self._copies < COPIES and self._comparable(active):
                await self._compare(writer, active)
            end = end or _now() + PATIENCE
            at = await self._follow(writer, None)
            if not self.switch or await self.generations.switch(at, active, behind=_now() >= end):
                return at
            await self.sleep(PAUSE)

    async def _compare(self, writer: Writer, active: Generation | None) -> None:
        """With a copy, as the active generation may never rest; without a result, try again."""
        if self._copy is None:
            await self._follow(writer, active)  # most of the way, so that the copy is young
            self._copies += 1
            self._copy = await self.generations.copy()
        if self._copy is not None:
            at = await self._follow(writer, self._copy)
            self._differences = await self.generations.compare(at, self._copy)
            await self.generations.drop(self._copy)
            self._copy = None

    def _comparable(self, active: Generation | None) -> bool:
        return active is not None and active.position is not None and self.generations.usable(active)

    async def _follow(self, writer: Writer, upto: Generation | None) -> Generation:
        """Go on until exactly where this one was, else to the end of what is stored."""
        target = upto.position if upto else None

        async def handle(items: Sequence[Item]) -> None:
            here = next((n for n, item in enumerate(items, 1) if _position(item) == target), None)
            before = writer.at.events if writer.at else 0
            await writer.handle(items[:here] if target is not None else items)
            assert writer.at is not None  # noqa: S101 - it has just been written
            self._events += writer.at.events - before
            self._report(writer.at)
            if (target is not None and here is not None) or any(isinstance(item, CaughtUp) for item in items):
                raise _ReachedError

        if target is None or await writer.resumed() != target:
            try:
                await follow_from(
                    self.store,
                    writer.resumed,
                    handle,
                    prefix=WORKER_STREAMS,
                    most=BATCH,
                    outages=self.outages,
                    backoff=self.backoff,
                    sleep=self.sleep,
                )
            except _ReachedError:
                pass
            else:
                raise StoreUnavailableError("the event store is closed")
        await writer.look()
        assert writer.at is not None  # noqa: S101 - see above
        if upto is not None and target is not None and await self._is_there(writer.at, upto):
            await writer.skip_to(target)
        return writer.at

    async def _is_there(self, at: Generation, upto: Generation) -> bool:
        """Whether only places without an event lie between the two; a checkpoint may be at one, of which there are many."""
        if at.position == upto.position or at.events != upto.events:
            return False
        try:
            async with aclosing(self.store.follow(after=upto.position, prefix=WORKER_STREAMS)) as items:
                async for item in items:
                    if not isinstance(item, Checkpoint):
                        return isinstance(item, CaughtUp)
        except StoreConfigurationError:  # an older copy of the store, or another one: it has no such position
            return False
        return False

    def _report(self, at: Generation) -> None:
        seconds = _now() - self._began
        total = self._before.events if self._before else None
        self.on_progress(
            Progress(self._name, at.position, at.events, total, self._events / seconds if seconds else 0.0)
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


def _position(item: Item) -> str | None:
    return None if isinstance(item, CaughtUp) else item.position
