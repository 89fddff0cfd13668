"""A run: what is sent, what goes wrong meanwhile, and which promises are broken once all is quiet."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

from cml_contracts.commands import UpdateCMLWorkerStatus
from cml_workers.domain.operations import of_user
from simulation import given, nets
from simulation.asked import Call
from simulation.callers import OTHER_USER
from simulation.coverage import SETTLED, Cell
from simulation.fleet import Fleet, Reminded
from simulation.loop import VirtualLoop
from simulation.scripts import Script, Send, random_script
from simulation.world import CALM, LINGERS, MOST_STEPS, Chances, Offer, Target, World

TROUBLE = 1200.0
"""Virtual seconds during which things go wrong by chance."""
STILL = 500.0
"""Seconds of calm until who was paused goes on, and what was late has come."""
LONGEST = 3600.0
"""Virtual seconds of calm after which what has no answer is lost."""
SWEEP_SEED = 7
LOST = "lost"
"""The one fault of a message that no other net than the reminders makes up for: a trigger that was purged."""


@dataclass
class Outcome:
    """What a run came to; ``name``: its seed, or its script and fault."""

    name: str
    violations: list[str]
    steps: int
    crashes: int
    seconds: float
    commands: int
    answered: int
    launched: int
    digest: str
    seen: dict[tuple[str, str], int]
    taken: set[str]
    nets: dict[tuple[str, str], int]
    cells: dict[Cell, int]
    asked: dict[str, Call] = field(default_factory=dict)
    """Calls of EC2, one of each shape."""
    offered: dict[int, Offer] = field(default_factory=dict)
    last: list[str] = field(default_factory=list)
    """The last steps, where something is broken."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a run differs from others; ``meddling``: how often somebody changes an instance behind our back."""

    chances: Chances = CALM
    meddling: int = 0
    rubbish: int = 0
    reminders: bool = True

    @property
    def faultless(self) -> bool:
        """Nothing goes wrong by chance."""
        return self.chances == CALM and not self.meddling and not self.rubbish


FAULTLESS = Setting(reminders=False)
"""No safety net may be needed then: there are no reminders, and no other net may do anything."""


def random_setting(random: Random) -> Setting:
    """Where everything fails at once, rare sequences never come about. In one run of ten nothing fails."""
    if random.random() < 0.1:
        return FAULTLESS
    setting = Setting(
        Chances(
            crash=random.choice((0.0, 0.002, 0.01, 0.03)),
            pause=random.choice((0.0, 0.0005, 0.003)),
            fault=random.choice((0.0, 0.01, 0.04, 0.1)),
        ),
        meddling=random.choice((0, 0, 1, 3)),
        rubbish=random.choice((0, 0, 2, 5)),
    )
    return FAULTLESS if setting.faultless else setting


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Garbage is collected after the run and not in it.

    What a dead process leaves behind are suspended coroutines, and they set context variables as they are closed. Before
    Python 3.12 the collector may run inside ``ContextVar.set``, which then uses what the other call has freed: the
    interpreter crashes, once in some thousand runs.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)  # the youngest generation is all that was made since
        gc.enable()


@_garbage_kept()
def simulate(seed: int, setting: Setting | None = None) -> Outcome:
    """One run by chance: the same seed gives the same trace."""
    world = World(seed)
    chosen = random_setting(world.random) if setting is None else setting
    world.chances = chosen.chances
    reminded = Reminded.ALL if chosen.reminders else Reminded.NOTHING
    return _simulated(world, str(seed), lambda fleet: _by_chance(fleet, chosen), reminders=lambda _: reminded)


@_garbage_kept()
def simulate_script(
    script: Script, target: Target | None = None, *, recording: bool = False, lifecycles: int = 2
) -> Outcome:
    """A script, with one fault or with none."""
    world = World(SWEEP_SEED, target=target, recording=recording)
    name = script.name if target is None else f"{script.name}: {target.fault} at step {target.step}"

    def reminders(fleet: Fleet) -> Reminded:
        """No more than what makes up for the fault, so that nothing else hides behind them."""
        if world.met and target is not None and target.fault == LOST:
            return Reminded.ALL
        return Reminded.WATCHED if fleet.adapter_lost else Reminded.NOTHING

    return _simulated(
        world, name, lambda fleet: _by_script(fleet, script), reminders=reminders, lifecycles=lifecycles
    )


def _simulated(
    world: World, name: str, work: Any, *, reminders: Callable[[Fleet], Reminded], lifecycles: int = 2
) -> Outcome:
    loop = VirtualLoop()

    def unexpected(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "exception" in context:  # and no task of a process that is dead
            world.broken.append(f"0: {context['message']}: {context['exception']!r}")

    loop.set_exception_handler(unexpected)
    try:
        fleet: Fleet | None = None

        async def run() -> None:
            nonlocal fleet
            fleet = made = Fleet(world, reminders=lambda: reminders(made), lifecycles=lifecycles)
            await work(fleet)

        try:
            loop.run_until_complete(run())
        except RuntimeError:
            if world.steps < MOST_STEPS:
                raise
            world.broken.append(f"9: it goes on and on, {world.steps} steps after {loop.time():.0f} s")
        assert fleet is not None
        broken = loop.run_until_complete(_now(fleet))
        return Outcome(
            name=name,
            violations=broken,
            steps=world.steps,
            crashes=world.crashes,
            seconds=loop.time(),
            commands=len(fleet.callers.confirmed),
            answered=len(fleet.callers.replies),
            launched=len(fleet.cloud.tokens_of),
            digest=world.digest,
            seen=dict(world.seen),
            taken=world.taken,
            nets=dict(world.nets),
            cells=dict(fleet.coverage.cells),
            asked=fleet.asked,
            offered=world.offered,
            last=list(world.last) if broken or world.recording else [],
        )
    finally:
        _end(loop)


async def _now(fleet: Fleet) -> list[str]:
    return fleet.broken()


async def _by_chance(fleet: Fleet, setting: Setting) -> None:
    world, callers, random = fleet.world, fleet.callers, fleet.world.random
    given.found(fleet)
    fleet.begin()
    script = random_script(random, world)
    for _ in range(setting.meddling):
        world.loop.call_later(100 + random.random() * 900, fleet.cloud.meddle)
    for number in range(setting.rubbish):
        name = f"rubbish-{number}"
        world.loop.call_later(
            random.random() * 900, lambda name: world.start(callers.send_rubbish(name)), name
        )
    again = False

    async def caller(number: int, send: Send) -> None:
        nonlocal again
        await asyncio.sleep(send.at)
        command_id = f"command-{number}"
        how = random.choices(("once", "post", "twice", "impatient"), (65, 15, 10, 10))[0]
        if how == "post" and not isinstance(send.command, UpdateCMLWorkerStatus):
            await callers.post(command_id, send.command)
            await callers.until_shown(command_id)
        elif how == "twice":
            again = True
            await asyncio.gather(*(callers.call(command_id, send.command) for _ in range(2)))
        else:
            await callers.call(command_id, send.command, impatient=how == "impatient")
        if random.random() < 0.2 and command_id in callers.confirmed:
            await callers.look_at(send.command.worker(command_id))

    work = [world.start(caller(number, send)) for number, send in enumerate(script.sends)]
    await asyncio.wait(work, timeout=TROUBLE)
    await asyncio.sleep(max(0.0, TROUBLE - world.loop.time()))
    world.chances = CALM
    if not setting.faultless:
        await asyncio.sleep(STILL)
        world.trouble_until = world.loop.time()
        fleet.broker.redrive()
    await _until_quiet(fleet, work)
    if setting.faultless:
        allowed = nets.ORDINARY | ({nets.SENT_AGAIN} if again else set())
        needless(fleet, allowed)


async def _by_script(fleet: Fleet, script: Script) -> None:
    world, callers = fleet.world, fleet.callers
    world.transition = (2.0, 4.0)  # shorter than the broker takes to give up who is silent
    given.found(fleet)
    for worker_id, state in script.given:
        given.worker(fleet, worker_id, state)
    for whose, state in script.outside.items():
        worker = fleet.log.workers.get(whose) if isinstance(whose, UUID) else None
        instance_id = worker.instance.instance_id if worker and worker.instance else str(whose)
        fleet.cloud.put(fleet.cloud.instances[instance_id].model_copy(update={"state": state}))
    if any(send.taken for send in script.sends):
        callers.are_two = True
    fleet.begin()
    names = _names(script)
    fleet.coverage.uncertain = names[0] if script.uncertain else None
    fleet.coverage.without_capacity = names[0] if script.no_capacity else None

    async def caller(place: int, send: Send) -> None:
        if send.behind is not None:
            reached = world.loop.create_future()
            for phase in (send.phase, SETTLED):  # a fault may keep it from the phase
                fleet.coverage.when(names[send.behind], phase, reached)
            await asyncio.wait([reached], timeout=LINGERS)
        await asyncio.sleep(send.at)
        await callers.call(names[place], send.command)

    await _until_quiet(fleet, [world.start(caller(*each)) for each in enumerate(script.sends)])
    if world.target is None and not script.uncertain:
        needless(fleet, nets.ORDINARY)


def _names(script: Script) -> list[str]:
    names: list[str] = []
    for place, send in enumerate(script.sends):
        before = None if send.behind is None else names[send.behind]
        if before is not None and send.taken:
            names.append(of_user(before, OTHER_USER))
        else:
            names.append(before if before is not None and send.again else f"command-{place}")
    return names


def needless(fleet: Fleet, allowed: frozenset[str] | set[str]) -> None:
    """Nothing went wrong: a safety net that did anything hides a fault of ours."""
    for (net, saved), times in sorted(fleet.world.nets.items()):
        if net not in allowed:
            fleet.world.broken.append(f"0: nothing went wrong, and yet: {net}, {saved}, {times} times")


async def _until_quiet(fleet: Fleet, work: list[asyncio.Task[Any]]) -> None:
    """Until all callers are answered and no promise is broken, or for as long as that may take."""
    world = fleet.world
    _, unanswered = await asyncio.wait(work, timeout=LONGEST)
    if unanswered:
        world.broken.append(f"10: {len(unanswered)} callers have no answer after {LONGEST:g} s")
    if world.changed_outside:
        for worker in list(fleet.log.workers.values()):
            if worker.instance is not None and not worker.terminated:
                await fleet.callers.call(f"look-at-{worker.id}", UpdateCMLWorkerStatus(worker_id=worker.id))
    pause = 5.0
    while pause < LONGEST and fleet.broken() and not world.broken:
        await asyncio.sleep(pause)
        pause *= 1.5


def _end(loop: VirtualLoop) -> None:
    """Whoever waits without end is let go."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
