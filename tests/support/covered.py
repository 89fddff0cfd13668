"""How much of each room the tests ran: ``make coverage``."""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).parents[2]
COUNTED = ("covered_lines", "num_statements", "covered_branches", "num_branches")


def by_room(coverage: Coverage) -> dict[str, Counter[str]]:
    """What was run of the lines and branches of each room: a folder of a package, or the package's own modules."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        coverage.json_report(outfile=report.name)
        files = json.loads(Path(report.name).read_text())["files"]
    rooms: dict[str, Counter[str]] = {}
    for name, each in files.items():
        room = Path(name).parent.as_posix()
        rooms.setdefault(room, Counter()).update({kind: each["summary"][kind] for kind in COUNTED})
    return dict(sorted(rooms.items()))


def percent(counted: Counter[str]) -> float:
    """Lines and branches alike."""
    there = counted["num_statements"] + counted["num_branches"]
    return 100 * (counted["covered_lines"] + counted["covered_branches"]) / there if there else 100.0


def main() -> None:
    """Print the rooms and the total; exit code 1 below the gate, which pyproject.toml has."""
    coverage = Coverage(config_file=str(ROOT / "pyproject.toml"))
    coverage.load()
    total: Counter[str] = Counter()
    for room, counted in by_room(coverage).items():
        total.update(counted)
        print(f"{percent(counted):6.1f} %  of {counted['num_statements']:5} lines  {room}")
    gate = coverage.get_option("report:fail_under")
    assert isinstance(gate, int | float)
    reached = percent(total)
    print(f"{reached:6.1f} %  of {total['num_statements']:5} lines  in all; at least {gate:g} % is asked for")
    sys.exit(reached < gate)


if __name__ == "__main__":
    main()
