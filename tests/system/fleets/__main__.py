"""Two fleets in one account: each has all its roles, its broker's own part, its store and its read model; EC2 is shared.

Both get random commands and try to import each other's instances, and a stranger with the console stops, starts, terminates,
tags and resizes instances of all. Then each worker is asked for its status once, and what must be true is checked.

Run it with ``make fleets MINUTES=10``, or in ``tests``: ``python -m system.fleets --minutes 10 --seed 1``.
"""

import tempfile
from pathlib import Path

from rich.console import Console

from system.fleets.run import live_beside_each_other
from system.long_run import arguments, run_to_its_end


def main() -> None:
    """Exit code 1 if anything is not as it must be."""
    asked = arguments(__doc__, minutes="of commands and interference").parse_args()
    out = Console()
    folder = Path(tempfile.mkdtemp(prefix="cml-fleets-"))
    run_to_its_end(
        lambda: live_beside_each_other(folder, seconds=60 * asked.minutes, seed=asked.seed, out=out),
        lambda outcome: outcome.violations + outcome.never,
        folder=folder,
        again=f"make fleets MINUTES={asked.minutes:g} SEED={asked.seed}",
        out=out,
    )


if __name__ == "__main__":
    main()
