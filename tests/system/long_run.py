"""How a long run on real processes ends: chaos, and two fleets in one account."""

import asyncio
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
