"""Composition of the projector role: owns the read model and the archive of dead letters.

It follows the store, answers queries, reminds of what is owed, keeps dead letters and does with them as it is told.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

import structlog

from cml_workers.bus.port import Message, UnroutableError, Verdict
from cml_workers.bus.topology import (
    DEAD_LETTER_QUEUE,
    INTERNAL_EXCHANGE,
    PROJECTOR_OPERATOR,
    PROJECTOR_QUERIES,
)
from cml_workers.bus.usage import Usage
from cml_workers.deadletters.archive import Archive
from cml_workers.deadletters.handler import DeadLetters
from cml_workers.eventstore.following import Following, follow_from
from cml_workers.eventstore.worker_streams import WORKER_STREAMS
from cml_workers.projector.projector import Projector
from cml_workers.projector.read_model import ReadModel
from cml_workers.projector.reminders import Reminders
from cml_workers.runtime.role import (
    Infrastructure,
    Part,
    Replicas,
    Role,
    Running,
    background,
    not_following,
    utc_now,
)
from cml_workers.sql.database import migrate

log = structlog.get_logger(__name__)


@asynccontextmanager
async def projector(given: Infrastructure) -> AsyncIterator[Running]:
    """Run the role until the context ends. Raises BusUnavailableError, TopologyError, DatabaseUnavailableError."""
    await migrate(given.database)
    read_model = ReadModel(given.database)
    bus = given.bus(PROJECTOR)
    projecting = Projector(store=given.store, read_model=read_model)

    archive = Archive(given.archive)
    dead_letters = DeadLetters(
        archive=archive,
        store=given.store,
        publish=bus.publish,
        own_user=bus.user,
        access=given.settings.access,
        now=utc_now,
    )

    async def on_query(message: Message) -> Verdict:
        return await projecting.on_query(message, bus.publish)

    following = Following()

    async def follow() -> None:
        await follow_from(
            given.store, projecting.resumed, projecting.handle, prefix=WORKER_STREAMS, following=following
        )

    reminders = Reminders(
        read_model=read_model,
        publish=bus.publish,
        now=utc_now,
        after=timedelta(seconds=given.settings.reminder_seconds),
        deadline=timedelta(seconds=given.settings.operation_deadline_seconds),
    )

    async def remind() -> None:
        while True:
            try:
                await reminders.round()
            except (ConnectionError, UnroutableError) as error:
                log.warning("reminders wait for the next round", cause=str(error))
            await asyncio.sleep(given.settings.reminder_seconds)

    bus.consume(PROJECTOR_QUERIES, on_query, prefetch=given.settings.prefetch)
    bus.consume(DEAD_LETTER_QUEUE, dead_letters.collect, prefetch=10)
    bus.consume(PROJECTOR_OPERATOR, dead_letters.on_request, prefetch=10)
    async with (
        bus,
        background(follow, "projector") as following_task,
        background(remind, "reminders") as reminding,
    ):
        yield Running(
            PROJECTOR.name,
            (bus.problem, partial(not_following, following)),
            (following_task, reminding),
            following,
            archive.waiting,
        )


PROJECTOR = Role(
    name="projector",
    does="Keeps the read model, answers queries, sends reminders, archives dead letters.",
    compose=projector,
    needs=(Part.BUS, Part.STORE, Part.DATABASE),
    uses=Usage(
        consumes=(PROJECTOR_QUERIES, PROJECTOR_OPERATOR, DEAD_LETTER_QUEUE), publishes=(INTERNAL_EXCHANGE,)
    ),
    replicas=Replicas.ONE,
)
