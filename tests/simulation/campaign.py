"""Many runs: what went wrong in them, whether it was survived, what saved whom, and what was never met.

python -m simulation.campaign --seeds 1000          a campaign
python -m simulation.campaign --minutes 10          as many seeds as there is time for
python -m simulation.campaign --replay 123          one seed; its last steps, if a promise was broken
python -m simulation.campaign --sweep               every fault at every step of overlapping commands
python -m simulation.campaign --planted             every deliberate fault must be caught
"""

import argparse
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import TypeVar

import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cml_workers.bus.topology import EC2_LOOKUPS, EC2_TRIGGERS, LIFECYCLE_COMMANDS, LIFECYCLE_REPORTS
from simulation import nets
from simulation import sweep as sweeping
from simulation.coverage import Cell
from simulation.planted import PLANTED, caught_by
from simulation.run import Outcome, simulate
from simulation.world import AT_ANY_STEP, CRASH

T = TypeVar("T")
PROCESSES = os.cpu_count() or 1
CHUNK = 10
WIDE = 240
"""Columns of the tables."""
EVERY = 30.0
"""Seconds between two lines of progress, where nothing can be drawn over."""

CHANGES = ("launch", "start", "stop", "terminate", "add_tags")
LOOKS = ("describe_many", "status_checks", "tags", "list_instances", "find_image")
CONSUMED = tuple(q.name for q in (LIFECYCLE_COMMANDS, LIFECYCLE_REPORTS, EC2_TRIGGERS, EC2_LOOKUPS))
SOMETIMES = frozenset(
    [
        *itertools.product(
            ("throttled", "refused credentials", "no effect, no answer", "effect, no answer"),
            (*CHANGES, *LOOKS),
        ),
        *itertools.product(("late effect, no answer",), CHANGES),
        *itertools.product(("no capacity",), ("launch", "start")),
        ("hidden", "launch"),
        *itertools.product(("from outside",), ("start", "stop", "terminate")),
        *itertools.product(("unavailable", "late", "lost answer", "conflict"), ("append",)),
        *itertools.product(("unavailable", "stale"), ("read",)),
        ("disconnect", "follow"),
        *itertools.product(("unavailable", "lost answer"), ("rows", "checkpoint")),
        ("unavailable", "query"),
        *itertools.product(("dropped, not confirmed", "taken, not confirmed"), ("publish",)),
        *itertools.product(("dropped, not confirmed",), ("retry",)),
        *itertools.product(("lost ack", "delayed", "redelivered", "reordered"), CONSUMED),
        ("lost", EC2_TRIGGERS.name),
    ]
)
"""Each must have happened in a campaign: what never happened was not survived. So must a crash at every step."""


@dataclass
class Campaign:
    """The sum of many runs."""

    runs: int = 0
    steps: int = 0
    crashes: int = 0
    seconds: float = 0.0
    commands: int = 0
    launched: int = 0
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    taken: set[str] = field(default_factory=set)
    nets: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Which safety net saved what, how often."""
    cells: Counter[Cell] = field(default_factory=Counter)
    """In how many runs which fault met which two commands; see ``coverage.py``."""
    possible: set[Cell] = field(default_factory=set)
    """Of a sweep: which cells there can be."""
    failed: dict[str, list[str]] = field(default_factory=dict)
    """Violations by seed, or by script and fault."""
    planned: int = 0
    took: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.steps += outcome.steps
        self.crashes += outcome.crashes
        self.seconds += outcome.seconds
        self.commands += outcome.commands
        self.launched += outcome.launched
        self.seen.update(outcome.seen)
        self.taken |= outcome.taken
        self.nets.update(outcome.nets)
        self.cells.update(dict.fromkeys(outcome.cells, 1))
        if outcome.violations:
            self.failed[outcome.name] = outcome.violations

    @property
    def never(self) -> list[tuple[str, str]]:
        """What should have happened and did not."""
        crashes = {(CRASH, label) for label in self.taken}
        kinds = {fault for fault, _ in self.seen}
        others = {(fault, "any step") for fault in AT_ANY_STEP if fault not in kinds}
        return sorted((SOMETIMES | crashes | others) - self.seen.keys())

    @property
    def idle(self) -> list[str]:
        """Safety nets that never did anything: they are not needed, or not tested."""
        return sorted(nets.MEANING.keys() - {net for net, _ in self.nets})

    @property
    def holes(self) -> list[Cell]:
        """Of a sweep: what could have happened and did not."""
        return sorted(self.possible - self.cells.keys())

    def __str__(self) -> str:
        return (
            f"{self.runs:,} runs, {self.steps:,} steps, {self.crashes:,} crashes, {self.commands:,} commands, "
            f"{self.launched:,} instances, {self.seconds / 3600:,.0f} virtual hours in {self.took:.0f} s "
            f"({self.runs * 60 / max(self.took, 0.1):,.0f} runs a minute), {len(self.failed)} with violations"
        )


def quiet() -> None:
    """Log nothing."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn"), initializer=quiet)


def _each(
    work: Callable[[T], list[Outcome]],
    chunks: Iterator[T],
    until: float,
    chunk_done: Callable[[list[Outcome]], object],
) -> None:
    """Work on the chunks in all processes until they or the time run out."""
    with _pool() as pool:
        waiting: set[Future[list[Outcome]]] = set()
        while True:
            for chunk in itertools.islice(chunks, 2 * PROCESSES - len(waiting)):
                if time.monotonic() < until:
                    waiting.add(pool.submit(work, chunk))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for each in done:
                chunk_done(each.result())


def _simulated(seeds: range) -> list[Outcome]:
    return [simulate(seed) for seed in seeds]


def run(
    seeds: int | None,
    *,
    first: int = 0,
    seconds: float = float("inf"),
    report: Callable[[Campaign], object] = lambda _: None,
) -> Campaign:
    """Simulate that many seeds (None: without end), or as many as there is time for."""
    campaign, began = Campaign(), time.monotonic()
    starts = itertools.count(first, CHUNK) if seeds is None else range(first, first + seeds, CHUNK)
    last = None if seeds is None else first + seeds

    def done(outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            campaign.add(outcome)
        campaign.took = time.monotonic() - began
        report(campaign)

    chunks = (range(start, min(start + CHUNK, last or start + CHUNK)) for start in starts)
    _each(_simulated, chunks, began + seconds, done)
    return campaign


# -- every fault at every step ----------------------------------------------------------------------------


def sweep(
    names: Sequence[str] | None = None,
    *,
    stride: int = sweeping.STRIDE,
    report: Callable[[Campaign], object] = lambda _: None,
) -> Campaign:
    """The scripts of these names, or all; see ``sweep.py``."""
    campaign, began = Campaign(), time.monotonic()
    plan = sweeping.Plan.of(list(sweeping.scripts()) if names is None else names, stride)
    campaign.possible = plan.possible
    campaign.planned = len(plan.points)

    def done(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            campaign.add(outcome)
        campaign.took = time.monotonic() - began
        report(campaign)

    done(plan.calm)
    size = max(CHUNK, 50)
    chunks = (plan.points[start : start + size] for start in range(0, len(plan.points), size))
    _each(sweeping.swept, chunks, float("inf"), done)
    return campaign


def catch_all(report: Callable[[str, str], object] = lambda *_: None, *, enough: int = 2) -> dict[str, str]:
    """Every planted fault, with what caught it: empty where nothing did."""
    caught = {}
    with _pool() as pool:
        running = {pool.submit(caught_by, name, enough=enough): name for name in PLANTED}
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                name = running.pop(each)
                caught[name] = each.result()
                report(name, caught[name])
    return caught


# -- for people -------------------------------------------------------------------------------------------


def faults_by_operation(campaign: Campaign) -> Table:
    """How often which fault met which operation."""
    table = Table("fault", "operation: times", title="what went wrong")
    kinds = sorted({fault for fault, _ in campaign.seen if fault != "asked"})
    for kind in kinds:
        times = sorted((what, n) for (fault, what), n in campaign.seen.items() if fault == kind)
        table.add_row(kind, ", ".join(f"{what}: {n:,}" for what, n in times))
    return table


def saved(campaign: Campaign) -> Table:
    """Which safety net saved what."""
    table = Table(
        "safety net", "times", "what it saved, the most frequent first", title="what made up for it"
    )
    for net, meaning in nets.MEANING.items():
        of_net = Counter({what: times for (name, what), times in campaign.nets.items() if name == net})
        listed = ", ".join(f"{what}: {times:,}" for what, times in of_net.most_common(8))
        table.add_row(f"{net}\n[dim]{meaning}[/dim]", f"{of_net.total():,}", listed or "[red]never[/red]")
    return table


def _report(console: Console, campaign: Campaign, *, complete: bool) -> int:
    wide = Console(width=max(console.width, WIDE))  # to be read with a pager, or in a file
    for table in (
        faults_by_operation(campaign),
        saved(campaign),
        sweeping.table(campaign.possible, campaign.cells),
    ):
        wide.print(table)
    console.print(str(campaign), highlight=False)
    for name, violations in sorted(campaign.failed.items())[:50]:
        console.print(f"[red]{name}[/red]", highlight=False)
        for violation in violations[:10]:
            console.print(f"   {violation}", highlight=False, soft_wrap=True, markup=False)
        if name.isdigit():
            console.print(f"   again: make simulate SEED={name}", highlight=False)
    missing: list[object] = []
    if complete:
        missing = [*campaign.never, *(f"safety net: {net}" for net in campaign.idle)]
    for hole in campaign.holes:
        missing.append(", ".join(hole))
    if missing:
        console.print("[red]never happened:[/red]", *missing, sep="\n")
    return 1 if campaign.failed or missing else 0


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description="Simulate the roles on parts that fail, in virtual time.",
        epilog="A seed is repeatable: the same code and seed make the same run.",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="how many runs")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="how long; without --seeds, as many as there is time for"
    )
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed (default: 0)")
    parser.add_argument(
        "--replay",
        type=int,
        metavar="SEED",
        help="run one seed; shows its last steps if a promise was broken",
    )
    parser.add_argument(
        "--sweep", action="store_true", help="every fault at every step of scripts of overlapping commands"
    )
    parser.add_argument(
        "--script", metavar="PART", help="with --sweep: only scripts whose name contains this, at every step"
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="with --sweep: what can happen at any step comes at one of N steps (default: 4; 1 with --script)",
    )
    parser.add_argument("--planted", action="store_true", help="see that every deliberate fault is caught")
    chosen = parser.parse_args()
    console = Console()
    quiet()
    if chosen.replay is not None:
        outcome = simulate(chosen.replay)
        for line in outcome.last:
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        campaign = Campaign()
        campaign.add(outcome)
        console.print(f"trace {outcome.digest}", highlight=False)
        return _report(console, campaign, complete=False)
    if chosen.planted:
        return _planted(console)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task("starting", total=chosen.seeds)
        shown_at = time.monotonic()

        def report(campaign: Campaign) -> None:
            nonlocal shown_at
            total = campaign.planned or chosen.seeds
            if not console.is_terminal and time.monotonic() - shown_at > EVERY:
                shown_at = time.monotonic()
                console.print(f"of {total or 'as many as there is time for'}: {campaign}", highlight=False)
            progress.update(task, completed=campaign.runs, total=total, description=str(campaign))

        if chosen.sweep:
            part = chosen.script
            names = [each for each in sweeping.scripts() if part in each] if part else None
            campaign = sweep(names, stride=chosen.stride or (1 if part else sweeping.STRIDE), report=report)
        else:
            seeds = chosen.seeds if chosen.seeds or chosen.minutes else 1000
            campaign = run(
                seeds, first=chosen.first, seconds=60 * (chosen.minutes or float("inf")), report=report
            )
    if chosen.sweep:
        scripts = len({cell[:2] for cell in campaign.possible})
        console.print(
            f"{campaign.planned:,} runs with one fault, {scripts} pairs of commands", highlight=False
        )
    return _report(console, campaign, complete=not chosen.sweep and campaign.runs >= 500)


def _planted(console: Console) -> int:
    table = Table("planted fault", "caught by")
    caught = catch_all(lambda name, how: console.print(f"{name}: {how or 'NOT CAUGHT'}", highlight=False))
    for name, how in sorted(caught.items()):
        table.add_row(name, how or "[red]nothing[/red]")
    console.print(table)
    return 0 if all(caught.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
