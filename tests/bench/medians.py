"""What the benchmarks that compare two medians say, and whether they met their goal."""

import statistics
import sys
from collections.abc import Sequence

GOAL = 1.2
"""Of the medians, with what is measured and without."""


def say(what: str) -> None:
    """As it goes."""
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


def within_goal(kind: str, without: Sequence[float], with_it: Sequence[float]) -> bool:
    """Seconds of one kind; says them, and whether the ratio of the medians is within the goal."""
    quiet, found = statistics.median(without), statistics.median(with_it)
    say(
        f"{kind:19} {len(without):3} and {len(with_it):3} times: median ms {1000 * quiet:6.1f} without, {1000 * found:6.1f} with, "
        f"ratio {found / quiet:.2f} (goal <= {GOAL}); slowest {1000 * max(without):.0f} and {1000 * max(with_it):.0f}"
    )
    return found / quiet <= GOAL
