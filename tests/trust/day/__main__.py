"""A day of honest and hostile use at once, and whether the audit trail is true at its end.

Run it with ``make day MINUTES=10``, or in ``tests``: ``python -m trust.day --minutes 10 --seed 1``. The seed says what is tried in which
order and which role is killed; what meets what depends on the machine.
"""

import argparse
import random
import tempfile
from pathlib import Path

from rich.console import Console

from system.long_run import run_to_its_end
from trust.day.run import live


def main() -> None:
    """Exit code 1 if anything is not true."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="until nobody sends any more (default: 10)"
    )
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1_000_000), help="default: another each time"
    )
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cml-day-"))
    run_to_its_end(
        lambda: live(folder, seed=asked.seed, seconds=60 * asked.minutes),
        lambda outcome: outcome.violations,
        folder=folder,
        again=f"make day MINUTES={asked.minutes:g} SEED={asked.seed}",
        out=Console(),
    )


if __name__ == "__main__":
    main()
