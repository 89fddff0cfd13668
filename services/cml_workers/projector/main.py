"""Composition of the projector role: owns the read model; follows the store and answers queries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from cml_contracts.envelope import WORKER_STREAMS
from cml_contracts.topology import PROJECTOR_QUERIES
from cml_workers.bus.port import Message, Verdict
from cml_workers.database import migrate
from cml_workers.eventstore.following import Following, follow_from
from cml_workers.projector.projector import Projector
from cml_workers.projector.read_model import ReadModel
from cml_workers.roles import Infrastructure, Running, background, not_following


@asynccontextmanager
async def projector(given: Infrastructure) -> AsyncIterator[Running]:
    """Run the role until the context ends. Raises BusUnavailableError, TopologyError, DatabaseUnavailableError."""
    await migrate(given.database)
    read_model = ReadModel(given.database)
    bus = given.bus("cml-projector")
    projecting = Projector(store=given.store, read_model=read_model)

    async def on_query(message: Message) -> Verdict:
        return await projecting.on_query(message, bus.publish)

    following = Following()

    async def follow() -> None:
        await follow_from(
            given.store, projecting.resumed, projecting.handle, prefix=WORKER_STREAMS, following=following
        )

    bus.consume(PROJECTOR_QUERIES, on_query, prefetch=given.settings.prefetch)
    async with bus, background(follow, "projector") as task:
        yield Running("projector", (bus.problem, partial(not_following, following)), (task,), following)
