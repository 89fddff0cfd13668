"""A read model with a real event store and a database of each kind, for tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

from cml_contracts.events import (
    InstanceLaunched,
    LaunchRequested,
    TagsUpdated,
    TagsUpdateRequested,
    WorkerCreated,
    WorkerEvent,
)
from cml_contracts.queries import GetCMLWorker, GetOperation, ListCMLWorkers, WorkerPage
from cml_contracts.results import OperationResult
from cml_workers.bus.port import Ack, Message
from cml_workers.domain.policy import Access
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.names import WORKER_STREAMS
from cml_workers.eventstore.port import CaughtUp, EventStore, StoredEvent
from cml_workers.eventstore.worker_streams import append, load
from cml_workers.projector.queries import Queries
from cml_workers.readmodels.generation import Generation
from cml_workers.readmodels.generations import Generations
from cml_workers.readmodels.model import ReadModel
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.writing import Writer
from cml_workers.sql.adapters import connect
from cml_workers.sql.database import migrate, open_database
from cml_workers.sql.port import Database, DatabaseOptions
from simulation.tables import Tables
from support.buses import Outbox, queue_of
from support.given import NOW, instance, launch, recorded
from support.postgresql import emptied

DATABASES = ("sqlite", "postgresql", "memory")

CREATED = WorkerCreated(
    name="lab", aws_region="us-east-1", instance_type="m5.large", ami_id="ami-11111111", created_by="ann"
)
LAUNCH = LaunchRequested(operation_id="create", launch=launch())
LAUNCHED = InstanceLaunched(operation_id="create", instance=instance())
TAGS = (
    TagsUpdateRequested(operation_id="tag", tags={"a": "1"}),
    TagsUpdated(operation_id="tag", tags={"Name": "lab", "a": "1"}),
)


@asynccontextmanager
async def opened(options: DatabaseOptions | str) -> AsyncIterator[Database]:
    """The database, migrated."""
    engine = open_database(options)
    await migrate(engine)
    await engine.dispose()
    database = connect(options)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def a_database(kind: str, folder: Path, postgresql_url: str | None = None) -> AsyncIterator[Database]:
    """An empty one of this kind."""
    if kind == "memory":
        yield Tables().database
        return
    url = (
        f"sqlite:///{folder / 'read-model.sqlite3'}"
        if kind == "sqlite"
        else await emptied(postgresql_url or "")
    )
    async with opened(url) as database:
        yield database


class Projected:
    """Workers' streams, followed into a read model; and its queries."""

    def __init__(self, store: EventStore, database: Database, model: ReadModel = WORKERS_VIEW) -> None:
        self.store = store
        self.database = database
        self.generations = Generations(model, database)
        self.writer = self.new_writer()
        self.queries = Queries(database=database, unavailable=lambda _: None, access=Access())

    def new_writer(self) -> Writer:
        """As another process has one."""
        return Writer(self.store, self.generations, self.active)

    async def record(self, worker_id: UUID, *events: WorkerEvent) -> None:
        """Append, with operation ids of the worker's own."""
        worker = await load(self.store, worker_id)
        own = [
            event.model_copy(update={"operation_id": f"{event.operation_id}/{worker_id}"})
            if hasattr(event, "operation_id")
            else event
            for event in events
        ]
        metadata = [recorded(worker, event, NOW, "cause").metadata for event in own]
        await append(self.store, worker, list(zip(own, metadata, strict=True)))

    async def workers(self, number: int, *events: WorkerEvent) -> list[UUID]:
        """New workers with these events."""
        ids = [uuid4() for _ in range(number)]
        for worker_id in ids:
            await self.record(worker_id, *events)
        return ids

    async def catch_up(self, *, items: int | None = None) -> None:
        """Follow from the saved checkpoint until there is no more, or die after so many events."""
        self.writer = self.new_writer()
        seen = 0
        async for item in self.store.follow(after=await self.writer.resumed(), prefix=WORKER_STREAMS):
            await self.writer.handle([item])
            seen += isinstance(item, StoredEvent)
            if isinstance(item, CaughtUp) or seen == items:
                return

    async def active(self) -> Generation:
        """What queries see."""
        found = await self.generations.active()
        assert found is not None
        return found

    async def caught_up(self) -> None:
        """Wait until whoever follows has written everything."""
        last = (await self.stored())[-1].position
        async with asyncio.timeout(30):
            while (await self.active()).position != last:
                await asyncio.sleep(0.01)

    async def stored(self) -> list[StoredEvent]:
        """All events, in order."""
        found = []
        async for item in self.store.follow(after=None, prefix=WORKER_STREAMS):
            if isinstance(item, CaughtUp):
                break
            if isinstance(item, StoredEvent):
                found.append(item)
        return found

    async def folded(self, worker_id: UUID) -> Worker:
        """The worker of its stream."""
        return await load(self.store, worker_id)

    async def ask(
        self, query: GetCMLWorker | ListCMLWorkers | GetOperation, user: str | None = None
    ) -> OperationResult:
        """The answer, as a caller gets it."""
        outbox = Outbox()
        message = Message(
            body=query.model_dump_json(exclude_none=True).encode(),
            type=query.TYPE,
            message_id="q",
            reply_to=queue_of("caller"),
            user_id=user,
        )
        assert await self.queries.on_query(message, outbox) == Ack()
        (result,) = outbox.results()
        return result

    async def names(self, **conditions: object) -> list[str]:
        """The names of a page of workers."""
        result = await self.ask(ListCMLWorkers.model_validate(conditions))
        return [view.name for view in WorkerPage.model_validate(result.data).workers]
