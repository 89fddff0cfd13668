"""How a long run on real processes begins and ends: chaos, two fleets in one account, a hostile sender, a day."""

import argparse
import asyncio
import random
import shutil
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console

from cml_workers.process.signals import ended_by_signals


class Outcome(Protocol):
    """What came of it."""

    def table(self) -> Any:
        """The figures."""
        ...


T = TypeVar("T", bound=Outcome)


def arguments(described: str | None, *, minutes: str | None = None) -> argparse.ArgumentParser:
    """What each of them is asked: the seed, and for how long if ``minutes`` says of what."""
    parser = argparse.ArgumentParser(description=described, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(1_000_000),
        help="of all that is chosen at random (default: another each time)",
    )
    if minutes:
        parser.add_argument("--minutes", type=float, default=10.0, help=f"{minutes} (default: 10)")
    return parser


def run_to_its_end(
    work: Callable[[], Coroutine[Any, Any, T]],
    violations_of: Callable[[T], Sequence[str]],
    *,
    folder: Path,
    again: str,
    out: Console,
) -> None:
    """Print the figures and what is wrong; ``again``: the command that repeats it.

    Exits with 1 if anything is wrong, and with 130 if a signal has ended it; then the folder is kept.
    """
    outcomes: list[T] = []

    async def run() -> None:
        with ended_by_signals():
            outcomes.append(await work())

    asyncio.run(run())
    if not outcomes:
        out.print(f"interrupted; logs and store files are in {folder}")
        sys.exit(130)
    [outcome] = outcomes
    out.print(outcome.table())
    if violations := violations_of(outcome):
        for violation in violations[:50]:
            out.print(violation, style="red", markup=False, highlight=False, soft_wrap=True)
        out.print(f"Logs and store files are kept in {folder}.")
        out.print(f"Again: {again}")
        sys.exit(1)
    shutil.rmtree(folder)
