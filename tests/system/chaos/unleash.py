"""Chaos on a system of its own, and what is shown of it meanwhile."""

import asyncio
import logging
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar

from support.servers import Harm
from system.chaos.outcome import Outcome
from system.chaos.parts import setup_of, system
from system.chaos.run import HARMS, WAVE, Chaos, beside
from system.chaos.schedule import Store


def _summary(chaos: Chaos) -> str:
    return (
        f"{chaos.stage}: {chaos.system.kills.total()} of {chaos.system.wanted} kills, "
        f"{chaos.system.faults.total()} faults; commands: {chaos.sent} sent, {chaos.answered} answered, "
        f"{chaos.repeated} repeated; {chaos.launched} instances, {chaos.open} operations open"
    )


def _shown(chaos: Chaos) -> Group:
    bar = ProgressBar(total=chaos.system.wanted, completed=chaos.system.kills.total())
    return Group(_summary(chaos), bar)


async def _lines(out: Console, chaos: Chaos) -> None:
    """Where nothing can be drawn over: a line now and then."""
    while True:
        await asyncio.sleep(15)
        out.print(_summary(chaos), soft_wrap=True)


async def unleash(
    folder: Path,
    *,
    kills: int,
    seed: int,
    store: Store,
    pace: float,
    wave: int = WAVE,
    must_meet: AbstractSet[str] = frozenset(),
    measured: Sequence[Harm] = HARMS,
    plant: str | None = None,
    out: Console,
) -> Outcome:
    """One run of chaos on a system of its own.

    ``must_meet``: kinds of faults that it goes on for until each was met. ``measured``: after what, at the end, the time to the
    last answer is measured. ``plant``: a deliberate fault of the roles,
    see ``support.planted_role``.
    """
    planted = f", with the planted fault {plant}" if plant else ""
    out.print(f"chaos: {kills} kills, seed {seed}, on {store}{planted}; logs and store files are in {folder}")
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # callers show outages by publishing again
    setup = setup_of(store)
    async with system(folder, setup, kills, plant) as running:
        chaos = Chaos(
            running, seed=seed, setup=setup, pace=pace, wave=wave, must_meet=must_meet, measured=measured
        )
        if out.is_terminal:
            with Live(get_renderable=lambda: _shown(chaos), console=out, refresh_per_second=2):
                return await chaos.run()
        async with beside(_lines(out, chaos)):
            return await chaos.run()
