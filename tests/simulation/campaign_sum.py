"""The sum of many runs, what should have happened in them and never did, and how it is shown."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from rich.console import Console
from rich.table import Table

from cml_workers.bus.topology import EC2_LOOKUPS, EC2_TRIGGERS, LIFECYCLE_COMMANDS, LIFECYCLE_REPORTS
from simulation import nets
from simulation import sweep as sweeping
from simulation.asked import Call, refused
from simulation.coverage import Cell
from simulation.run import Outcome
from simulation.world import AT_ANY_STEP, CRASH

WIDE = 240
"""Columns of the tables."""

CHANGES = ("launch", "start", "stop", "terminate", "add_tags")
LOOKS = ("describe_many", "status_checks", "list_instances", "find_image")
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
        *itertools.product(("unavailable", "late", "lost answer", "conflict"), ("append", "checkpoint")),
        *itertools.product(("unavailable", "stale"), ("read",)),
        ("disconnect", "follow"),
        *itertools.product(("unavailable", "lost answer"), ("rows",)),
        ("unavailable", "query"),
        *itertools.product(("outage",), ("event store", "database")),
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
    asked: dict[str, Call] = field(default_factory=dict)
    """Calls of EC2, one of each shape; see ``asked.py``."""
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
        self.asked = outcome.asked | self.asked
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

    @cached_property
    def refused(self) -> list[str]:
        """Of what EC2 was asked, what it would not take; looked at once, when all runs are over."""
        return refused(self.asked)

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


def report_to(console: Console, campaign: Campaign, *, complete: bool) -> int:
    """Show all of it; the exit code."""
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
    if campaign.refused:
        console.print("[red]EC2 would refuse:[/red]", *campaign.refused, sep="\n", highlight=False)
    else:
        console.print(f"EC2 takes every call: {len(campaign.asked)} shapes", highlight=False)
    return 1 if campaign.failed or missing or campaign.refused else 0
