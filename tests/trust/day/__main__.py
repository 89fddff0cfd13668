"""A day of honest and hostile use at once, and whether the audit trail is true at its end.

Run it with ``make day MINUTES=10``, or in ``tests``: ``python -m trust.day --minutes 10 --seed 1``. The seed says what is tried in which
order and which role is killed; what meets what depends on the machine.
"""

import tempfile
from pathlib import Path

from rich.console import Console

from system.long_run import arguments, run_to_its_end
from trust.day.run import live


def main() -> None:
    """Exit code 1 if anything is not true."""
    asked = arguments(__doc__, minutes="until nobody sends any more").parse_args()
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
