"""Two fleets in one account: each has all its roles, its broker's own part, its store and its read model; EC2 is shared.

Both get random commands and try to import each other's instances, and a stranger with the console stops, starts, terminates,
tags and resizes instances of all. Then each worker is asked for its status once, and what must be true is checked.

Run it with ``make fleets MINUTES=10``, or in ``tests``: ``python -m system.fleets --minutes 10 --seed 1``.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from cml_workers.process.signals import ended_by_signals
from system.fleets.outcome import Outcome
from system.fleets.run import live_beside_each_other


def main() -> None:
    """Exit code 1 if anything is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="of commands and interference (default: 10)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(1_000_000),
        help="of all that is chosen at random (default: another each time)",
    )
    asked = parser.parse_args()
    out = Console()
    folder = Path(tempfile.mkdtemp(prefix="cml-fleets-"))
    outcomes: list[Outcome] = []

    async def run() -> None:
        with ended_by_signals():
            outcomes.append(
                await live_beside_each_other(folder, seconds=60 * asked.minutes, seed=asked.seed, out=out)
            )

    asyncio.run(run())
    if not outcomes:
        out.print(f"interrupted; logs and store files are in {folder}")
        sys.exit(130)
    [outcome] = outcomes
    out.print(outcome.table())
    violations = outcome.violations + outcome.never
    for violation in violations[:50]:
        out.print(violation, style="red", markup=False, highlight=False, soft_wrap=True)
    if violations:
        out.print(f"Logs and store files are kept in {folder}.")
        out.print(f"Again: make fleets MINUTES={asked.minutes:g} SEED={asked.seed}")
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
