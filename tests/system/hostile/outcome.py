"""What came of a run, and which bounds it broke."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from system.hostile.honest import QUERIES, SLOTS
from system.hostile.parts import MIB

AT_MOST = 2.0
"""How many times as long the 99th percentile may be beside the hostile sender."""
ALONE, BESIDE = "alone", "beside"


@dataclass
class Outcome:
    """``took``: seconds, by part of the run and kind. ``limits``: by what they limit."""

    seed: int
    took: Mapping[str, Mapping[str, Sequence[float]]]
    answers: Mapping[str, int]
    not_sent: int
    asked_again: int
    unanswered: Sequence[str]
    sent: Mapping[str, Any]
    """The hostile sender's own figures."""
    seconds: float
    """Of hostility."""
    recovery: float
    """Seconds until its messages were dealt with."""
    cpu: Mapping[str, float]
    """Cores in use beside the hostile sender, its own included."""
    figures: Sequence[tuple[str, str, float, float]]
    """What was measured, its unit, how much, and at most how much."""
    also: Mapping[str, str]
    """Figures without a limit."""
    longest: int
    """Messages in the longest queue of the roles."""
    timed: bool

    def times(self, part: str, kinds: Sequence[str]) -> list[float]:
        return sorted(each for kind in kinds for each in self.took.get(part, {}).get(kind, ()))

    @property
    def ratios(self) -> Iterator[tuple[str, float]]:
        for name, kinds in GROUPS.items():
            alone, beside = (percentile(self.times(part, kinds), 99) for part in (ALONE, BESIDE))
            yield name, beside / alone

    @property
    def violations(self) -> list[str]:
        """Every bound that is broken."""
        broken = [
            f"{what}: {value:.0f} {unit}, at most {limit:.0f}"
            for what, unit, value, limit in self.figures
            if not value <= limit
        ]
        broken += [f"not answered: {each}" for each in self.unanswered]
        if self.timed:
            broken += [
                f"the 99th percentile of {name} is {ratio:.1f} times as long, at most {AT_MOST:g}"
                for name, ratio in self.ratios
                if not ratio <= AT_MOST
            ]
        return broken

    def table(self) -> Table:
        """For people."""
        table = Table(box=None, show_header=False)
        for (name, kinds), (_, ratio) in zip(GROUPS.items(), self.ratios, strict=True):
            for part in (ALONE, BESIDE):
                times = self.times(part, kinds)
                shown = ", ".join(f"p{at} {1000 * percentile(times, at):.0f} ms" for at in (50, 99))
                table.add_row(f"honest {name}, {part}", f"{len(times)}: {shown}")
            table.add_row(f"honest {name}, ratio of p99", f"{ratio:.2f} (at most {AT_MOST:g})")
        for kind in SLOTS:
            both = [self.times(part, [kind]) for part in (ALONE, BESIDE)]
            p50, p99, p50_beside, p99_beside = (
                1000 * percentile(each, at) for each in both for at in (50, 99)
            )
            table.add_row(
                f"  {kind}, p50 and p99",
                f"{p50:.0f}, {p99:.0f} ms; beside {p50_beside:.0f}, {p99_beside:.0f} ms",
            )
        table.add_row("honest answers", ", ".join(f"{count} {what}" for what, count in self.answers.items()))
        table.add_row("honest, not accepted by the broker at once", str(self.not_sent))
        table.add_row("honest, asked again as it expired in its queue", str(self.asked_again))
        table.add_row("honest, not answered", str(len(self.unanswered)))
        sent = self.sent["sent"]
        total = sum(sent.values())
        table.add_row(
            "hostile", f"{total} messages, {total / self.seconds:.0f}/s, {self.sent['bytes'] // MIB} MiB"
        )
        table.add_row("", ", ".join(f"{count} {kind}" for kind, count in sent.items()))
        table.add_row(
            "",
            ", ".join(f"{value} {key}" for key, value in self.sent.items() if key not in ("sent", "bytes")),
        )
        table.add_row("recovery", f"{self.recovery:.0f} s until its messages were dealt with")
        table.add_row("cores in use", ", ".join(f"{name} {cores:.2f}" for name, cores in self.cpu.items()))
        for what, unit, value, limit in self.figures:
            table.add_row(what, f"{value:.0f} {unit} (at most {limit:.0f})")
        for what, text in self.also.items():
            table.add_row(what, text)
        table.add_row("violations", str(len(self.violations)))
        return table


GROUPS: Mapping[str, Sequence[str]] = {
    "commands": [kind for kind in SLOTS if kind not in QUERIES],
    "queries": QUERIES,
}


def percentile(ordered: Sequence[float], at: int) -> float:
    """By nearest rank; not a number where there is nothing."""
    return ordered[max(0, math.ceil(len(ordered) * at / 100) - 1)] if ordered else math.nan
