"""A hostile sender at full speed beside an honest one: how long the honest one waits, and what roles, broker and archive take up.

The honest sender is measured alone, beside the hostile one, and alone again; the two parts alone are one sample. The broker has the shipped
definitions, each role is a process with its own user, and the hostile user has the rights of one. The table says what is bounded by what.

Run it with ``make hostile MINUTES=10``, or in ``tests``: ``python -m system.hostile --minutes 10 --seed 1``.
"""

import tempfile
from pathlib import Path

from rich.console import Console

from system.hostile.run import Plan, attack
from system.long_run import arguments, run_to_its_end


def main() -> None:
    """Exit code 1 if a bound is broken."""
    parser = arguments(__doc__, minutes="of hostility")
    parser.add_argument(
        "--alone", type=float, default=60.0, help="seconds of each part without it (default: 60)"
    )
    parser.add_argument("--rate", type=float, default=8.0, help="honest messages a second (default: 8)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the roles"
    )
    asked = parser.parse_args()
    out = Console()
    folder = Path(tempfile.mkdtemp(prefix="cml-hostile-"))
    plan = Plan(hostile=60 * asked.minutes, alone=asked.alone, seed=asked.seed, rate=asked.rate)
    settings = dict(each.split("=", 1) for each in asked.set)
    run_to_its_end(
        lambda: attack(folder, plan, out, **settings),
        lambda outcome: outcome.violations,
        folder=folder,
        again=f"make hostile MINUTES={asked.minutes:g} SEED={asked.seed}",
        out=out,
    )


if __name__ == "__main__":
    main()
