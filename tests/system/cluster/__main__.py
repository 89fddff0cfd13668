"""A cluster of three RabbitMQ nodes whose nodes are killed, restarted, frozen and separated under load.

Two lifecycles and two EC2 adapters, relay and projector; callers and subscribers by our client and by aio-pika alone.
Then all is quiet, and what must be true is checked.

Run it with ``make test-cluster VERSION=4.3``, or in ``tests``: ``python -m system.cluster``, on the RabbitMQ that it finds.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from support.rabbitmq import installed
from system.cluster.parts import system
from system.cluster.run import PHASES, Outcome, Run
from system.long_run import run_to_its_end


def main() -> None:
    """Exit code 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--only",
        action="append",
        choices=list(PHASES),
        help="this phase only; may be repeated (default: all)",
    )
    asked = parser.parse_args()
    out = Console(width=None if sys.stdout.isatty() else 150)
    folder = Path(tempfile.mkdtemp(prefix="cml-cluster-"))
    out.print(f"on {installed()}; logs and store files are in {folder}")
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    async def run() -> Outcome:
        async with system(folder) as running:
            return await Run(running, asked.only or list(PHASES), out).run()

    only = "".join(f" --only '{phase}'" for phase in asked.only or ())
    run_to_its_end(
        run,
        lambda outcome: outcome.violations,
        folder=folder,
        again=f"cd tests && python -m system.cluster{only}",
        out=out,
    )


if __name__ == "__main__":
    main()
