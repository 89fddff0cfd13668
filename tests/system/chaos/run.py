"""One run of chaos: the load, the faults, the quiet, the judgement."""

import asyncio
import contextlib
import random
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

import sqlalchemy as sa

from cml_contracts.client import WorkerClient
from cml_contracts.queries import ListCMLWorkers
from cml_workers.readmodels.model import active
from cml_workers.readmodels.workers.tables import OPERATIONS, WORKERS
from cml_workers.sql.database import open_database, transaction
from cml_workers.sql.errors import DatabaseUnavailableError
from support.callers import Callers
from support.load import Load
from support.servers import Harm
from system.chaos.messages import Part
from system.chaos.outcome import Outcome
from system.chaos.schedule import CALLERS, PROCESSES, Broker, Fault, Setup, schedule
from system.chaos.system import System
from system.judging import Places, Senders, judged

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
LANES = 2
STORED: tuple[Part, ...] = ("kurrentdb", "postgresql")
HARMS: tuple[Harm, ...] = ("killed", "frozen", "failed over")
OUTAGE, SETTLED = 5.0, 60.0
"""Seconds of the outages at the end, and at most before each until all is well."""


class Chaos:
    """One run: the load, the faults, the quiet, the judgement."""

    def __init__(
        self,
        system: System,
        *,
        seed: int,
        setup: Setup,
        pace: float,
        wave: int = WAVE,
        must_meet: AbstractSet[str] = frozenset(),
        measured: Sequence[Harm] = HARMS,
    ) -> None:
        self.system = system
        self.stage = "starting"
        self.launched = self.open = 0
        self._seed = seed
        self._setup = setup
        self._faults = schedule(seed, setup)
        self._pace = pace
        self._wave = wave
        self._must_meet = must_meet
        self._measured = measured
        self._senders = Senders()
        self._returns: dict[str, float] = {}
        self._began = time.monotonic()
        self._end = float("inf")

    @property
    def sent(self) -> int:
        return self._senders.sent

    @property
    def answered(self) -> int:
        return self._senders.answered

    @property
    def repeated(self) -> int:
        return self._senders.repeated

    async def run(self) -> Outcome:
        """Everything; bounded in time."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(beside(self.system.supervise()))
            await stack.enter_async_context(beside(self._look()))
            for lane in range(LANES):
                callers = Callers(self.system.bus(CALLERS), f"cml.replies.chaos.{lane}")
                self._senders.callers.append(await stack.enter_async_context(callers))
            calling = [asyncio.create_task(self._call(lane)) for lane in range(LANES)]
            try:
                await self._until_answered(4)
                self.stage = "faults"
                await self._strike()
                await asyncio.to_thread(self.system.heal)
                self.stage = "returns"
                await self._measure_returns()
                self.stage = "quiet"
                self._end = time.monotonic() + PATIENCE
                ended, _ = await asyncio.wait(calling, timeout=PATIENCE)
                outcome = await self._judge()
                outcome.violations += [line for each in ended for line in ended_early(each)]
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
                    self._senders.callers[lane],
                    client,
                    total=self._wave,
                    fleet=self._wave // FLEET,
                    seed=(self._seed * LANES + lane) * 10_000 + wave,
                    lanes=12,
                )
                self._senders.loads.append(load)
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

    async def _measure_returns(self) -> None:
        """With nothing else wrong: how long after the store or the database is back what waited for it is answered."""
        for how in self._measured:
            for part in self._setup.suffers(how):
                if part in STORED:
                    await self._until_settled()
                    self._returns[f"{part} {how}"] = await self._measure_return(part, how)
                    await self.system.stand_by(part)

    async def _measure_return(self, part: Part, how: Harm) -> float:
        """Commands go on and wait for the store; queries are asked all the time."""
        async with WorkerClient(self.system.bus(CALLERS)) as client:
            back = asyncio.create_task(self.system.harm(part, how, OUTAGE))
            queries = []
            while not back.done():
                queries.append(asyncio.create_task(client.query(ListCMLWorkers(), deadline=PATIENCE)))
                await asyncio.wait({back}, timeout=0.5)
            await back
            began = time.monotonic()
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*queries)
                if part == "kurrentdb":
                    await self._until_who_waits_is_answered()
            return time.monotonic() - began

    async def _until_settled(self) -> None:
        """All are ready, and answered is what waited for something else, e.g. in a retry queue."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLED):
                while not all(self.system.roles.ready(name) for name in PROCESSES):
                    await asyncio.sleep(0.2)
                await self._until_who_waits_is_answered()

    async def _until_who_waits_is_answered(self) -> None:
        waiting = [(callers, set(callers.unanswered)) for callers in self._senders.callers]
        while any(addresses & callers.unanswered for callers, addresses in waiting):
            await asyncio.sleep(0.05)

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
                with contextlib.suppress(DatabaseUnavailableError):  # it is among what is stopped
                    async with transaction(engine) as connection:
                        self.launched = (
                            await connection.scalar(_how_many(active(WORKERS), '"instance":{')) or 0
                        )
                        self.open = (
                            await connection.scalar(_how_many(active(OPERATIONS), '"result":null')) or 0
                        )
                await asyncio.sleep(2)
        finally:
            await engine.dispose()

    async def _judge(self) -> Outcome:
        places = Places(
            self.system.rabbitmq.url,
            self.system.store_uri,
            self.system.database_url,
            self.system.admin,
            self.system.roles,
            self.system.others,
        )
        seen, broken = await judged(self._senders, places, end=self._end)
        return Outcome(
            seed=self._seed,
            kills=self.system.kills,
            faults=self.system.faults,
            gave_up=self.system.gave_up,
            missed=self.system.missed,
            sent=self.sent,
            manners=self._senders.manners,
            awaited=len(seen.awaited),
            unanswered=sum(each.startswith("10:") for each in broken),
            repeated=self.repeated,
            unconfirmed=self._senders.unconfirmed,
            launched=len(seen.instances),
            events=len(seen.events),
            returns=self._returns,
            lost_bytes=self.system.pair.lost_bytes if self.system.pair else None,
            seconds=time.monotonic() - self._began,
            violations=broken,
        )


def ended_early(calling: asyncio.Task[Any]) -> list[str]:
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
