"""One run: the honest sender alone, beside the hostile one, and alone again when all is dealt with."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cml_contracts.envelope import MAX_BODY
from cml_workers.projector.main import TIDY_EVERY
from cml_workers.runtime.settings import Settings
from system.chaos.run import beside
from system.hostile import honest
from system.hostile.honest import Honest
from system.hostile.outcome import ALONE, BESIDE, Outcome
from system.hostile.parts import MIB, Parts, cpu_seconds, memory_limit, running, size
from system.hostile.watch import Watch

READY = 120.0
PATIENCE = 1_800.0
"""Seconds in which what is left of the hostile messages must be dealt with."""
BEYOND = 2_000
"""Messages that a queue takes beyond its limit, as publishers learn of it a moment later: with a limit of 200, 509 were in one on RabbitMQ 3.10, and 906 on 4.3."""
EVERY = 15.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Plan:
    """How long, and how much. ``alone``: seconds of each of the two parts without hostility; ``rate``: honest messages a second.

    ``most``: hostile messages; None: as many as the broker takes in the time. ``room``: messages in each queue that senders can fill; None: as shipped.
    """

    hostile: float
    alone: float
    seed: int
    rate: float = 8.0
    most: int | None = None
    room: int | None = None
    timed: bool = True


class Run:
    """The parts, and both senders."""

    def __init__(self, parts: Parts, plan: Plan, sender: Honest) -> None:
        self.stage = "starting"
        self._parts = parts
        self._plan = plan
        self._honest = sender
        self._watch = Watch(parts)
        self._began = time.monotonic()

    def summary(self) -> str:
        """How far it is."""
        answered = sum(len(each) for kinds in self._honest.took.values() for each in kinds.values())
        waiting = ", ".join(f"{name} {count}" for name, count in self._watch.lengths.items() if count)
        peaks = ", ".join(f"{name} {peak // MIB} MiB" for name, peak in self._watch.peaks().items())
        return (
            f"{time.monotonic() - self._began:.0f} s, {self.stage}: {answered} honest answers; "
            f"waiting: {waiting or 'nothing'}; memory: {peaks}"
        )

    async def run(self) -> Outcome:
        """Everything."""
        async with beside(self._watch.run()):
            await self._honest.settle()
            self.stage = "alone"
            await self._honest.send(ALONE, self._plan.alone)
            await self._honest.answered()
            before = self._watch.events(), size(self._parts.store.parent)
            self.stage = "beside the hostile sender"
            async with self._hostility() as hostility:
                await self._honest.send(BESIDE, self._plan.hostile)
            queues = await asyncio.to_thread(self._watch.queues)
            self.stage = "recovery"
            recovery = await self._recovery()
            await self._honest.answered()
            self.stage = "alone again"
            await self._honest.send(ALONE, self._plan.alone)
            await self._honest.answered()
            if self._plan.timed:
                await asyncio.sleep(max(0.0, TIDY_EVERY + 5 - self._plan.alone))
        events, stored = self._watch.events() - before[0], size(self._parts.store.parent) - before[1]
        archive = self._watch.archive()
        return Outcome(
            seed=self._plan.seed,
            took=self._honest.took,
            answers=self._honest.outcomes,
            not_sent=self._honest.not_sent,
            asked_again=self._honest.asked_again,
            unanswered=self._honest.unanswered,
            sent=hostility["sender"],
            seconds=hostility["seconds"],
            recovery=recovery,
            cpu=hostility["cpu"],
            figures=[*self._memory(), *self._archived(archive), *self._queued(queues)],
            also={
                "archive": f"{archive['rows']} rows, {archive['bytes'] / MIB:.0f} MiB of bodies",
                "event store and read model": f"{events} events and {stored / MIB:.0f} MiB more",
                "broker": f"{self._watch.broker_memory // MIB} MiB of memory",
                "longest queues": ", ".join(
                    f"{name} {count}" for name, count in self._watch.longest.items() if count > 100
                ),
            },
            longest=max(self._watch.longest.values()),
            timed=self._plan.timed,
        )

    @asynccontextmanager
    async def _hostility(self) -> AsyncIterator[dict[str, Any]]:
        """While the context lasts; what came of it is there at its end."""
        found: dict[str, Any] = {}
        sender = self._parts.hostile(self._plan.seed, self._plan.most)
        assert sender.stdout is not None
        await asyncio.to_thread(sender.stdout.readline)
        made = cpu_seconds(sender.pid)
        began, used = time.monotonic(), self._watch.cpu()
        try:
            yield found
            seconds = time.monotonic() - began
            now = {**self._watch.cpu(), "the hostile sender": cpu_seconds(sender.pid) - made}
            found |= {
                "seconds": seconds,
                "cpu": {name: (cpu - used.get(name, 0.0)) / seconds for name, cpu in now.items()},
            }
            said, _ = await asyncio.to_thread(sender.communicate, "")
            found["sender"] = json.loads(said)
        finally:
            sender.kill()
            sender.wait()

    async def _recovery(self) -> float:
        """Seconds until all queues are empty, twice in a row."""
        began, calm = time.monotonic(), 0
        async with asyncio.timeout(PATIENCE):
            while calm < 3:
                await asyncio.sleep(1.5)
                calm = 0 if self._watch.waits() else calm + 1
        return time.monotonic() - began

    def _memory(self) -> Iterator[tuple[str, str, float, float]]:
        for name, peak in self._watch.peaks().items():
            yield f"memory of {name}", "MiB", peak / MIB, memory_limit(name.partition(".")[0]) / MIB

    def _archived(self, archive: Mapping[str, int]) -> Iterator[tuple[str, str, float, float]]:
        given = {
            name.removeprefix("CML_").lower(): int(value)
            for name, value in self._parts.settings.items()
            if name.startswith("CML_DEAD_LETTERS")
        }
        limits = Settings(**given)  # type: ignore[arg-type]
        yield "longest body in the archive", "bytes", archive["longest"], MAX_BODY
        if self._plan.timed:  # it is tidied once a minute
            yield "archive, waiting", "messages", archive["waiting"], limits.dead_letters_waiting
            most = limits.dead_letters_waiting + limits.dead_letters_dealt_with
            yield "archive, all", "rows", archive["rows"], most

    def _queued(self, queues: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, str, float, float]]:
        """Against the limits that the definitions set; ``queues``: as they were at the end of hostility."""
        disk = 0.0
        for name, (messages, content) in queues.items():
            limits = self._limits(name)
            longest = max(messages, self._watch.longest.get(name, 0))
            if limits and longest:
                yield f"queue {name}", "messages", longest, limits["max-length"] + BEYOND
                yield f"queue {name}", "MiB", content / MIB, limits["max-length-bytes"] / MIB
                disk += limits["max-length-bytes"]
        # What is written ahead comes on top, and a file of messages goes when the last one of it has gone.
        yield "broker's data on disk", "MiB", self._watch.disk / MIB, 2 * disk / MIB + 256

    def _limits(self, queue: str) -> Mapping[str, int]:
        for policy in self._parts.definitions["policies"]:
            if re.search(policy["pattern"], queue):
                limits: Mapping[str, int] = policy["definition"]
                return limits
        return {}


async def attack(folder: Path, plan: Plan, out: Console, **settings: str) -> Outcome:
    """One run on parts of its own. ``settings``: of the roles."""
    out.print(f"hostile: {plan}; logs and data are in {folder}", soft_wrap=True)

    async def lines(run: Run) -> None:
        while True:
            await asyncio.sleep(EVERY)
            out.print(run.summary(), soft_wrap=True, highlight=False)

    async with running(folder, plan.room, **settings) as parts:
        async with asyncio.timeout(READY):
            while not all(parts.roles.ready(name) for name in parts.roles.processes):
                assert not any(each.poll() for each in parts.roles.processes.values()), parts.roles.log()
                await asyncio.sleep(0.2)
        async with Honest(parts.url(honest.USER), seed=plan.seed, rate=plan.rate) as sender:
            run = Run(parts, plan, sender)
            async with beside(lines(run)):
                return await run.run()
