"""Given these events, and EC2 so: what the EC2 adapter then calls and reports. The voice of its tests.

    await given(CREATED, LAUNCH, RUNNING, STOP).observed(instance()).then_calls("stop", "describe_many")

The store is a real one, EC2 is in memory, and time is paused until a test lets it pass.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from cml_contracts.events import OperationRefused, WorkerEvent
from cml_contracts.instance import Ec2Instance
from cml_workers.bus.port import Message, Outgoing, Verdict
from cml_workers.bus.topology import EC2_TRIGGERS, INTERNAL_EXCHANGE
from cml_workers.domain.messages import REPORTS, AttemptRefused, Reminder, Report
from cml_workers.ec2_adapter.executor import Executor
from cml_workers.ec2_adapter.tenure import FRESH
from cml_workers.eventstore.names import stream_of
from cml_workers.eventstore.port import NO_STREAM, EventStore, NewEvent, StoredEvent
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import append, load, published
from support.buses import Outbox
from support.clock import StillClock
from support.fake_ec2 import FakeEc2
from support.given import NOW, WORKER, recorded

TRIGGERS = {binding.routing_key for binding in EC2_TRIGGERS.bindings}
R = TypeVar("R", bound=Report)
T = TypeVar("T")


class CountedStore(EventStore):
    """A store that counts what is asked of it."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self.busy = 0
        self.reads = 0

    async def append(self, stream: str, events: Sequence[NewEvent], *, expected: int) -> int:
        return await self._counted(self._store.append(stream, events, expected=expected))

    async def read(
        self, stream: str, *, after: int = NO_STREAM, limit: int | None = None
    ) -> list[StoredEvent]:
        self.reads += 1
        return await self._counted(self._store.read(stream, after=after, limit=limit))

    async def last(self, stream: str) -> StoredEvent:
        return await self._counted(self._store.last(stream))

    async def trim(self, stream: str, keep: int) -> None:
        await self._counted(self._store.trim(stream, keep))

    def follow(self, *, after: str | None, prefix: str = "") -> AsyncGenerator[Any, None]:
        return self._store.follow(after=after, prefix=prefix)

    async def end(self) -> str | None:
        return await self._store.end()

    def is_after(self, position: str, other: str) -> bool:
        return self._store.is_after(position, other)

    async def ping(self) -> None:
        await self._store.ping()

    async def close(self) -> None:
        await self._store.close()

    async def _counted(self, call: Awaitable[T]) -> T:
        self.busy += 1
        try:
            return await call
        finally:
            self.busy -= 1


class Adapter:
    """The executor, with the parts it works on."""

    def __init__(self, store: EventStore, events: Sequence[WorkerEvent] = ()) -> None:
        self.store = CountedStore(store)
        self.clock = StillClock(NOW, self.store)
        self.ec2 = FakeEc2()
        self.outbox = Outbox()
        self.takeover = timedelta()
        self._events = events
        self.executor = self._started(FRESH)

    # -- given --------------------------------------------------------------------------------------------

    def observed(self, *instances: Ec2Instance) -> Self:
        """EC2 shows these."""
        for each in instances:
            self.ec2.put(each)
        return self

    def refusing(self, operation: str, error: Exception, **how: Any) -> Self:
        """The next call of the operation ends in this error; see ``FakeEc2.fail``."""
        self.ec2.fail(operation, error, **how)  # type: ignore[arg-type]
        return self

    async def happened(self, *events: WorkerEvent) -> None:
        """These events are recorded, and nobody is triggered."""
        for event in events:
            worker = await load(self.store, WORKER)
            metadata = recorded(worker, event, self.clock.now(), "cause").metadata
            await append(self.store, worker, [(event, metadata)])

    async def restarted(self, *, fresh: timedelta = FRESH) -> None:
        """The process died; another one starts now."""
        await self.executor.close()
        self.executor = self._started(fresh)

    def _started(self, fresh: timedelta) -> Executor:
        return Executor(
            store=self.store,
            ec2=self.ec2,
            publish=self.outbox,
            now=self.clock.now,
            sleep=self.clock.sleep,
            random=lambda: 0.5,
            takeover=self.takeover,
            fresh=fresh,
        )

    # -- when ---------------------------------------------------------------------------------------------

    async def triggered(self, *, revision: int | None = None, **message: Any) -> Verdict:
        """By the newest event that triggers, or by that of the revision; a refusal is recorded, and triggers again."""
        await self._begun()
        verdict = await self.handles(await self.trigger(revision, **message))
        for refused in self.reports(AttemptRefused):
            worker = await load(self.store, WORKER)
            if (
                refused.operation_id in worker.operations
                and not worker.operations[refused.operation_id].refusal
            ):
                await self.happened(
                    OperationRefused(operation_id=refused.operation_id, problem=refused.problem)
                )
                if OperationRefused.TYPE in TRIGGERS:  # as the broker would, and nobody else
                    verdict = await self.triggered(**message)
        return verdict

    async def trigger(self, revision: int | None = None, **message: Any) -> Message:
        """The event as the relay publishes it."""
        stored = await self.store.read(stream_of(WORKER))
        event = (
            [each for each in stored if each.type in TRIGGERS][-1] if revision is None else stored[revision]
        )
        body = json.dumps(published("/test", event).to_cloudevent()).encode()
        return Message(body=body, type=event.type, **message)

    async def reminded(self, **reminder: Any) -> Verdict:
        """By a reminder."""
        await self._begun()
        return await self.handles(a_reminder(**reminder))

    async def handles(self, message: Message) -> Verdict:
        """The message, for as long as it takes."""
        return await self.clock.until_done(self.executor.on_trigger(message))

    async def passes(self, seconds: float = 0) -> None:
        """Time passes."""
        await self.clock.passes(seconds)

    async def _begun(self) -> None:
        events, self._events = self._events, ()
        await self.happened(*events)

    # -- then ---------------------------------------------------------------------------------------------

    async def then_calls(self, *operations: str) -> Self:
        """Triggered, it calls exactly these at EC2."""
        await self.triggered()
        assert self.ec2.calls == list(operations)
        return self

    async def then_reports(self, kind: type[R]) -> R:
        """Triggered, it reports exactly this kind, once."""
        await self.triggered()
        (report,) = self.all_reports
        assert isinstance(report, kind)
        return report

    def reports(self, kind: type[R]) -> list[R]:
        """The reports of this kind so far."""
        return [report for report in self.all_reports if isinstance(report, kind)]

    @property
    def all_reports(self) -> list[Report]:
        return [
            REPORTS[message.type].model_validate_json(message.body)
            for message in self.published
            if message.type in REPORTS
        ]

    def outcomes(self, kind: type[R]) -> list[R]:
        """The reports of this kind, each once: the same one is sent again until the stream shows it."""
        return list({report.model_dump_json(): report for report in self.reports(kind)}.values())

    @property
    def published(self) -> list[Outgoing]:
        """What it published, reminders to itself too."""
        return self.outbox.on(INTERNAL_EXCHANGE.name)

    def called(self, operation: str) -> int:
        """How often it made this call."""
        return self.ec2.calls.count(operation)


def a_reminder(**fields: Any) -> Message:
    """Of the worker."""
    return Message(body=Reminder(worker_id=WORKER, **fields).model_dump_json().encode(), type=Reminder.TYPE)


Given = Callable[..., Adapter]


@pytest.fixture
async def given(tmp_path: Path) -> AsyncGenerator[Given, None]:
    """An adapter of a worker with this history."""
    made: list[tuple[Adapter, SqliteEventStore]] = []

    def given(*events: WorkerEvent) -> Adapter:
        store = SqliteEventStore(tmp_path / f"events-{len(made)}.sqlite3")
        adapter = Adapter(store, events)
        made.append((adapter, store))
        return adapter

    yield given
    for adapter, store in made:
        await adapter.executor.close()
        await store.close()
