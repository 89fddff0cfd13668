"""One run: the commands, the interference, the quiet, one status update for each worker, the judgement."""

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cml_contracts.commands import UpdateCMLWorkerStatus
from cml_contracts.instance import DEPLOYMENT_TAG
from cml_workers.eventstore.names import WORKER_STREAMS, worker_of
from cml_workers.eventstore.opening import open_event_store
from support.invariants import violations
from support.malformed import in_words
from support.observed import Observed, observe, stored_events
from system.chaos.run import beside
from system.fleets.commands import Commands
from system.fleets.interference import Interference
from system.fleets.journal import Journal, trespasses
from system.fleets.outcome import Outcome, untruths
from system.fleets.parts import Account, Fleet, account

LANES = 3
"""Callers of each fleet at once."""
PAUSE = 0.5
"""Seconds between two interferences, on average."""
PATIENCE = 120.0
"""Seconds in which all must be answered once nobody interferes any more."""
LAG = 20.0
"""Seconds in which the read model must show what was answered."""
EVERY = 15.0
"""Seconds between two lines of progress."""


class Run:
    """Two fleets, those who command them, and a stranger."""

    def __init__(self, running: Account, *, seconds: float, seed: int, pause: float = PAUSE) -> None:
        self.stage = "starting"
        self._account = running
        self._seconds = seconds
        self._seed = seed
        self._commands = {
            fleet.name: Commands(fleet, running.admin, seed * 10 + number)
            for number, fleet in enumerate(running.fleets)
        }
        self._stranger = Interference(running, seed * 10 + 9, pause)
        self._journal = Journal(running.admin)
        self._began = time.monotonic()

    def summary(self) -> str:
        """How far it is."""
        return f"{time.monotonic() - self._began:.0f} s, {self.stage}: " + ", ".join(
            [
                *(
                    f"{name}: {of.counts.total()} sent, {of.outcomes.total()} answered, {len(of.workers)} workers"
                    for name, of in self._commands.items()
                ),
                f"{self._stranger.counts.total()} interferences",
            ]
        )

    async def run(self) -> Outcome:
        """Everything; bounded in time."""
        async with AsyncExitStack() as stack:
            stack.callback(self._stranger.close)
            await stack.enter_async_context(beside(self._journal.follow()))
            await self._until_ready()
            self.stage = "commands and interference"
            end = time.monotonic() + self._seconds
            async with asyncio.TaskGroup() as group:
                for commands in self._commands.values():
                    group.create_task(commands.run(lambda: time.monotonic() > end, LANES))
                group.create_task(self._stranger.run(lambda: time.monotonic() > end))
            self.stage = "quiet"
            await self._quiet()
            self.stage = "one status update for each worker"
            await asyncio.gather(*(self._ask_all(fleet) for fleet in self._account.fleets))
            self.stage = "judgement"
            return await self._judge()

    async def _until_ready(self) -> None:
        async with asyncio.timeout(PATIENCE):
            for fleet in self._account.fleets:
                while not all(fleet.roles.ready(name) for name in fleet.roles.processes):
                    await asyncio.sleep(0.2)

    async def _quiet(self) -> None:
        """Every command is answered, and no instance is on its way from one state to another."""
        await asyncio.gather(*(fleet.callers.all_answers(PATIENCE) for fleet in self._account.fleets))
        ends = {"running", "stopped", "terminated"}
        async with asyncio.timeout(PATIENCE):
            while {each["state"] for each in await asyncio.to_thread(self._account.admin.instances)} - ends:
                await asyncio.sleep(0.2)

    async def _ask_all(self, fleet: Fleet) -> None:
        """One status update for each worker that there ever was."""
        store = open_event_store(fleet.store_uri)
        workers = {worker_of(each.stream) for each in await stored_events(store, WORKER_STREAMS)}
        await store.close()
        commands = self._commands[fleet.name]
        await asyncio.gather(
            *(commands.send("status", UpdateCMLWorkerStatus(worker_id=each)) for each in sorted(workers))
        )
        await fleet.callers.all_answers(PATIENCE)

    async def _judge(self) -> Outcome:
        """What is not true when the read model has had its time, or nothing as soon as nothing is."""
        end = time.monotonic() + LAG
        while True:
            seen = {fleet.name: await self._observe(fleet) for fleet in self._account.fleets}
            described = await asyncio.to_thread(self._stranger.described)
            broken = [
                line
                for name, of in seen.items()
                for line in (*violations(of), *untruths(name, of.rows or (), described))
            ]
            if not broken or time.monotonic() > end:
                break
            await asyncio.sleep(0.5)
        broken += await self._account_of_all()
        return Outcome(
            seed=self._seed,
            counts={name: of.counts for name, of in self._commands.items()},
            outcomes={name: of.outcomes for name, of in self._commands.items()},
            interference=self._stranger.counts,
            changes=self._journal.changes(),
            workers={name: Counter(row.status for row in of.rows or ()) for name, of in seen.items()},
            unanswered=sum(len(fleet.callers.unanswered) for fleet in self._account.fleets),
            seconds=time.monotonic() - self._began,
            violations=broken,
        )

    async def _account_of_all(self) -> list[str]:
        """What concerns no single row."""
        admin = self._account.admin
        await self._journal.read()
        broken = [line for commands in self._commands.values() for line in commands.wrong]
        broken += trespasses(self._journal.calls, await asyncio.to_thread(admin.instances))
        if self._journal.gaps:
            broken.append(f"{self._journal.gaps} gaps in the journal of calls")
        broken += in_words(await asyncio.to_thread(admin.malformed))
        for fleet in self._account.fleets:
            broken += fleet.roles.tracebacks()
            broken += [
                f"{name} of {fleet.name} has ended"
                for name, process in fleet.roles.processes.items()
                if process.poll() is not None
            ]
        return broken

    async def _observe(self, fleet: Fleet) -> Observed:
        """What concerns this fleet: the instances that bear its tag."""
        store = open_event_store(fleet.store_uri)
        callers = fleet.callers
        seen = await observe(
            store,
            self._account.admin,
            fleet.database_url,
            replies=callers.replies,
            confirmed=callers.confirmed,
            awaited=callers.awaited,
            answered=callers.answered,
            status_updates={
                command_id
                for command_id, command in self._commands[fleet.name].sent.items()
                if isinstance(command, UpdateCMLWorkerStatus)
            },
        )
        await store.close()
        own = [each for each in seen.instances if each.tags.get(DEPLOYMENT_TAG) == fleet.name]
        return replace(seen, instances=own)


async def live_beside_each_other(
    folder: Path, *, seconds: float, seed: int, out: Console, pause: float = PAUSE
) -> Outcome:
    """One run in an account of its own."""
    out.print(f"fleets: {seconds:g} s, seed {seed}; logs and store files are in {folder}", soft_wrap=True)

    async def lines(run: Run) -> None:
        while True:
            await asyncio.sleep(EVERY)
            out.print(run.summary(), soft_wrap=True, highlight=False)

    async with account(folder) as running:
        run = Run(running, seconds=seconds, seed=seed, pause=pause)
        async with beside(lines(run)):
            return await run.run()
