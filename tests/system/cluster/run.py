"""One run on a cluster: callers and subscribers, one fault after the other, the judgement."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import aio_pika
from rich.console import Console, Group
from rich.table import Table

from cml_contracts.client import WorkerClient
from cml_contracts.commands import CreateCMLWorker
from cml_workers.bus.rabbit.management import cluster
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.runtime.replicas import described
from support.callers import Callers
from support.load import Load
from support.roles import Roles
from system.chaos.run import beside, ended_early
from system.cluster.callers import ByAioPika, ByClient, Caller, call
from system.cluster.parts import MONITOR, System
from system.cluster.subscribers import Subscriber, subscribers
from system.cluster.waits import Waits
from system.judging import Senders, judged

DOWN = 15.0
"""Seconds that a node stays away."""
FROZEN, SEPARATED = 60.0, 90.0
"""Seconds. The nodes give one up that was silent for 15 to 25, by the ``net_ticktime`` that is shipped."""
LIMIT = 5.0
"""Seconds that a caller may wait when one node is lost."""
STARTING = 180.0
"""Seconds in which all must be up."""
SETTLING = 90.0
"""Seconds in which everybody must be served again when a fault is over."""
PATIENCE = 300.0
"""Seconds in which all must be answered and at rest once the last fault is over."""
STARTED = "projector"
"""The role that is started while a node is down."""
CALLERS, LANES, WAVE, FLEET = 3, 2, 40, 8
"""Of each kind of caller; and the load beside them: commands at once, in all before its callers turn to new workers, and
how many of these they create."""

Fault = Callable[[System], Awaitable[str | None]]
"""What is wrong meanwhile, beside what is seen of those who are served; None if nothing is."""


def killed(*numbers: int) -> Fault:
    async def fault(system: System) -> None:
        await system.cluster.kill(*numbers)
        await asyncio.sleep(DOWN)
        await system.cluster.start(*numbers)

    return fault


async def leader_killed(system: System) -> None:
    await killed(await system.cluster.leader_of(LIFECYCLE_COMMANDS.name))(system)


async def restarted_in_turn(system: System) -> None:
    for number in range(len(system.cluster.nodes)):
        await system.cluster.restart(number)


async def frozen(system: System) -> None:
    node = system.cluster.nodes[await system.cluster.busiest()]
    node.signal(signal.SIGSTOP)
    await asyncio.sleep(FROZEN)
    node.signal(signal.SIGCONT)


async def separated(system: System) -> None:
    await system.cluster.separate(await system.cluster.busiest(), SEPARATED)


async def started_meanwhile(system: System) -> str | None:
    """A role needs no node that is down to start."""
    await system.cluster.kill(2)
    roles, end = system.places.roles, time.monotonic() + STARTING
    roles.kill_and_start(STARTED)
    while not (is_ready := roles.ready(STARTED)) and time.monotonic() < end:
        await asyncio.sleep(0.2)
    await system.cluster.start(2)
    return None if is_ready else f"{STARTED} did not start"


async def replicas_grown(system: System) -> str | None:
    """A queue with one replica is named, and repaired as docs/deployment.md says; leaders are on all nodes, and a node may be stopped."""
    nodes = system.cluster.nodes
    leaders = {queue["leader"] for queue in (await system.cluster.queues()).values()}
    if missing := {node.node for node in nodes} - leaders:
        return f"no queue has its leader on {', '.join(missing)}"
    async with await aio_pika.connect(system.places.bus_url) as connection:
        channel = await connection.channel()
        one: dict[str, Any] = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 1}
        queue = (await channel.declare_queue(f"cml.replies.{uuid4()}", durable=True, arguments=one)).name

        async def said() -> str | None:
            return described(await cluster(system.cluster.management_url(MONITOR), "/"), [queue])

        if not await _until(lambda text: queue in (text or ""), said):
            return f"it was not said that {queue} has too few replicas, but {await said()}"
        for node in nodes:
            await system.cluster.control("rabbitmq-queues", "-q", "grow", node.node, "all")
        if not await _until(lambda text: text is None, said):
            return f"after its replicas were grown it was said: {await said()}"
        await system.cluster.control("rabbitmq-upgrade", "-q", "await_online_quorum_plus_one")
        await channel.queue_delete(queue)
    return None


async def _until(enough: Callable[[str | None], bool], said: Callable[[], Awaitable[str | None]]) -> bool:
    end = time.monotonic() + SETTLING
    while not enough(await said()):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(1)
    return True


async def nothing(_system: System) -> None:
    await asyncio.sleep(DOWN)


ONE_LOST = {
    "node 1 killed": killed(0),
    "node 2 killed": killed(1),
    "node 3 killed": killed(2),
    "leader killed": leader_killed,
    "restarted in turn": restarted_in_turn,
}
"""Nobody waits for longer than ``LIMIT``."""
PHASES: Mapping[str, Fault] = {
    "undisturbed": nothing,
    "replicas grown": replicas_grown,
    **ONE_LOST,
    f"{STARTED} started meanwhile": started_meanwhile,
    "two killed at once": killed(0, 1),
    f"one frozen for {FROZEN:.0f} s": frozen,
    f"one separated for {SEPARATED:.0f} s": separated,
}


@dataclass
class Outcome:
    """The figures, and every promise that was broken."""

    waits: Waits
    of_phase: Mapping[str, float]
    subscribers: Sequence[Subscriber]
    sent: int
    answered: int
    creates: int
    launched: int
    events: int
    gave_up: Counter[str]
    violations: list[str]

    def table(self) -> Group:
        """For people."""
        kinds = sorted({kind for phase in self.waits.longest.values() for kind in phase})
        headings = [kind.replace(", ", "\n") for kind in kinds]
        waits = Table("", "takes", *headings, title="longest wait, in seconds", box=None)
        for phase, seconds in self.of_phase.items():
            longest = self.waits.longest.get(phase, {})
            waits.add_row(
                phase,
                f"{seconds:.0f}",
                *(f"{longest[kind]:.1f}" if kind in longest else "-" for kind in kinds),
            )
        figures = Table(box=None, show_header=False)
        for name, figure in (
            ("commands of the load", f"{self.sent} sent, {self.answered} answered"),
            ("creates", self.creates),
            ("instances launched", self.launched),
            ("events", self.events),
            *((f"subscriber: {each.kind}", each.counts()) for each in self.subscribers),
            ("ended by themselves", ", ".join(f"{name} {n}" for name, n in self.gave_up.items()) or "none"),
            ("violations", len(self.violations)),
        ):
            figures.add_row(name, str(figure))
        return Group(waits, "", figures)


class Run:
    """All that goes on meanwhile, and what comes of it."""

    def __init__(self, system: System, phases: Sequence[str], out: Console) -> None:
        self._system = system
        self._phases = phases
        self._out = out
        self._waits = Waits()
        self._senders = Senders()
        self._subscribers = subscribers(*system.subscribers_urls)
        self._gave_up: Counter[str] = Counter()
        self._quiet = False
        self._broken: list[str] = []

    async def run(self) -> Outcome:
        """Everything; bounded in time."""
        system = self._system
        of_phase: dict[str, float] = {}
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(beside(_supervised(system.places.roles, self._gave_up)))
            for subscriber in self._subscribers:
                await stack.enter_async_context(beside(subscriber.follow(self._waits)))
            async with asyncio.timeout(STARTING):
                await asyncio.gather(*(each.subscribed.wait() for each in self._subscribers))
            self._senders.callers.append(
                await stack.enter_async_context(Callers(system.balanced_url, "cml.replies.cml-client.load"))
            )
            clients = [await stack.enter_async_context(WorkerClient(system.url)) for _ in range(CALLERS)]
            alone = [await stack.enter_async_context(ByAioPika(system.balanced_url)) for _ in range(CALLERS)]
            callers: list[Caller] = [*map(ByClient, clients), *alone]
            loading = asyncio.create_task(self._load())
            calling = [
                asyncio.create_task(call(caller, f"{caller.kind} {number}", self._waits))
                for number, caller in enumerate(callers)
            ]
            try:
                await self._until_served()
                for phase in self._phases:
                    of_phase[phase] = await self._pass(phase)
                self._broken += [line for each in calling if each.done() for line in ended_early(each)]
            finally:
                for each in calling:
                    each.cancel()
                await asyncio.gather(*calling, return_exceptions=True)
            self._quiet = True
            end = time.monotonic() + PATIENCE
            await asyncio.wait([loading], timeout=PATIENCE)
            self._broken += ended_early(loading) if loading.done() else ["10: the load did not end"]
            loading.cancel()
            seen, broken = await judged(self._senders, system.places, end=end)
            stored = {each.event_id: each.recorded_at for each in seen.events}
            await self._until_all_came({*stored})
        creates = len(callers) + sum(
            kind == CreateCMLWorker.TYPE for load in self._senders.loads for kind in load.sent.values()
        )
        if creates != len(seen.instances):
            broken.append(f"1: {creates} creates, {len(seen.instances)} instances")
        broken += [line for each in self._subscribers for line in each.wrong(stored)]
        return Outcome(
            waits=self._waits,
            of_phase=of_phase,
            subscribers=self._subscribers,
            sent=self._senders.sent,
            answered=self._senders.answered,
            creates=creates,
            launched=len(seen.instances),
            events=len(seen.events),
            gave_up=self._gave_up,
            violations=self._broken + broken,
        )

    async def _until_served(self) -> None:
        """Every caller has had an answer to a command and to a query, and every subscriber an event."""
        everybody = 2 * 2 * CALLERS + len(self._subscribers)
        async with asyncio.timeout(STARTING):
            while self._waits.served < everybody:
                await asyncio.sleep(0.2)
            await self._waits.all_since(time.monotonic(), STARTING)

    async def _pass(self, phase: str) -> float:
        """One fault, until it is over and everybody is served again; the seconds that it took."""
        self._waits.phase = phase
        began = time.monotonic()
        if wrong := await PHASES[phase](self._system):
            self._broken.append(f"{phase}, and {wrong}")
        self._broken += [
            f"{phase}, and {queue} has no leader, or not a member on each node"
            for queue in await self._system.cluster.until_complete(SETTLING)
        ]
        late = await self._waits.all_since(time.monotonic(), SETTLING)
        self._broken += [f"10: {phase}, and {each} were served no more" for each in late]
        longest = self._waits.longest.get(phase, {})
        if phase in ONE_LOST:
            self._broken += [
                f"10: {phase}, and {kind} waited for {seconds:.1f} s"
                for kind, seconds in longest.items()
                if kind.startswith(("commands", "queries")) and seconds > LIMIT
            ]
        self._out.print(f"{phase}: {', '.join(f'{kind} {longest[kind]:.1f} s' for kind in sorted(longest))}")
        return time.monotonic() - began

    async def _load(self) -> None:
        """Fleet after fleet, until the faults are over."""
        async with WorkerClient(self._system.url) as client:
            for wave in count():
                if self._quiet:
                    return
                load = Load(self._senders.callers[0], client, total=WAVE, fleet=FLEET, seed=wave, lanes=LANES)
                self._senders.loads.append(load)
                await load.run()

    async def _until_all_came(self, stored: set[UUID]) -> None:
        end = time.monotonic() + SETTLING
        while time.monotonic() < end and any(
            each.keeps and not stored <= each.came.keys() for each in self._subscribers
        ):
            await asyncio.sleep(0.5)


async def _supervised(roles: Roles, gave_up: Counter[str]) -> None:
    def ended(name: str, _code: int) -> None:
        gave_up[name] += 1

    await asyncio.gather(*(roles.supervise(name, ended) for name in roles.processes))
