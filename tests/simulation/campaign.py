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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import TypeVar

import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from simulation import sweep as sweeping
from simulation.campaign_sum import Campaign, report_to
from simulation.planted import PLANTED, caught_by
from simulation.run import Outcome, simulate

T = TypeVar("T")
PROCESSES = os.cpu_count() or 1
CHUNK = 10
EVERY = 30.0
"""Seconds between two lines of progress, where nothing can be drawn over."""


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
    seconds: float = float("inf"),
    report: Callable[[Campaign], object] = lambda _: None,
) -> Campaign:
    """The scripts of these names, or all; as many points of all of them as there is time for. See ``sweep.py``."""
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
    parts = -(-len(plan.points) // max(CHUNK, 50))
    chunks = (plan.points[start::parts] for start in range(parts))  # some of every script
    _each(sweeping.swept, chunks, began + seconds, done)
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


# -- the command line -------------------------------------------------------------------------------------


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
        return report_to(console, campaign, complete=False)
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
    return report_to(console, campaign, complete=not chosen.sweep and campaign.runs >= 500)


def _planted(console: Console) -> int:
    table = Table("planted fault", "caught by")
    caught = catch_all(lambda name, how: console.print(f"{name}: {how or 'NOT CAUGHT'}", highlight=False))
    for name, how in sorted(caught.items()):
        table.add_row(name, how or "[red]nothing[/red]")
    console.print(table)
    return 0 if all(caught.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
