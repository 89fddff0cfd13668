"""Many runs: what went wrong in them, whether it was survived, and whether the faults happened that should have.

python -m simulation.campaign --seeds 1000          a campaign
python -m simulation.campaign --minutes 10          as many seeds as there is time for
python -m simulation.campaign --replay 123          one seed; its last steps, if a promise was broken
python -m simulation.campaign --sweep               one crash at every point of a script of all commands
python -m simulation.campaign --planted             every deliberate fault must be caught
"""

import argparse
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import TypeVar
from uuid import UUID

import pytest
import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cml_contracts.commands import (
    CreateCMLWorker,
    ImportCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.topology import EC2_LOOKUPS, EC2_WAKES, LIFECYCLE_COMMANDS, LIFECYCLE_REPORTS
from simulation.fleet import FOUND, IMAGE, IMAGE_NAME, REGION, Outcome, Script, simulate
from simulation.planted import PLANTED
from simulation.world import CALM

T = TypeVar("T")
PROCESSES = os.cpu_count() or 1
CHUNK = 10

CHANGES = ("launch", "start", "stop", "terminate", "add_tags")
LOOKS = ("describe", "tags", "find_launched", "find_image")
CONSUMED = tuple(q.name for q in (LIFECYCLE_COMMANDS, LIFECYCLE_REPORTS, EC2_WAKES, EC2_LOOKUPS))
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
        *itertools.product(("dropped, not confirmed",), ("put aside",)),
        *itertools.product(("lost ack", "delayed", "redelivered", "reordered"), CONSUMED),
        ("lost", EC2_WAKES.name),
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
    failed: dict[int, list[str]] = field(default_factory=dict)
    """Violations by seed."""
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
        if outcome.violations:
            self.failed[outcome.seed] = outcome.violations

    @property
    def never(self) -> list[tuple[str, str]]:
        """What should have happened and did not."""
        crashes = {("crash", label) for label in self.taken}
        return sorted((SOMETIMES | crashes) - self.seen.keys())

    def __str__(self) -> str:
        return (
            f"{self.runs} seeds, {self.steps:,} steps, {self.crashes:,} crashes, {self.commands:,} commands, "
            f"{self.launched:,} instances, {self.seconds / 3600:,.0f} virtual hours in {self.took:.0f} s "
            f"({self.runs * 60 / max(self.took, 0.1):,.0f} seeds a minute), {len(self.failed)} with violations"
        )


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn"), initializer=_quiet)


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
    told: Callable[[Campaign], object] = lambda _: None,
) -> Campaign:
    """Simulate that many seeds (None: without end), or as many as there is time for."""
    campaign, began = Campaign(), time.monotonic()
    starts = itertools.count(first, CHUNK) if seeds is None else range(first, first + seeds, CHUNK)
    last = None if seeds is None else first + seeds

    def done(outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            campaign.add(outcome)
        campaign.took = time.monotonic() - began
        told(campaign)

    chunks = (range(start, min(start + CHUNK, last or start + CHUNK)) for start in starts)
    _each(_simulated, chunks, began + seconds, done)
    return campaign


# -- one crash at every point -----------------------------------------------------------------------------

SWEPT = UUID("5bee9d00-0000-4000-8000-000000000001")
FAILED = UUID("5bee9d00-0000-4000-8000-000000000002")


def every_command(_: object = None) -> Script:
    """A script in which every command is accepted, and some are refused."""
    commands: list[WorkerCommand] = [
        _create(SWEPT, ami_name=IMAGE_NAME),
        _create(FAILED, ami_name="none"),
        ImportCMLWorker(aws_region=REGION, instance_id=FOUND, created_by="ann"),
        UpdateCMLWorkerTags(worker_id=SWEPT, tags={"a": "1"}),
        StopCMLWorker(worker_id=SWEPT),
        UpdateCMLWorkerStatus(worker_id=SWEPT),
        StartCMLWorker(worker_id=SWEPT),
        StartCMLWorker(worker_id=FAILED),
        TerminateCMLWorker(worker_id=SWEPT),
    ]
    return [(number * 40.0, command) for number, command in enumerate(commands)]


def _create(worker_id: UUID, **image: str) -> CreateCMLWorker:
    return CreateCMLWorker.model_validate(
        {
            "name": "lab",
            "aws_region": REGION,
            "instance_type": "m5.large",
            "created_by": "ann",
            "worker_id": worker_id,
            **(image or {"ami_id": IMAGE}),
        }
    )


def _swept(points: range) -> list[Outcome]:
    return [simulate(7, chances=CALM, script=every_command, meddling=0, crash_at=point) for point in points]


def sweep(told: Callable[[Campaign], object] = lambda _: None) -> Campaign:
    """The script once for every step of it, with a crash at just that one."""
    points = simulate(7, chances=CALM, script=every_command, meddling=0).steps
    campaign, began = Campaign(), time.monotonic()

    def done(outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            violations, outcome.violations = outcome.violations, []
            campaign.add(outcome)
            if violations:
                campaign.failed[campaign.runs] = violations
        campaign.took = time.monotonic() - began
        told(campaign)

    chunks = (range(start, min(start + CHUNK, points + 1)) for start in range(1, points + 1, CHUNK))
    _each(_swept, chunks, float("inf"), done)
    return campaign


# -- the test of the test ---------------------------------------------------------------------------------


def catch(name: str, *, enough: int = 2, most: int = 1000) -> tuple[int, int]:
    """Failing seeds and seeds tried with a fault planted, until enough of them fail."""
    failing = 0
    with pytest.MonkeyPatch.context() as patch:
        PLANTED[name](patch)
        for seed in range(most):
            failing += bool(simulate(seed).violations)
            if failing == enough:
                return failing, seed + 1
    return failing, most


def catch_all(
    told: Callable[[str, int, int], object] = lambda *_: None, *, enough: int = 2
) -> dict[str, tuple[int, int]]:
    """Every planted fault; failing seeds and seeds tried, until ``enough`` of them fail."""
    caught = {}
    with _pool() as pool:
        running = {pool.submit(catch, name, enough=enough): name for name in PLANTED}
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                name = running.pop(each)
                caught[name] = each.result()
                told(name, *caught[name])
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


def _told(console: Console, campaign: Campaign, *, complete: bool) -> int:
    console.print(faults_by_operation(campaign))
    console.print(str(campaign), highlight=False)
    for seed, violations in sorted(campaign.failed.items()):
        console.print(f"[red]seed {seed}[/red]", highlight=False)
        for violation in violations:
            console.print(f"   {violation}", highlight=False, soft_wrap=True, markup=False)
        console.print(f"   again: make simulate SEED={seed}", highlight=False)
    missing = campaign.never if complete else []
    if missing:
        console.print("[red]never happened:[/red]", missing)
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
        "--sweep", action="store_true", help="one crash at every point of a script of all commands"
    )
    parser.add_argument("--planted", action="store_true", help="see that every deliberate fault is caught")
    chosen = parser.parse_args()
    console = Console()
    _quiet()
    if chosen.replay is not None:
        outcome = simulate(chosen.replay)
        for line in outcome.last:
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        campaign = Campaign()
        campaign.add(outcome)
        console.print(f"trace {outcome.digest}", highlight=False)
        return _told(console, campaign, complete=False)
    if chosen.planted:
        table = Table("planted fault", "failing seeds", "of")
        caught = catch_all(lambda name, n, of: console.print(f"{name}: {n} of {of}", highlight=False))
        for name, (failing, tried) in sorted(caught.items()):
            table.add_row(name if failing else f"[red]{name}[/red]", str(failing), str(tried))
        console.print(table)
        return 0 if all(failing for failing, _ in caught.values()) else 1
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task("starting", total=chosen.seeds)

        def told(campaign: Campaign) -> None:
            progress.update(task, completed=campaign.runs, description=str(campaign))

        if chosen.sweep:
            campaign = sweep(told)
        else:
            seeds = chosen.seeds if chosen.seeds or chosen.minutes else 1000
            campaign = run(
                seeds, first=chosen.first, seconds=60 * (chosen.minutes or float("inf")), told=told
            )
    if chosen.sweep:
        ours = campaign.runs - campaign.crashes
        console.print(
            f"{campaign.runs} points, one crash at each; {ours} of them the client takes, who never dies",
            highlight=False,
        )
    return _told(console, campaign, complete=not chosen.sweep and campaign.runs >= 500)


if __name__ == "__main__":
    sys.exit(main())
