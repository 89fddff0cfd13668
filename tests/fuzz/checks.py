"""What must be true of the roles when an attack is over: the same processes, as large as they were, with no backlog."""

import asyncio
import time
from collections.abc import Mapping

import sqlalchemy as sa

from cml_workers.readmodels.generation import GENERATIONS
from cml_workers.relay.main import FOLLOWER as RELAY
from cml_workers.relay.relay import SAVE_EVERY
from cml_workers.sql.database import load_checkpoint, open_database, transaction
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


async def behind(database_url: str, last: str) -> list[str]:
    """Followers that have not taken every event in time: read model and relay, which may be later than the queues."""
    wanted = {"read model": int(last), RELAY: int(last) - SAVE_EVERY}
    projected = sa.select(GENERATIONS.c.position).where(GENERATIONS.c.state == "active")
    end = time.monotonic() + QUIET
    database = open_database(database_url)
    while True:
        async with transaction(database) as connection:
            at = {
                "read model": int(await connection.scalar(projected) or 0),
                RELAY: int(await load_checkpoint(connection, RELAY) or 0),
            }
        late = [f"{name} is at {at[name]} of {last}" for name in wanted if at[name] < wanted[name]]
        if not late or time.monotonic() > end:
            break
        await asyncio.sleep(1)
    await database.dispose()
    return late
