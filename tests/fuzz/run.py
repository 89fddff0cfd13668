"""A bounded run of hostile messages against the roles as processes: ``make fuzz MESSAGES=100000``.

At the end every single message is accounted for: answered, dead-lettered with a reason, decided in a stream, or
well-formed and of no effect; and the roles are the processes they were, as large as they were, with empty queues.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from fuzz.attack import Attack
from support.postgresql import any_postgresql, database_of_its_own
from support.rabbitmq import any_rabbitmq


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--messages", type=int, default=100_000, help="hostile ones that are sent (default: 100000)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="the same one makes the same messages (default: 1)"
    )
    parser.add_argument(
        "--bodies", type=int, default=2_000, help="drawn from the contracts by Hypothesis (default: 2000)"
    )
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cml-fuzz-"))
    with any_rabbitmq(folder / "rabbitmq") as (amqp, _), any_postgresql() as (postgresql, _):
        async with database_of_its_own(postgresql) as database, Attack(amqp, database, folder) as attack:
            outcome = await attack.run(
                given.messages, seed=given.seed, bodies=given.bodies, patient=True, report=_progress
            )
    print(f"\n{outcome.summary()}")
    for problem in outcome.problems:
        print(f"NOT AS IT MUST BE: {problem}")
    print(f"log: {folder / 'roles.log'}")
    return 1 if outcome.problems else 0


def _progress(line: str) -> None:
    print(
        f"\r\x1b[K{line}" if sys.stdout.isatty() else line,
        end="" if sys.stdout.isatty() else "\n",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
