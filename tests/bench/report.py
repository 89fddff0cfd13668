"""Results as tables: one run, or two of them side by side, on a terminal and in ``docs/performance.md``."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REFERENCES = ("echo", "quorum echo", "least role")
BEGIN, END = "<!-- figures: `make bench-report` writes what follows -->", "<!-- end of figures -->"
GOALS: Mapping[tuple[str, str, str], str] = {
    ("throughput", "no-op", "of echo"): "≥ 0.5",
    ("throughput", "no-op", "of least role"): "≥ 0.6",
    ("throughput", "rejected", "of echo"): "≥ 0.5",
    ("throughput", "rejected", "of least role"): "≥ 0.6",
    ("throughput", "tag update", "of echo"): "≥ 0.15",
    ("throughput", "get", "of echo"): "≥ 0.8",
    ("latency", "tag update", "echoes"): "≤ 10",
    ("calls", "no-op", "store reads"): "0",
    ("calls", "no-op", "appends"): "1",
    ("calls", "rejected", "store reads"): "0",
    ("calls", "rejected", "appends"): "1",
    ("calls", "tag update", "store reads"): "1",
    ("calls", "tag update", "appends"): "≤ 3",
    ("calls", "start, to RUNNING", "EC2 calls until the reply"): "2",
    ("others", "200 commands for one worker at once: s until the last answer", "figure"): "< 2",
    ("others", "rejected: the long stream's time of the short one's", "figure"): "0.8 to 1.2",
    ("others", "tag update: the long stream's time of the short one's", "figure"): "0.8 to 1.2",
    ("others", "fold of one event of 500, decoded: us", "figure"): "≤ 3",
    ("others", "fold of one event of 500, with decoding: us", "figure"): "≤ 10",
    ("others", "entries that 200 operations settled elsewhere leave", "figure"): "0",
    ("others", "non-test files that name stop", "figure"): "≤ 9",
    ("others", "non-test files that name relay", "figure"): "≤ 9",
}
"""What issue 11 asks for, by section, row and column."""


@dataclass(frozen=True)
class Matrix:
    """A table of figures; ``rows``: by name, then by column."""

    section: str
    title: str
    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, float | None]]


def matrices(result: Mapping[str, Any]) -> Iterator[Matrix]:
    """The figures of a run."""
    if "throughput" in result:
        measures = result["throughput"]["measures"]
        columns = ("per second", *(f"of {each}" for each in REFERENCES), "latency ms", "followers settle s")
        yield Matrix("throughput", f"{result['size']['in_flight']} calls in flight", columns, measures)
        cpu = {name: each["cpu ms"] for name, each in measures.items()}
        yield Matrix("cpu", "CPU, ms a call, by process", list(next(iter(cpu.values()))), cpu)
    if "latency" in result:
        measures = result["latency"]["measures"]
        rows = {
            name: {"ms": each["ms"], "echoes": each["of echo"], "least roles": each["of least role"]}
            for name, each in measures.items()
        }
        yield Matrix("latency", "One call at a time", ("ms", "echoes", "least roles"), rows)
    if "calls" in result:
        commands = result["calls"]["commands"]
        rows = {
            name: {
                **each["total"],
                "EC2 calls": sum(each["EC2"].values()),
                "EC2 calls until the reply": sum(each["EC2 until the reply"].values()),
            }
            for name, each in commands.items()
        }
        title = f"Calls of each kind of command (an instance takes {result['calls']['transition s']:g} s)"
        yield Matrix("calls", title, list(next(iter(rows.values()))), rows)
        crowd = result["calls"]["crowd"]
        rows = {
            name: {
                **each["total"],
                "SQL transactions of the projector": each["by role"]["projector"]["SQL transactions"],
                "EC2 calls": sum(each["EC2"].values()),
            }
            for name, each in result["calls"]["at once"].items()
        }
        title = f"Calls for {crowd} workers at once, in sum; differs a little from run to run"
        yield Matrix("at once", title, list(next(iter(rows.values()))), rows)
    others = dict(_others(result))
    if others:
        yield Matrix(
            "others", "Others", ("figure",), {name: {"figure": each} for name, each in others.items()}
        )


def _others(result: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    if "burst" in result:
        burst = result["burst"]
        yield (
            f"{burst['commands']} commands for one worker at once: s until the last answer",
            burst["seconds"],
        )
    if "long" in result:
        long = result["long"]
        lengths = f"about {long['events']['long']} events"
        for kind in ("rejected", "tag update"):
            yield f"{kind} for a worker of {lengths}: ms", long[kind]["long ms"]
            yield f"{kind} for a worker of {long['events']['short']} events: ms", long[kind]["short ms"]
            yield f"{kind}: the long stream's time of the short one's", long[kind]["long of short"]
    if "micro" in result:
        micro = result["micro"]
        for length, each in micro["fold of one event"].items():
            yield f"fold of one event of {length}, decoded: us", each["decoded us"]
            yield f"fold of one event of {length}, with decoding: us", each["with decoding us"]
        for length, taken in micro["load ms"].items():
            yield f"load of a worker of {length} events: ms", taken
        number = micro["operations settled elsewhere"]
        yield f"entries that {number} operations settled elsewhere leave", micro["left in the executor"]
    for name, value in result.get("structure", {}).items():
        if isinstance(value, int):
            yield name, value


# -- on a terminal ----------------------------------------------------------------------------------------


def show(console: Console, result: Mapping[str, Any]) -> None:
    """Every section of one run."""
    console.print(described(result))
    for line in noise(result):
        console.print(line)
    for matrix in matrices(result):
        _print(console, matrix, _cells(matrix))
    for name, each in result.get("calls", {}).get("commands", {}).items():
        if each["EC2"]:
            console.print(
                f"EC2, {name}: {_calls(each['EC2'])}; until the reply: {_calls(each['EC2 until the reply'])}"
            )


def compare(console: Console, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Two runs: each figure of either."""
    console.print(f"before: {described(before)}\nafter:  {described(after)}", highlight=False)
    for matrix, cell in _together(before, after):
        _print(console, matrix, cell)


def _print(console: Console, matrix: Matrix, cell: Callable[[str, str], str]) -> None:
    table = Table(title=matrix.title, title_justify="left")
    table.add_column("", no_wrap=True)
    for column in matrix.columns:
        table.add_column(column, justify="right")
    for name in matrix.rows:
        table.add_row(name, *(cell(name, column) for column in matrix.columns))
    console.print(table)


# -- in a document ----------------------------------------------------------------------------------------


def write_into(document: Path, before: Mapping[str, Any], after: Mapping[str, Any] | None) -> None:
    """Replace the document's figures."""
    head, _, rest = document.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    document.write_text(f"{head}{BEGIN}\n\n{markdown(before, after)}\n{END}{tail}")


def markdown(before: Mapping[str, Any], after: Mapping[str, Any] | None) -> str:
    """The figures of one or two runs, beside what is to be reached."""
    runs = [("Before", before), *([("After", after)] if after else [])]
    lines = [f"{name}: {described(run)}.\n" for name, run in runs]
    lines += [f"- {name.lower()}, {line}" for name, run in runs for line in noise(run)]
    for matrix, cell in _together(before, after):
        goals = {
            (row, column): goal
            for (section, row, column), goal in GOALS.items()
            if section == matrix.section and row in matrix.rows
        }
        lines += ["", f"### {matrix.title}", "", f"| | {' | '.join(matrix.columns)} |"]
        lines.append(f"|---|{'---:|' * len(matrix.columns)}")
        for name in matrix.rows:
            cells = [
                cell(name, column) + (f" (goal {goals[name, column]})" if (name, column) in goals else "")
                for column in matrix.columns
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def described(result: Mapping[str, Any]) -> str:
    """What was measured, on what."""
    machine, code = result["machine"], result["code"]
    return (
        f"commit {code['commit']}{' (changed)' if code['changed'] else ''}, RabbitMQ {code['RabbitMQ']}, "
        f"store {code['store']}, read model {code['read model']}, Python {machine['python']}, "
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory GiB']:g} GiB; "
        f"load {machine['load before']:g} when it began"
    )


def noise(result: Mapping[str, Any]) -> Iterator[str]:
    """How much of the machine others used, section by section."""
    for section in ("throughput", "latency", "long", "burst"):
        if section in result:
            share = result[section]["cpu of others"]
            yield f"{section}: other programs used {share:.0%} of the CPU, load at the end {result[section]['load']:g}"


def _together(
    before: Mapping[str, Any], after: Mapping[str, Any] | None
) -> Iterator[tuple[Matrix, Callable[[str, str], str]]]:
    """Each table with what stands in its cells: the figure before, and after an arrow the one after."""
    later = {each.section: each for each in matrices(after or {})}
    for earlier in matrices(before):
        other = later.get(earlier.section)
        rows: dict[str, Mapping[str, float | None]] = {
            name: {} for name in [*earlier.rows, *(other.rows if other else ())]
        }
        columns = list(dict.fromkeys([*earlier.columns, *(other.columns if other else ())]))

        def cell(name: str, column: str, one: Matrix = earlier, two: Matrix | None = other) -> str:
            first = figure(one.rows.get(name, {}).get(column))
            return f"{first} → {figure(two.rows.get(name, {}).get(column))}" if two else first

        yield Matrix(earlier.section, earlier.title, columns, rows), cell


def _cells(matrix: Matrix) -> Callable[[str, str], str]:
    return lambda name, column: figure(matrix.rows[name].get(column))


def figure(value: float | None) -> str:
    """With as many digits as mean something."""
    if value is None:
        return "none"
    if value == int(value):
        return f"{int(value)}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _calls(calls: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in calls.items()) or "none"


def read(path: Path) -> dict[str, Any]:
    """A result that was written."""
    result: dict[str, Any] = json.loads(path.read_text())
    return result
