"""What can be seen of a system from outside, simulated or running: what the promises are about."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from cml_contracts.envelope import EventEnvelope
from cml_contracts.instance import WORKER_TAG, InstanceState
from cml_contracts.queries import OperationView, WorkerView
from cml_contracts.results import OperationResult
from cml_workers.domain.history import Recorded
from cml_workers.eventstore.names import WORKER_STREAMS, is_workers, worker_of
from cml_workers.eventstore.port import CaughtUp, EventStore, StoredEvent
from cml_workers.eventstore.worker_streams import decode
from cml_workers.readmodels.model import active
from cml_workers.readmodels.workers.tables import OPERATIONS, WORKERS
from cml_workers.sql.database import open_database, transaction
from support.ec2 import SimulatorAdmin


@dataclass(frozen=True, slots=True)
class SeenInstance:
    """An instance as EC2 itself knows it, terminated ones too."""

    instance_id: str
    state: InstanceState
    token: str | None
    tags: Mapping[str, str]


@dataclass
class Observed:
    """Everything that the promises are about."""

    events: Sequence[StoredEvent]
    """Of all workers' streams, in the store's order."""
    instances: Sequence[SeenInstance]
    replies: Mapping[str, Sequence[OperationResult]] = field(default_factory=dict)
    """By command id."""
    confirmed: frozenset[str] = frozenset()
    """Ids of the commands that the bus took."""
    awaited: Mapping[str, str] = field(default_factory=dict)
    """Reply addresses, each of which one message alone gave, with its command's id; of messages that the bus took."""
    answered: Collection[str] = frozenset()
    """The addresses at which a reply arrived."""
    rows: Sequence[WorkerView] | None = None
    """The read model's; None: not looked at."""
    operations: Sequence[OperationView] | None = None
    status_updates: Collection[str] = frozenset()
    """Ids of the status updates, whose results are not recorded."""
    published: Sequence[EventEnvelope] | None = None
    """What a subscriber got, in the order it came. None: nobody listened."""

    def streams(self) -> dict[UUID, list[Recorded]]:
        """The events of each worker."""
        streams: dict[UUID, list[Recorded]] = {}
        for stored in self.events:
            streams.setdefault(worker_of(stored.stream), []).append(decode(stored))
        return streams


async def observe(
    store: EventStore,
    admin: SimulatorAdmin,
    database_url: str,
    replies: Mapping[str, Sequence[OperationResult]],
    confirmed: Iterable[str],
    published: Sequence[EventEnvelope] | None = None,
    *,
    awaited: Mapping[str, str] | None = None,
    answered: Collection[str] = frozenset(),
    status_updates: Collection[str] = frozenset(),
    others: Collection[UUID] = frozenset(),
) -> Observed:
    """A running system from outside: its event store, EC2, its read model, and what its callers know.

    ``others``: workers that are none of its business, as they were in the store before.
    """
    engine = open_database(database_url)
    async with transaction(engine) as connection:
        workers = (await connection.execute(sa.select(active(WORKERS).c.view))).scalars().all()
        operations = (await connection.execute(sa.select(active(OPERATIONS).c.view))).scalars().all()
    await engine.dispose()
    rows = [WorkerView.model_validate_json(view) for view in workers]
    entries = [OperationView.model_validate_json(view) for view in operations]
    known = {str(each) for each in others}
    return Observed(
        events=[each for each in await worker_events(store) if worker_of(each.stream) not in others],
        instances=[
            each
            for each in simulated_instances(await asyncio.to_thread(admin.instances))
            if each.tags.get(WORKER_TAG) not in known
        ],
        replies=replies,
        confirmed=frozenset(confirmed),
        awaited=awaited or {},
        answered=answered,
        rows=[each for each in rows if each.id not in others],
        operations=[each for each in entries if each.worker_id not in others],
        status_updates=status_updates,
        published=published and [each for each in published if each.worker_id not in others],
    )


async def stored_workers(store: EventStore) -> frozenset[UUID]:
    """All that there are now."""
    return frozenset(worker_of(each.stream) for each in await worker_events(store))


async def worker_events(store: EventStore) -> list[StoredEvent]:
    """Those of workers: other applications may have streams whose names begin likewise."""
    return [each for each in await stored_events(store) if is_workers(each.stream)]


async def stored_events(store: EventStore, prefix: str = WORKER_STREAMS) -> list[StoredEvent]:
    """All events that are there now."""
    events = []
    following = store.follow(after=None, prefix=prefix)
    async for item in following:
        if isinstance(item, CaughtUp):
            break
        if isinstance(item, StoredEvent):
            events.append(item)
    await following.aclose()
    return events


def simulated_instances(answer: Sequence[Mapping[str, Any]]) -> list[SeenInstance]:
    """What the EC2 simulator's ``/simulator/instances`` showed."""
    return [
        SeenInstance(each["instance_id"], InstanceState(each["state"]), each["client_token"], each["tags"])
        for each in answer
    ]
