"""An event store in memory, as a process sees it over a network."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import timedelta
from uuid import UUID

from cml_contracts.queries import WorkerView
from cml_contracts.results import OperationResult
from cml_workers.domain.ledger import Ledger
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.names import WORKER_STREAMS, worker_of
from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    Checkpoint,
    EventStore,
    NewEvent,
    StoredEvent,
    StoreUnavailableError,
    StreamNotFoundError,
    WrongExpectedVersionError,
    check_append,
)
from cml_workers.eventstore.relay_stream import RELAY_STREAM
from cml_workers.eventstore.worker_streams import decode
from cml_workers.foundation.outages import Dependency, Outages
from cml_workers.readmodels.workers.fold import worker_row
from simulation import nets
from simulation.delivery import took_effect
from simulation.world import Process, World

LONGEST_OUTAGE = 20.0
"""Seconds for which the store answers nobody."""
LONGEST_LAG = 2.0
"""Seconds for which a store that changes its leader may show what was."""


class Log:
    """What is stored. Keeps every worker folded, for those who look on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.events: list[StoredEvent] = []
        self.streams: dict[str, list[StoredEvent]] = {}
        self.ledgers: dict[UUID, Ledger] = {}
        self.rows: dict[UUID, list[WorkerView]] = {}
        """Each worker's row of the read model after each of its events."""
        self.corrected: dict[str, OperationResult] = {}
        """Results that were recorded and have been replaced since, by command id: of what never came to run."""
        self.on_append: Callable[[StoredEvent], None] = lambda _: None
        self._changed: list[asyncio.Future[None]] = []
        self.away_until = 0.0
        """Until when it answers nobody."""

    def append(self, stream: str, events: Sequence[NewEvent], expected: int) -> int:
        there = self.streams.setdefault(stream, [])
        head = len(there) - 1
        repeated = [each.event_id for each in there[expected + 1 : expected + 1 + len(events)]]
        if head != expected:
            if repeated == [each.event_id for each in events]:
                return expected + len(events)
            if not there:
                del self.streams[stream]
            raise WrongExpectedVersionError(f"{stream} is at {head}, expected {expected}")
        for event in events:
            stored = StoredEvent(
                event_id=event.event_id,
                type=event.type,
                data=event.data,
                metadata=event.metadata,
                stream=stream,
                revision=len(there),
                position=str(len(self.events)),
                recorded_at=self.world.now(),
            )
            there.append(stored)
            self.events.append(stored)
            self.world.trace("log", f"{stream}@{stored.revision} {stored.type}")
            if stream.startswith(WORKER_STREAMS):
                worker_id = worker_of(stream)
                ledger = self.ledgers.setdefault(worker_id, Ledger(Worker(worker_id)))
                recorded = decode(stored)
                before = ledger.entries.get(getattr(recorded.event, "operation_id", None) or "")
                ledger.add(recorded)
                if before is not None and before.result is not None:
                    self.corrected[before.command_id] = before.result
                row = worker_row(ledger.worker)
                if row is not None:
                    self.rows.setdefault(worker_id, []).append(row)
            self.on_append(stored)
        for future in self._changed:
            if not future.done():
                future.set_result(None)
        self._changed.clear()
        return len(there) - 1

    @property
    def workers(self) -> dict[UUID, Worker]:
        """As their streams say now."""
        return {worker_id: ledger.worker for worker_id, ledger in self.ledgers.items()}

    async def changed(self) -> None:
        future = self.world.loop.create_future()
        self._changed.append(future)
        await future


class StoreOfProcess(EventStore):
    """The port, with everything that a network and a cluster do to it."""

    def __init__(self, process: Process, log: Log) -> None:
        self._process = process
        self._world = process.world
        self._log = log
        self.dependency = Dependency("event store", self.ping, (StoreUnavailableError,), sleep=process.sleep)
        self.outages = Outages(self.dependency)

    async def append(self, stream: str, events: Sequence[NewEvent], *, expected: int) -> int:
        check_append(stream, events, expected)
        what = "checkpoint" if stream == RELAY_STREAM else "append"
        await self._process.step(f"{what} begins")
        self._reach(what)
        if self._world.happens("late", what):
            self._world.loop.call_later(
                self._world.random.random() * 20, self._append_late, stream, list(events), expected
            )
            raise StoreUnavailableError("no answer in time")
        before = len(self._log.events)
        try:
            last = self._log.append(stream, events, expected)
        except WrongExpectedVersionError:
            self._world.seen["conflict", what] += 1
            of = "worker" if stream.startswith(WORKER_STREAMS) else "command" if what == "append" else "relay"
            if what == "append" or expected != NO_STREAM:  # whoever starts first begins the relay's stream
                self._world.nets[nets.CONFLICT, of] += 1
            raise
        if len(self._log.events) > before:
            took_effect(self._world, f"appended {events[0].type}")
        await self._process.step(f"{what} ends")
        if self._world.happens("lost answer", what):
            raise StoreUnavailableError("the answer was lost")
        return last

    def _append_late(self, stream: str, events: list[NewEvent], expected: int) -> None:
        try:
            self._log.append(stream, events, expected)
        except WrongExpectedVersionError:
            self._world.trace("log", f"late append to {stream} is out of date")

    async def read(
        self, stream: str, *, after: int = NO_STREAM, limit: int | None = None
    ) -> list[StoredEvent]:
        await self._process.step("read")
        self._reach("read")
        there = self._log.streams.get(stream, [])
        if there and self._world.happens("stale", "read"):
            lag = timedelta(seconds=self._world.random.random() * LONGEST_LAG)
            there = [each for each in there if each.recorded_at < self._world.now() - lag]
        if not there:
            raise StreamNotFoundError(stream)
        found = there[after + 1 :]
        return found if limit is None else found[:limit]

    async def last(self, stream: str) -> StoredEvent:
        return (await self.read(stream))[-1]

    async def trim(self, stream: str, keep: int) -> None:
        await self._process.step("trim")  # all is kept, as the store may do

    async def follow(
        self, *, after: str | None, prefix: str = ""
    ) -> AsyncGenerator[StoredEvent | Checkpoint | CaughtUp, None]:
        place = -1 if after is None else int(after)
        await self._process.step("follow")
        while True:
            if place + 1 < len(self._log.events):
                place += 1
                event = self._log.events[place]
                await self._process.step("event followed", latency=0.01)
                if self._away or self._world.happens("disconnect", "follow", 0.3):
                    raise StoreUnavailableError("the subscription broke")
                if event.stream.startswith(prefix):
                    yield event
                elif self._world.random.random() < 0.2:
                    yield Checkpoint(event.position)
            else:
                yield CaughtUp()
                if place + 1 >= len(self._log.events):
                    await self._log.changed()
                await self._process.living()

    async def end(self) -> str | None:
        await self._process.step("read")
        if self._world.happens("unavailable", "read"):
            raise StoreUnavailableError("no connection")
        return self._log.events[-1].position if self._log.events else None

    def is_after(self, position: str, other: str) -> bool:
        return int(position) > int(other)

    async def ping(self) -> None:
        await self._process.sleep(0.01)
        if self._away:
            raise StoreUnavailableError("no connection")

    @property
    def _away(self) -> bool:
        return self._log.away_until > self._world.loop.time()

    def _reach(self, what: str) -> None:
        """Raise StoreUnavailableError: this call does not get through, or none does for a while."""
        if self._away:
            raise StoreUnavailableError("no connection")
        if self._world.happens("unavailable", what):
            if self._world.random.random() < 0.3:
                self._world.seen["outage", "event store"] += 1
                self._log.away_until = self._world.loop.time() + self._world.random.random() * LONGEST_OUTAGE
            raise StoreUnavailableError("no connection")

    async def close(self) -> None:
        await self._process.living()
