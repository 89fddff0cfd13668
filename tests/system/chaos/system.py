"""The system that chaos runs on, and what the faults do to it."""

import asyncio
import contextlib
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never
from uuid import UUID

from support.ec2 import SimulatorAdmin
from support.postgresql_pair import PostgreSQLPair
from support.rabbitmq import SpawnedRabbitMQ
from support.roles import Roles
from support.servers import Harm, Server
from support.tcp_proxy import TcpProxy
from system.chaos.messages import Part
from system.chaos.schedule import (
    PROCESSES,
    AtEc2,
    AtMessage,
    Broker,
    Down,
    Fault,
    Freeze,
    Kill,
    Locked,
    Network,
)


@dataclass
class System:
    """Everything that runs, and what the faults do to it."""

    folder: Path
    rabbitmq: SpawnedRabbitMQ
    bus_url: str
    database_url: str
    admin: SimulatorAdmin
    store_uri: str
    networks: Mapping[tuple[str, Part], TcpProxy]
    roles: Roles
    servers: Mapping[Part, Server]
    """Of the parts, but for RabbitMQ."""
    hands: Mapping[Part, ThreadPoolExecutor]
    """One thread for each server: it dies, freezes and comes back in order."""
    others: frozenset[UUID]
    """Workers that were in the store before."""
    pair: PostgreSQLPair | None
    """The database, if it is one of our own."""
    wanted: int
    """Kills; no more are done."""
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Traps whose message did not come."""
    gave_up: Counter[str] = field(default_factory=Counter)
    """Processes that ended by themselves, e.g. as they found no broker when they started."""

    def bus(self, who: str) -> str:
        """RabbitMQ's URL behind the network of ``who``."""
        return self.networks[who, "rabbitmq"].through(self.bus_url)

    async def supervise(self) -> None:
        """Start again whatever has ended."""

        def ended(name: str, code: int) -> None:
            if code != -signal.SIGKILL:
                self.gave_up[name] += 1

        await asyncio.gather(*(self.roles.supervise(name, ended) for name in PROCESSES))

    async def strike(self, fault: Fault) -> None:
        """Let it happen, and return when it is over."""
        match fault:
            case Kill(victims, again):
                self.faults["kill" if len(victims) == 1 else "kill of two at once"] += 1
                for victim in victims:
                    self._kill(victim)
                if again is not None:
                    await self._kill_again(fault, again)
            case Freeze(victim, seconds):
                self.faults[fault.kind] += 1
                await self._freeze(victim, seconds)
            case Broker(crash):
                self.faults[fault.kind] += 1
                await self._by_hand("rabbitmq", lambda: self._restart_broker(crash))
            case Down(part, how, seconds):
                self.faults[fault.kind] += 1
                await self.harm(part, how, seconds)
                if how == "failed over":
                    await self.stand_by(part)
            case Network(who, part, how, seconds):
                self.faults[fault.kind] += 1
                network = self.networks[who, part]
                if how == "cut":
                    await network.outage(seconds)
                elif how == "stalled":
                    await network.stall(seconds)
                else:
                    network.delay = 0.2
                    await asyncio.sleep(seconds)
                    network.delay = 0.0
            case AtMessage():
                await self._trap(fault)
            case Locked(seconds):
                self.faults[fault.kind] += 1
                await asyncio.to_thread(_lock, Path(self.store_uri.removeprefix("sqlite:///")), seconds)
            case AtEc2(how):
                self.faults[fault.kind] += 1
                await asyncio.to_thread(lambda: self.admin.fault(**how))
            case _:
                assert_never(fault)

    async def harm(self, part: Part, how: Harm, seconds: float) -> None:
        """Return when its server is back, or another one has its place."""
        server = self.servers[part]

        def work() -> None:
            if how == "failed over":
                server.fail_over()
                return
            (server.kill if how == "killed" else server.freeze)()
            time.sleep(seconds)
            (server.start if how == "killed" else server.resume)()

        await self._by_hand(part, work)

    async def stand_by(self, part: Part) -> None:
        """Let it be able to fail over again."""
        await self._by_hand(part, self.servers[part].stand_by)

    def heal(self) -> None:
        """Nothing goes wrong from now on."""
        for network in self.networks.values():
            network.heal()
        for process in self.roles.processes.values():
            process.send_signal(signal.SIGCONT)
        self.admin.clear()

    def _kill(self, victim: str) -> None:
        process = self.roles.processes[victim]
        if process.poll() is None and self.kills.total() < self.wanted:
            process.kill()
            self.kills[victim] += 1

    async def _kill_again(self, fault: Kill, seconds: float) -> None:
        victim = fault.victims[0]
        killed = self.roles.processes[victim]
        async with asyncio.timeout(60):
            while self.roles.processes[victim] is killed:
                await asyncio.sleep(0.05)
        await asyncio.sleep(seconds)
        self.faults[fault.kind] += 1
        self._kill(victim)

    async def _freeze(self, victim: str, seconds: float) -> None:
        """A part not while it is down."""
        process = self.roles.processes.get(victim)
        if process is not None:
            process.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                process.send_signal(signal.SIGCONT)
            return
        await self.harm(victim, "frozen", seconds)  # type: ignore[arg-type]  # or it would be a process of ours

    async def _trap(self, fault: AtMessage) -> None:
        """Armed for all who may meet the message, until one has."""
        armed = {
            self.networks[who, fault.part]: self.networks[who, fault.part].arm(fault.trap)
            for who in fault.who
        }
        fired = [asyncio.create_task(each.fired.wait()) for each in armed.values()]
        await asyncio.wait(fired, timeout=fault.seconds, return_when=asyncio.FIRST_COMPLETED)
        for network, each in armed.items():
            network.disarm(each)
        if any(each.fired.is_set() for each in armed.values()):
            self.faults[fault.kind] += 1
        else:
            self.missed += 1
        for waiting in fired:
            waiting.cancel()

    async def _by_hand(self, part: Part, work: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self.hands[part], work)

    def _restart_broker(self, crash: bool) -> None:
        if crash:
            self.rabbitmq.kill()
        else:
            self.rabbitmq.stop()
        self.rabbitmq.start()


def _lock(path: Path, seconds: float) -> None:
    there = f"file:{path}?mode=rw"
    with contextlib.closing(sqlite3.connect(there, uri=True, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
