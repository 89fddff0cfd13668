"""What must be true of the roles when an attack is over: the same processes, as large as they were, with no backlog."""

import asyncio
import time
from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from cml_workers.eventstore.port import EventStore, StoredEvent
from cml_workers.eventstore.relay_stream import load_saved
from cml_workers.readmodels.generation import GENERATIONS
from cml_workers.sql.database import open_database, transaction
from fuzz.books import early_and_late
from support.roles import Roles

QUIET = 180.0
"""Seconds for the last messages to be dealt with."""
GROWTH = 0.15
GROWTH_BYTES = 30 * 1024 * 1024


def ended(roles: Roles, pids: Mapping[str, int]) -> list[str]:
    """Roles that are not the processes they were, and tracebacks that they logged."""
    found = [
        f"{name} ended with {process.poll()}"
        for name, process in roles.processes.items()
        if process.poll() is not None or process.pid != pids[name]
    ]
    tracebacks = roles.log().count("Traceback")
    return [*found, *([f"{tracebacks} tracebacks in the logs of the roles"] if tracebacks else [])]


def grown(memory: Mapping[str, list[tuple[float, int]]]) -> list[str]:
    """Roles that became too large."""
    found = []
    for name, samples in memory.items():
        early, late = early_and_late(samples)
        if late - early > min(GROWTH * early, GROWTH_BYTES):
            found.append(f"{name} grew from {early / 2**20:.1f} to {late / 2**20:.1f} MiB")
    return found


async def behind(database_url: str, store: EventStore, events: Sequence[StoredEvent]) -> list[str]:
    """Followers that have not taken every event in time: read model and relay, which may be later than the queues."""
    wanted = dict.fromkeys(("read model", "relay"), int(events[-1].position))
    projected = sa.select(GENERATIONS.c.position).where(GENERATIONS.c.state == "active")
    end = time.monotonic() + QUIET
    database = open_database(database_url)
    while True:
        async with transaction(database) as connection:
            position = await connection.scalar(projected)
        saved = await load_saved(store)
        at = {"read model": int(position or 0), "relay": int((saved and saved.position) or 0)}
        late = [f"{name} is at {at[name]} of {wanted[name]}" for name in wanted if at[name] < wanted[name]]
        if not late or time.monotonic() > end:
            break
        await asyncio.sleep(1)
    await database.dispose()
    return late
