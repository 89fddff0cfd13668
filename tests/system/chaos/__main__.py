"""Chaos: real processes on a real RabbitMQ, a real store and PostgreSQL, killed, frozen and cut off under load.

Two lifecycles and two EC2 adapters, relay and projector, each with a network of its own to each part. Faults follow a
seeded schedule and overlap; some wait for a chosen message. Callers send once and wait. Then all is quiet, and what must
be true is checked.

Run it with ``make chaos KILLS=200``, or in ``tests``: ``python -m system.chaos --kills 200 --seed 1``.
"""

import tempfile
from pathlib import Path

from rich.console import Console

from support.planted_role import PLANTS
from system.chaos.unleash import unleash
from system.long_run import arguments, run_to_its_end


def main() -> None:
    """Exit code 1 if a promise was broken."""
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="processes killed in all (default: 200)")
    parser.add_argument(
        "--store", choices=("sqlite", "kurrentdb"), default="sqlite", help="the event store (default: sqlite)"
    )
    parser.add_argument(
        "--pace", type=float, default=2.0, help="seconds between two faults, on average (default: 2)"
    )
    parser.add_argument(
        "--plant",
        choices=sorted(PLANTS),
        help="run the roles with this deliberate fault, to see it caught (default: none)",
    )
    asked = parser.parse_args()
    out = Console()
    folder = Path(tempfile.mkdtemp(prefix="cml-chaos-"))
    plant = f" PLANT={asked.plant}" if asked.plant else ""
    again = f"KILLS={asked.kills} SEED={asked.seed} STORE={asked.store} PACE={asked.pace:g}{plant}"
    run_to_its_end(
        lambda: unleash(
            folder,
            kills=asked.kills,
            seed=asked.seed,
            store=asked.store,
            pace=asked.pace,
            plant=asked.plant,
            out=out,
        ),
        lambda outcome: outcome.violations,
        folder=folder,
        again=f"make chaos {again}",
        out=out,
    )


if __name__ == "__main__":
    main()
