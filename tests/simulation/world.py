"""Where everything happens: virtual time, one source of chance, processes that die, and faults that are counted.

One file of more than 300 lines: the world and its processes share the faults, and which of them may still come.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

from simulation.nets import RECONNECTED

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

SELDOM: Mapping[str, float] = dict.fromkeys(
    (
        "asks whether it was routed",
        *("start", "start begins", "start ends"),
        *("terminate", "terminate begins", "terminate ends"),
    ),
    5.0,
)
"""How much more often something happens to operations and at steps that come seldom."""
CRASH, HOST_LOST, DISCONNECTED = "crash", "lost with its host", "disconnected"
"""A process is killed, which the broker notices at once, or only when it has been silent for too long; or is cut off."""
PAUSES = {
    "paused 25 s": 25.0,  # longer than what was read may be acted on, or a publisher confirm is awaited
    "paused 60 s": 60.0,  # longer than the broker waits for a sign of life: another one takes over
    "paused 200 s": 200.0,  # longer than EC2 takes a signed request, and every grace
}
AT_ANY_STEP = (CRASH, HOST_LOST, DISCONNECTED, *PAUSES)
"""What can happen to a process at every step, whatever it does there."""
AWAY = 3.0
"""Seconds for which a process that was cut off has no connection to the broker."""
RESTART = 6.0
"""Seconds at most before a process that died is started again."""
LINGERS = 25.0
"""Seconds for which a fault of a single call may show its effect: a late append, a late effect at EC2."""


@dataclass(frozen=True, slots=True)
class Target:
    """The one fault of a run in which nothing else goes wrong, and the step that it meets."""

    step: int
    fault: str


Pair = tuple[str, str, str]
"""Two commands for one worker, and the phase of the first."""


@dataclass
class Offer:
    """A step of a process that may die, and the faults of a call that could have met it there."""

    label: str
    process: str
    pairs: list[Pair]
    """Which commands were under way when it began; see ``coverage.py``."""
    faults: dict[str, tuple[str, list[Pair]]] = field(default_factory=dict)
    """Each with the operation that it would have met, and which commands were under way then."""


_AT: ContextVar[int] = ContextVar("at", default=0)
"""The number of the step that this task took last."""


class World:
    """One run. The same seed makes the same run, whatever process it is in."""

    def __init__(
        self, seed: int, chances: Chances = CALM, *, target: Target | None = None, recording: bool = False
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.chances = chances
        self.target = target
        self.met = False
        """Whether the target's fault has happened."""
        self.recording = recording
        self.offered: dict[int, Offer] = {}
        """What could have gone wrong at which step, if that is recorded."""
        self._habits = Random(seed ^ 0x5EED)
        self._weights: dict[tuple[str, str], float] = {}
        self.steps = 0
        self.crashes = 0
        self.seen: Counter[tuple[str, str]] = Counter()
        """How often which fault met which operation."""
        self.taken: set[str] = set()
        """The steps at which a process could have died."""
        self.trouble_until = 0.0
        """When the last thing that went wrong is over."""
        self.transition = (0.0, 30.0)
        """Seconds that an instance takes at least, and at most, to start, to stop or to end."""
        self.changed_outside = False
        """Somebody changed an instance behind our back."""
        self.broken: list[str] = []
        """Promises that were broken at the moment they were looked at."""
        self.nets: Counter[tuple[str, str]] = Counter()
        """How often which safety net saved what; see ``nets.py``."""
        self.on_fault: Callable[[str, str], None] = lambda *_: None
        self.pairs: Callable[[], list[Pair]] = list
        self.on_loss: list[Callable[[Process], None]] = []
        """Called when a process has died or has lost its connection to the broker."""
        self.last: deque[str] = deque(maxlen=100_000)
        self._trace = hashlib.blake2b(digest_size=16)
        self._kept: list[asyncio.Task[Any]] = []

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.loop.time())

    def seconds(self, moment: datetime) -> float:
        """The virtual second of a moment."""
        return (moment - EPOCH).total_seconds()

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

    def happens(self, fault: str, operation: str, weight: float = 1.0, *, lasts: float = LINGERS) -> bool:
        """Whether this fault meets this operation now; if so, it is counted."""
        if self.target is not None:
            if (_AT.get(), fault) != (self.target.step, self.target.fault) or self.met:
                return False
            self.met = True
        else:
            if self.recording and _AT.get() in self.offered:
                self.offered[_AT.get()].faults.setdefault(fault, (operation, self.pairs()))
            chance = self.chances.fault * weight
            if not chance or self.random.random() >= chance * self.weight_of(fault, operation):
                return False
        self.fault(fault, operation, lasts)
        return True

    def fault(self, fault: str, operation: str, seconds: float) -> None:
        """Something goes wrong, and is over after so many seconds."""
        self.seen[fault, operation] += 1
        self.trouble_until = max(self.trouble_until, self.loop.time() + seconds)
        self.trace("fault", f"{fault} {operation}")
        self.on_fault(fault, operation)

    def weight_of(self, fault: str, operation: str) -> float:
        """Every run has its own habits: where everything happens equally, rare sequences never come about."""
        if (fault, operation) not in self._weights:
            self._weights[fault, operation] = self._habits.choice((0.0, 0.3, 1.0, 1.0, 6.0))
        return self._weights[fault, operation] * SELDOM.get(operation, 1.0)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run beside everything else. What never ends is forgotten with the run."""
        task = self.loop.create_task(work)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.add_done_callback(self._ended)
        self._kept.append(task)
        if len(self._kept) > 2000:
            self._kept = [each for each in self._kept if not each.done()]
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """Nothing here may raise: who would notice?"""
        if not task.cancelled() and task.exception() is not None:
            self.broken.append(f"0: {task.get_coro()} ended with {task.exception()!r}")


@dataclass(eq=False)
class Process:
    """An incarnation of a role. It dies at any step, and nothing it would still have done is done."""

    world: World
    name: str
    mortal: bool = True
    alive: bool = True
    paused_until: float = 0.0
    away_until: float = 0.0
    """Until when it has no connection to the broker."""
    on_loss: list[Callable[[], None]] = field(default_factory=list)
    on_return: list[Callable[[], None]] = field(default_factory=list)
    """What is called when its connection to the broker is lost, and when it is there again."""

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.world.start(work)

    async def step(self, label: str, *, latency: float = 0.05) -> None:
        """Let time pass on the way to or from a part; the process may die or be paused here."""
        world = self.world
        world.steps += 1
        _AT.set(world.steps)
        world.trace(self.name, label)
        if world.steps == MOST_STEPS:
            world.loop.stop()
        if self.mortal and self.alive:
            world.taken.add(label)
            if world.target is not None:
                if world.steps == world.target.step:
                    self._meet(world.target.fault, label)
            else:
                if world.recording:
                    world.offered[world.steps] = Offer(label, self.name, world.pairs())
                self._by_chance(label)
        await asyncio.sleep(world.random.random() * latency)
        await self.living()

    def _by_chance(self, label: str) -> None:
        world, chances = self.world, self.world.chances
        if chances.crash and world.random.random() < chances.crash * world.weight_of(CRASH, label):
            self.die(label, CRASH)
        elif chances.pause and world.random.random() < chances.pause:
            self._meet(world.random.choice((*PAUSES, DISCONNECTED, HOST_LOST)), label)

    def _meet(self, fault: str, label: str) -> None:
        if fault in (CRASH, HOST_LOST):
            self.die(label, fault)
        elif fault == DISCONNECTED:
            self._disconnect(label)
        elif fault in PAUSES:
            self._pause(fault, label)

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached."""
        return self.world.loop.time() >= self.away_until

    async def living(self) -> None:
        """Go on only if the process does."""
        while self.alive and self.paused_until > self.world.loop.time():
            await asyncio.sleep(self.paused_until - self.world.loop.time())
        if not self.alive:
            await self.world.loop.create_future()  # without end

    async def sleep(self, seconds: float) -> None:
        """What the handlers sleep by."""
        await asyncio.sleep(seconds)
        await self.living()

    def die(self, label: str, how: str) -> None:
        """kill -9, or the end of the machine it runs on."""
        unnoticed = PATIENCE_OF_THE_BROKER if how == HOST_LOST else 0.0
        self.alive = False
        self.world.crashes += 1
        self.world.fault(how, label, unnoticed + RESTART)
        if unnoticed:
            self.world.loop.call_later(unnoticed, self._given_up)
        else:
            self._given_up()

    def _disconnect(self, label: str) -> None:
        """The connection to the broker is reset, and comes back."""
        self.world.fault(DISCONNECTED, label, AWAY)
        self.away_until = self.world.loop.time() + AWAY
        for notify in self.world.on_loss:
            notify(self)
        for lost in self.on_loss:
            lost()
        self.world.loop.call_later(AWAY, self._return)

    def _pause(self, fault: str, label: str) -> None:
        seconds = PAUSES[fault]
        self.world.fault(fault, label, seconds)
        self.paused_until = self.world.loop.time() + seconds
        if seconds > PATIENCE_OF_THE_BROKER:
            self.world.loop.call_later(PATIENCE_OF_THE_BROKER, self._given_up)
            self.world.loop.call_later(seconds, self._noticed)

    def _given_up(self) -> None:
        """The broker knows that it is gone, or has had no sign of life for too long."""
        for notify in self.world.on_loss:
            notify(self)

    def _noticed(self) -> None:
        """It goes on, and finds that its connection is lost."""
        if self.alive:
            for lost in self.on_loss:
                lost()
            self._return()

    def _return(self) -> None:
        if self.alive and self.connected:
            self.world.nets[RECONNECTED, self.name.partition("-")[0]] += 1
            for reconnect in self.on_return:
                reconnect()
