"""The lifecycle handler on a real event store, with a bus that keeps what is published."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from cml_contracts.commands import WorkerCommand
from cml_contracts.instance import Ec2Instance, InstanceState
from cml_workers.bus.port import Message, Outgoing, Publish, Verdict
from cml_workers.bus.topology import INTERNAL_EXCHANGE
from cml_workers.domain.messages import (
    LookupAnswered,
    LookupRequested,
    LookupResult,
    OperationSucceeded,
    Report,
)
from cml_workers.domain.policy import Access, Policy
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.port import EventStore, StoredEvent, StreamNotFoundError
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import load
from cml_workers.lifecycle.denials import DENIALS_STREAM
from cml_workers.lifecycle.handler import Lifecycle
from support.buses import Outbox, command
from support.given import create, instance

WORKER = UUID("22222222-2222-4222-8222-222222222222")
CREATE = create(worker_id=WORKER, reason="week 3")


class Service:
    """The lifecycle role with its store and what it has sent."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.outbox = Outbox()
        self.publish: Publish = self.outbox
        self.now = datetime(2026, 1, 2, tzinfo=UTC)
        self.allow(Access())

    def allow(self, access: Access) -> None:
        """From now on, who may command, and how much."""
        self.handler = Lifecycle(
            store=self.store,
            publish=self._published,
            policy=Policy(),
            access=access,
            now=lambda: self.now,
            new_id=uuid4,
        )

    async def _published(self, message: Outgoing, /) -> None:
        await self.publish(message)  # which a test may have changed since

    async def command(self, body: WorkerCommand, command_id: str | None = None, **fields: Any) -> Verdict:
        return await self.handler.on_command(command(body, command_id, **fields))

    async def denied(self) -> list[dict[str, Any]]:
        """What is said of denied attempts."""
        try:
            events = await self.store.read(DENIALS_STREAM)
        except StreamNotFoundError:
            return []
        return [attempt for each in events for attempt in json.loads(each.data)["attempts"]]

    async def report(self, report: Report, message_id: str | None = None, *, attempt: int = 0) -> Verdict:
        return await self.handler.on_report(
            Message(
                body=report.model_dump_json().encode(),
                type=report.TYPE,
                message_id=message_id or str(uuid4()),
                attempt=attempt,
            )
        )

    async def launched(self, state: InstanceState = InstanceState.RUNNING) -> None:
        await self.command(CREATE, "create", reply_to=None)
        await self.report(
            OperationSucceeded(worker_id=WORKER, operation_id="create", instance=instance(state))
        )

    def lookup(self) -> LookupRequested:
        """What it asked EC2 last."""
        return LookupRequested.model_validate_json(self.outbox.on(INTERNAL_EXCHANGE.name)[-1].body)

    async def answer(self, found: Ec2Instance | None) -> Verdict:
        """EC2 answers that."""
        asked = self.lookup()
        return await self.report(
            LookupAnswered(origin=asked.origin, lookup=asked.lookup, looked_up=LookupResult(instance=found))
        )

    async def worker(self) -> Worker:
        return await load(self.store, WORKER)

    async def types(self) -> list[str]:
        stored = await self.store.read(f"cml_worker-{WORKER}")
        return [each.type.removeprefix("cml.").removesuffix(".v1") for each in stored]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Service]:
    """A service on a store file in that folder."""
    store = SqliteEventStore(folder / "events.sqlite3")
    yield Service(store)
    await store.close()


async def streams(service: Service, prefix: str) -> set[str]:
    found = set()
    async for item in service.store.follow(after=None, prefix=prefix):
        if not isinstance(item, StoredEvent):
            break
        found.add(item.stream)
    return found
