"""Everything that runs in chaos, and what the faults do to it."""

import asyncio
import contextlib
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from cml_workers.bus.rabbit import declare_topology
from support.children import module
from support.ec2 import SimulatorAdmin
from support.postgresql import make_schema, private_postgresql
from support.rabbitmq import SpawnedRabbitMQ, free_port, private_rabbitmq
from support.roles import Roles
from support.tcp_proxy import TcpProxy
from system.chaos.messages import Part
from system.chaos.outcome import subscribe
from system.chaos.schedule import (
    PROCESSES,
    AtEc2,
    AtMessage,
    Broker,
    Fault,
    Freeze,
    Kill,
    Locked,
    Network,
    Store,
    links,
)

HEARTBEAT = 2
"""Seconds, of every connection to RabbitMQ, which gives up a silent one after two to three of them."""
GRACE = 20.0
"""Seconds that EC2 may hide an instance. No fault holds back what is on its way to EC2 for as long: the promise that
nothing is launched behind a recorded failure rests on that (in production they are 300)."""


@dataclass
class System:
    """Everything that runs, and what the faults do to it."""

    folder: Path
    rabbitmq: SpawnedRabbitMQ
    database_url: str
    admin: SimulatorAdmin
    store_uri: str
    networks: Mapping[tuple[str, Part], TcpProxy]
    roles: Roles
    frozen: Mapping[str, Callable[[int], None]]
    """Sends a signal to all processes of a part."""
    hands: ThreadPoolExecutor
    """One thread for what blocks: RabbitMQ dies and comes back in order."""
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
        return _bus(self.networks[who, "rabbitmq"].port)

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
                await self._by_hand(lambda: self._restart_broker(crash))
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
        if victim == "rabbitmq":
            await self._by_hand(lambda: self._freeze_broker(seconds))  # not while it is restarted
            return
        process = self.roles.processes.get(victim)
        send = process.send_signal if process else self.frozen[victim]
        send(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            send(signal.SIGCONT)

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

    def _freeze_broker(self, seconds: float) -> None:
        self.rabbitmq.signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.rabbitmq.signal(signal.SIGCONT)

    async def _by_hand(self, work: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self.hands, work)

    def _restart_broker(self, crash: bool) -> None:
        if crash:
            self.rabbitmq.kill()
        else:
            self.rabbitmq.stop()
        self.rabbitmq.start()


@asynccontextmanager
async def system(folder: Path, store: Store, kills: int, plant: str | None = None) -> AsyncIterator[System]:
    """All of it, running; none of it is left at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        rabbitmq = stack.enter_context(private_rabbitmq(folder / "rabbitmq"))
        hands = stack.enter_context(ThreadPoolExecutor(1))
        postgresql = stack.enter_context(private_postgresql())
        ec2 = stack.enter_context(module("cml_embedded.ec2_simulator", "--data-dir", str(folder / "ec2")))
        assert ec2.stdout is not None
        ec2_url = ec2.stdout.readline().strip()
        ports = {
            "rabbitmq": rabbitmq.port,
            "postgresql": postgresql.port,
            "ec2": int(ec2_url.rpartition(":")[2]),
        }
        frozen: dict[str, Callable[[int], None]] = {"postgresql": postgresql.signal, "ec2": ec2.send_signal}
        store_uri = f"sqlite:///{folder}/data/events.sqlite3"
        if store == "kurrentdb":
            ports["kurrentdb"] = free_port()
            node = stack.enter_context(module("support.kurrentdb_standin", "--port", str(ports["kurrentdb"])))
            frozen["kurrentdb"] = node.send_signal
            store_uri = _kurrentdb(ports["kurrentdb"])
        networks = {
            (who, part): await stack.enter_async_context(TcpProxy(ports[part])) for who, part in links(store)
        }

        def each(name: str) -> dict[str, str]:
            urls: Mapping[str, tuple[str, Callable[[int], str]]] = {
                "rabbitmq": ("RABBITMQ_URL", _bus),
                "postgresql": ("DATABASE_URL", lambda port: f"postgresql://cml@127.0.0.1:{port}/postgres"),
                "ec2": ("AWS_ENDPOINT_URL", lambda port: f"http://127.0.0.1:{port}"),
                "kurrentdb": ("KURRENTDB_URI", _kurrentdb),
            }
            own = [(part, network.port) for (who, part), network in networks.items() if who == name]
            return {urls[part][0]: urls[part][1](port) for part, port in own}

        await declare_topology(rabbitmq.url)
        await subscribe(rabbitmq.url)
        await make_schema(postgresql.url)
        roles = Roles(
            folder,
            processes=PROCESSES,
            each=each,
            plant=plant,
            CML_VISIBILITY_GRACE_SECONDS=str(GRACE),
            CML_AUTHORIZE="false",
        )
        stack.callback(roles.kill)
        yield System(
            folder,
            rabbitmq,
            postgresql.url,
            SimulatorAdmin(ec2_url),
            store_uri,
            networks,
            roles,
            frozen,
            hands,
            wanted=kills,
        )


def _bus(port: int) -> str:
    return f"amqp://guest:guest@127.0.0.1:{port}/?heartbeat={HEARTBEAT}"


def _kurrentdb(port: int) -> str:
    return f"esdb://127.0.0.1:{port}?tls=false"


def _lock(path: Path, seconds: float) -> None:
    there = f"file:{path}?mode=rw"
    with contextlib.closing(sqlite3.connect(there, uri=True, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
