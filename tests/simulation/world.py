"""Where everything happens: virtual time, one source of chance, processes that die, and faults that are counted."""

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE_OF_THE_BROKER = 30.0
"""Seconds without a sign of life after which a process's connection counts as lost."""

MOST_STEPS = 60_000
"""A run that takes more is a hot loop."""


@dataclass(frozen=True, slots=True)
class Chances:
    """How often what goes wrong, for each step of a process."""

    crash: float = 0.0
    pause: float = 0.0
    fault: float = 0.0
    """For each kind of fault that a call can meet."""


CALM = Chances()


class World:
    """One run. The same seed makes the same run, whatever process it is in."""

    def __init__(self, seed: int, chances: Chances = CALM, *, crash_at: int | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.chances = chances
        self.crash_at = crash_at
        """The one step at which whoever takes it dies; None: by chance."""
        self._habits = Random(seed ^ 0x5EED)
        self._weights: dict[tuple[str, str], float] = {}
        self.steps = 0
        self.crashes = 0
        self.seen: Counter[tuple[str, str]] = Counter()
        """How often which fault met which operation."""
        self.taken: set[str] = set()
        """The steps at which a process could have died."""
        self.broken: list[str] = []
        """Promises that were broken at the moment they were looked at."""
        self.on_death: list[Callable[[Process], None]] = []
        self.last: deque[str] = deque(maxlen=100_000)
        self._trace = hashlib.blake2b(digest_size=16)
        self._kept: list[asyncio.Task[Any]] = []

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.loop.time())

    def new_id(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    def trace(self, who: str, what: str) -> None:
        """Remember a step: the trace of two runs of a seed must be the same."""
        line = f"{self.loop.time():.6f} {who} {what}"
        self._trace.update(line.encode())
        self.last.append(line)

    @property
    def digest(self) -> str:
        """The trace in short."""
        return self._trace.hexdigest()

    def happens(self, fault: str, operation: str, weight: float = 1.0) -> bool:
        """Whether this fault meets this operation now; if so, it is counted."""
        chance = self.chances.fault * weight
        if not chance or self.random.random() >= chance * self.weight_of(fault, operation):
            return False
        self.seen[fault, operation] += 1
        self.trace("fault", f"{fault} {operation}")
        return True

    def weight_of(self, fault: str, operation: str) -> float:
        """Every run has its own habits: where everything happens equally, rare sequences never come about."""
        if (fault, operation) not in self._weights:
            self._weights[fault, operation] = self._habits.choice((0.0, 0.3, 1.0, 1.0, 6.0))
        return self._weights[fault, operation]

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run beside everything else. What never ends is forgotten with the run."""
        task = self.loop.create_task(work)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._kept.append(task)
        if len(self._kept) > 2000:
            self._kept = [each for each in self._kept if not each.done()]
        return task


@dataclass(eq=False)
class Process:
    """An incarnation of a role. It dies at any step, and nothing it would still have done is done."""

    world: World
    name: str
    mortal: bool = True
    alive: bool = True
    paused_until: float = 0.0
    on_return: list[Callable[[], None]] = field(default_factory=list)
    """What reconnects after a pause that the broker did not bear with."""

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.world.start(work)

    async def step(self, label: str, *, latency: float = 0.05) -> None:
        """Let time pass on the way to or from a part; the process may die or stand still here."""
        world = self.world
        world.steps += 1
        world.trace(self.name, label)
        if world.steps == MOST_STEPS:
            world.loop.stop()
        if self.mortal:
            world.taken.add(label)
        if self.mortal and self.alive:
            if world.crash_at is not None:
                if world.steps == world.crash_at:
                    self.die(label)
            elif world.chances.crash and world.random.random() < world.chances.crash * world.weight_of(
                "crash", label
            ):
                self.die(label)
            elif world.chances.pause and world.random.random() < world.chances.pause:
                self._pause(label)
        await asyncio.sleep(world.random.random() * latency)
        await self.living()

    async def living(self) -> None:
        """Go on only if the process does."""
        while self.alive and self.paused_until > self.world.loop.time():
            await asyncio.sleep(self.paused_until - self.world.loop.time())
        if not self.alive:
            await self.world.loop.create_future()  # for ever

    async def sleep(self, seconds: float) -> None:
        """What the handlers sleep by."""
        await asyncio.sleep(seconds)
        await self.living()

    def die(self, label: str) -> None:
        """kill -9."""
        self.alive = False
        self.world.crashes += 1
        self.world.seen["crash", label] += 1
        self.world.trace(self.name, "dies")
        for told in self.world.on_death:
            told(self)

    def _pause(self, label: str) -> None:
        seconds = self.world.random.choice((5.0, 60.0, 200.0))
        self.world.seen["pause", label] += 1
        self.world.trace(self.name, f"stands still for {seconds:g} s")
        self.paused_until = self.world.loop.time() + seconds
        if seconds > PATIENCE_OF_THE_BROKER:
            for told in self.world.on_death:
                told(self)
            self.world.loop.call_later(seconds, self._return)

    def _return(self) -> None:
        if self.alive:
            for reconnect in self.on_return:
                reconnect()
