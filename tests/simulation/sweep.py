"""Every script of commands once for every step of it and every fault that can meet that step, and no other fault.

A process dies, is cut off from the broker, or is paused, at any step. A call fails in each of its ways: not done, done and
not answered, done late. Every step of every script has its death and its failures of a call. What else can happen at any
step comes at one of ``STRIDE`` of them, at others in each script, as all of them would take hours.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from rich.table import Table

from simulation.coverage import CALLS, PHASES, Cell, kind_of
from simulation.run import Outcome, simulate_script
from simulation.scripts import Script, every_command, overlapping
from simulation.world import AT_ANY_STEP, CRASH, Offer, Target

STRIDE = 4


@dataclass(frozen=True, slots=True)
class Point:
    """One run of the sweep."""

    script: str
    target: Target


@cache
def scripts() -> dict[str, Script]:
    """Every script by its name."""
    return {each.name: each for each in (every_command(), *overlapping())}


def _faults(script: Script, offer: Offer) -> Iterator[tuple[str, set[Cell]]]:
    """What can happen at a step, and which cells of the table that fills."""
    for fault in AT_ANY_STEP:
        yield fault, {(*pair, fault) for pair in offer.pairs}
    for fault, (operation, pairs) in offer.faults.items():
        if fault in ("stale", "no capacity") and script.outside:
            # A stale read: it gets WorkerNotFound, and nobody looks again (docs/guarantees.md). What has ended is refused
            # for its state, before its capacity is looked for.
            continue
        kind = kind_of(fault, operation)
        yield fault, {(*pair, kind) for pair in pairs}


@dataclass
class Plan:
    """The runs of the sweep, and which cells of the table there could be at all."""

    points: list[Point] = field(default_factory=list)
    possible: set[Cell] = field(default_factory=set)
    calm: list[Outcome] = field(default_factory=list)
    """Each script without a fault."""

    @classmethod
    def of(cls, names: Sequence[str], stride: int = STRIDE) -> "Plan":
        """``stride``: 1 for every fault at every step."""
        plan, chosen = cls(), set[Cell]()
        spare: list[tuple[Point, set[Cell]]] = []
        for number, name in enumerate(names):
            script = scripts()[name]
            calm = simulate_script(script, recording=True)
            plan.calm.append(calm)
            for step, offer in calm.offered.items():
                for place, (fault, cells) in enumerate(_faults(script, offer)):
                    point = Point(name, Target(step, fault))
                    plan.possible |= cells
                    if fault == CRASH or fault not in AT_ANY_STEP or (step + place + number) % stride == 0:
                        plan.points.append(point)
                        chosen |= cells
                    else:
                        spare.append((point, cells))
        for point, cells in spare:
            if cells - chosen:
                plan.points.append(point)
                chosen |= cells
        return plan


def swept(chunk: Sequence[Point]) -> list[Outcome]:
    """These runs."""
    return [simulate_script(scripts()[each.script], each.target) for each in chunk]


def table(possible: set[Cell], cells: Counter[Cell]) -> Table:
    """Runs by pair of commands and fault, the phases of the first added up; ``.``: it cannot happen; ``0``: a hole."""
    kinds = sorted({cell[3] for cell in possible | cells.keys()})
    shown = Table(
        "pair",
        *(str(number) for number in range(1, len(kinds) + 1)),
        title="runs in which a fault met two commands for one worker, in the phases of the first",
        caption="   ".join(f"{number} {kind}" for number, kind in enumerate(kinds, 1)),
        padding=(0, 1, 0, 0),
        box=None,
    )
    for first in CALLS:
        for second in CALLS:
            row = []
            for kind in kinds:
                can = [phase for phase in PHASES if (first, second, phase, kind) in possible]
                times = sum(cells[first, second, phase, kind] for phase in PHASES)
                missing = any(not cells[first, second, phase, kind] for phase in can)
                row.append("0" if missing else str(times) if can or times else ".")
            shown.add_row(f"{first}, {second}", *row)
    return shown
