"""Composition of the relay role: owns the checkpoint of what was published; follows the store."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from cml_contracts.topology import EVENTS_EXCHANGE
from cml_workers.bus.usage import Usage
from cml_workers.eventstore.following import Following, follow_from
from cml_workers.eventstore.worker_streams import WORKER_STREAMS
from cml_workers.relay.relay import Relay
from cml_workers.runtime.role import (
    Infrastructure,
    Part,
    Replicas,
    Role,
    Running,
    background,
    not_following,
)
from cml_workers.sql.database import load_checkpoint, migrate, save_checkpoint, transaction

FOLLOWER = "relay"


@asynccontextmanager
async def relay(given: Infrastructure) -> AsyncIterator[Running]:
    """Run the role until the context ends. Raises BusUnavailableError, TopologyError, DatabaseUnavailableError."""
    await migrate(given.database)

    async def load() -> str | None:
        async with transaction(given.database) as connection:
            return await load_checkpoint(connection, FOLLOWER)

    async def save(position: str) -> None:
        async with transaction(given.database) as connection:
            await save_checkpoint(connection, FOLLOWER, position)

    bus = given.bus(RELAY)
    publishing = Relay(
        publish=bus.publish,
        save=save,
        source=f"/cml-workers/{given.settings.deployment}",
        clock=time.monotonic,
    )

    following = Following()

    async def follow() -> None:
        await follow_from(given.store, load, publishing.handle, prefix=WORKER_STREAMS, following=following)

    async with bus:
        try:
            async with background(follow, "relay") as task:
                yield Running(
                    RELAY.name, (bus.problem, partial(not_following, following)), (task,), following
                )
        finally:
            await publishing.save()


RELAY = Role(
    name="relay",
    does="Publishes every event.",
    compose=relay,
    needs=(Part.BUS, Part.STORE, Part.DATABASE),
    uses=Usage(publishes=(EVENTS_EXCHANGE,)),
    replicas=Replicas.ONE,
)
