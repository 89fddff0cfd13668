"""One run of chaos: the load, the faults, the quiet, the judgement."""

import asyncio
import contextlib
import json
import random
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

import sqlalchemy as sa

from cml_contracts.client import WorkerClient
from cml_contracts.envelope import EventEnvelope
from cml_contracts.results import OperationResult
from cml_workers.eventstore.opening import open_event_store
from cml_workers.eventstore.port import EventStore
from cml_workers.readmodels.model import active
from cml_workers.readmodels.workers.tables import OPERATIONS, WORKERS
from cml_workers.sql.database import open_database, transaction
from support.callers import Callers
from support.canaries import CANARY
from support.invariants import violations
from support.load import Load, Manner
from support.malformed import in_words
from support.observed import Observed, observe
from system.chaos.outcome import SUBSCRIBER, Outcome, dead_letters, taken
from system.chaos.parts import System
from system.chaos.schedule import CALLERS, PROCESSES, Broker, Fault, Store, schedule

STARTING = 2
"""Processes that may be on their way up when the next fault comes; with more, a busy machine leaves nothing to hit."""
BREATH = 5.0
"""Seconds at most that the next fault waits for these, and as long again for RabbitMQ."""
WAVE = 100
"""Commands after which callers turn to workers of a new fleet."""
FLEET = 5
"""Commands for each worker."""
PATIENCE = 400.0
"""Seconds in which all must be answered and at rest once the faults are over."""
STILL = 200.0
"""Seconds after which an answer does not come any more where everything else is at rest. RabbitMQ itself holds a message in
a retry queue back for three minutes, if it had no confirm of its own when the broker died or was frozen
(``dead_letter_worker_publisher_confirm_timeout``, https://www.rabbitmq.com/docs/quorum-queues#dead-lettering)."""
LANES = 2


class Chaos:
    """One run: the load, the faults, the quiet, the judgement."""

    def __init__(
        self,
        system: System,
        *,
        seed: int,
        store: Store,
        pace: float,
        wave: int = WAVE,
        must_meet: AbstractSet[str] = frozenset(),
    ) -> None:
        self.system = system
        self.stage = "starting"
        self.launched = self.open = 0
        self._seed = seed
        self._faults = schedule(seed, store)
        self._pace = pace
        self._wave = wave
        self._must_meet = must_meet
        self._loads: list[Load] = []
        self._callers: list[Callers] = []
        self._began = time.monotonic()
        self._end = float("inf")

    @property
    def sent(self) -> int:
        return sum(len(load.sent) for load in self._loads)

    @property
    def answered(self) -> int:
        return sum(load.answered for load in self._loads)

    @property
    def repeated(self) -> int:
        return sum(load.repeated for load in self._loads)

    async def run(self) -> Outcome:
        """Everything; bounded in time."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(beside(self.system.supervise()))
            await stack.enter_async_context(beside(self._look()))
            for lane in range(LANES):
                callers = Callers(self.system.bus(CALLERS), f"chaos.callers.{lane}")
                self._callers.append(await stack.enter_async_context(callers))
            calling = [asyncio.create_task(self._call(lane)) for lane in range(LANES)]
            try:
                await self._until_answered(4)
                self.stage = "faults"
                await self._strike()
                self.stage = "quiet"
                await asyncio.to_thread(self.system.heal)
                self._end = time.monotonic() + PATIENCE
                ended, _ = await asyncio.wait(calling, timeout=PATIENCE)
                outcome = await self._judge()
                outcome.violations += [line for each in ended for line in _ended_early(each)]
                return outcome
            finally:
                for lane_of_calls in calling:
                    lane_of_calls.cancel()
                await asyncio.gather(*calling, return_exceptions=True)

    async def _call(self, lane: int) -> None:
        """Fleet after fleet, until the faults are over."""
        async with WorkerClient(self.system.bus(CALLERS)) as client:
            for wave in count():
                if self.stage == "quiet":
                    return
                load = Load(
                    self._callers[lane],
                    client,
                    total=self._wave,
                    fleet=self._wave // FLEET,
                    seed=(self._seed * LANES + lane) * 10_000 + wave,
                    lanes=12,
                )
                self._loads.append(load)
                await load.run()

    async def _until_answered(self, number: int) -> None:
        async with asyncio.timeout(120):
            while self.answered < number:
                await asyncio.sleep(0.1)

    async def _strike(self) -> None:
        """Deal faults, several at a time, until enough processes were killed and every fault was met that must be;
        fewer while there is no broker.

        What must be met still comes one at a time: traps that pile up while nothing passes would all break the same
        message, more often than its queue delivers it (``DELIVERY_LIMIT``).
        """
        pauses = random.Random(self._seed)
        broker: asyncio.Task[None] | None = None
        async with asyncio.timeout(240 + 40 * self.system.wanted), asyncio.TaskGroup() as striking:
            while (fault := self._next()) is not None:
                task = striking.create_task(self.system.strike(fault))
                if isinstance(fault, Broker):
                    broker = task
                await asyncio.sleep(pauses.uniform(0, 2 * self._pace))
                if self._killed_enough:
                    await asyncio.wait({task})
                if broker is not None:
                    await asyncio.wait({broker}, timeout=BREATH)
                await self._until_most_are_ready()

    @property
    def _killed_enough(self) -> bool:
        return self.system.kills.total() >= self.system.wanted

    def _next(self) -> Fault | None:
        """None: it is enough. Once enough were killed, only what must be met still."""
        missing = self._must_meet - self.system.faults.keys()
        for fault in self._faults:
            if not self._killed_enough or fault.kind in missing:
                return fault
            if not missing:
                return None
        return None

    async def _until_most_are_ready(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BREATH):
                while sum(not self.system.roles.ready(name) for name in PROCESSES) > STARTING:
                    await asyncio.sleep(0.2)

    async def _look(self) -> None:
        """What the read model shows of it now and then, for the display."""
        engine = open_database(self.system.database_url)
        try:
            while True:
                async with transaction(engine) as connection:
                    self.launched = await connection.scalar(_how_many(active(WORKERS), '"instance":{')) or 0
                    self.open = await connection.scalar(_how_many(active(OPERATIONS), '"result":null')) or 0
                await asyncio.sleep(2)
        finally:
            await engine.dispose()

    async def _judge(self) -> Outcome:
        """What is broken still when patience ends, or nothing as soon as nothing is."""
        store = open_event_store(self.system.store_uri)
        published: list[EventEnvelope] = []
        broken, since = [""], time.monotonic()
        while True:
            seen = await self._observe(store, published)
            before, broken = broken, violations(seen) + self._unanswered_client()
            if broken != before:
                since = time.monotonic()
            still = time.monotonic() - since > STILL and all(each.startswith("10:") for each in broken)
            if not broken or still or time.monotonic() > self._end:
                break
            await asyncio.sleep(2)
        await store.close()
        unanswered = sum(each.startswith("10:") for each in broken)
        broken += await dead_letters(self.system.rabbitmq.url)
        broken += in_words(await asyncio.to_thread(self.system.admin.malformed))
        broken += [
            f"8: a secret in {log}"
            for log in self.system.roles.logs.values()
            if log.exists() and CANARY in log.read_text()
        ]
        broken += self.system.roles.tracebacks()
        manners: Counter[Manner] = Counter()
        for load in self._loads:
            manners.update(load.manners)
        return Outcome(
            seed=self._seed,
            kills=self.system.kills,
            faults=self.system.faults,
            gave_up=self.system.gave_up,
            missed=self.system.missed,
            sent=self.sent,
            manners=manners,
            awaited=len(seen.awaited),
            unanswered=unanswered,
            repeated=self.repeated,
            unconfirmed=sum(callers.unconfirmed for callers in self._callers),
            launched=len(seen.instances),
            events=len(seen.events),
            seconds=time.monotonic() - self._began,
            violations=broken,
        )

    def _unanswered_client(self) -> list[str]:
        """Those who repeat by our client must be answered too, though they prove less."""
        return [
            f"10: command {command_id} was not answered to a client that repeats it"
            for load in self._loads
            for command_id, results in load.of_client.items()
            if not results
        ]

    async def _observe(self, store: EventStore, published: list[EventEnvelope]) -> Observed:
        """``published``: what the subscriber got before; what came since is added."""
        published += [
            EventEnvelope.from_cloudevent(json.loads(each.body))
            for each in await taken(self.system.rabbitmq.url, SUBSCRIBER)
        ]
        return await observe(
            store,
            self.system.admin,
            self.system.database_url,
            replies=self._replies(),
            confirmed={
                *(command_id for callers in self._callers for command_id in callers.confirmed),
                *(command_id for load in self._loads for command_id, got in load.of_client.items() if got),
            },
            awaited={address: of for callers in self._callers for address, of in callers.awaited.items()},
            answered={address for callers in self._callers for address in callers.answered},
            published=published,
            status_updates={each for load in self._loads for each in load.status_updates},
        )

    def _replies(self) -> dict[str, list[OperationResult]]:
        replies: dict[str, list[OperationResult]] = {}
        for known in (
            *(callers.replies for callers in self._callers),
            *(load.of_client for load in self._loads),
        ):
            for command_id, results in known.items():
                replies.setdefault(command_id, []).extend(results)
        return replies


def _ended_early(calling: asyncio.Task[None]) -> list[str]:
    """Callers bear every outage; one that does not leaves its commands behind, and the rest unsent."""
    if calling.cancelled():
        return ["callers were cancelled by what they called"]
    error = calling.exception()
    return ["callers ended: " + "".join(traceback.format_exception(error))] if error else []


def _how_many(table: sa.Table, holding: str) -> sa.Select[int]:
    return sa.select(sa.func.count()).select_from(table).where(table.c.view.contains(holding))


@asynccontextmanager
async def beside(work: Any) -> AsyncIterator[None]:
    """The work goes on meanwhile, and is cancelled at the end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
