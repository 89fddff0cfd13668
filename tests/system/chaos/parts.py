"""Everything that runs in chaos, and what the faults do to it."""

import asyncio
import contextlib
import os
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
from urllib.parse import urlsplit
from uuid import UUID

from cml_workers.bus.rabbit import declare_topology
from cml_workers.eventstore.opening import open_event_store
from support.children import module
from support.ec2 import SimulatorAdmin
from support.kurrentdb import GIVEN as GIVEN_STORE
from support.observed import stored_workers
from support.postgresql import GIVEN as GIVEN_DATABASE
from support.postgresql import database_of_its_own, make_schema, private_postgresql
from support.rabbitmq import SpawnedRabbitMQ, private_rabbitmq
from support.roles import Roles
from support.servers import GivenServer, OwnServer, Server, own_kurrentdb, own_postgresql
from support.tcp_proxy import TcpProxy
from system.chaos.messages import Part
from system.chaos.outcome import subscribe
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
    Setup,
    Store,
    links,
)

HEARTBEAT = 2
"""Seconds, of every connection to RabbitMQ, which gives up a silent one after two to three of them."""
GRACE = 20.0
"""Seconds that EC2 may hide an instance. No fault holds back what is on its way to EC2 for as long: the promise that
nothing is launched behind a recorded failure rests on that (in production they are 300)."""

_SETTINGS: Mapping[Part, str] = {
    "rabbitmq": "RABBITMQ_URL",
    "postgresql": "DATABASE_URL",
    "ec2": "AWS_ENDPOINT_URL",
    "kurrentdb": "KURRENTDB_URI",
}
_NAMES: Mapping[Part, str] = {"postgresql": "DATABASE", "kurrentdb": "KURRENTDB"}
"""What the variables of a given server begin with."""


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
    servers: Mapping[Part, Server]
    """Of the parts, but for RabbitMQ."""
    hands: Mapping[Part, ThreadPoolExecutor]
    """One thread for each server: it dies, freezes and comes back in order."""
    others: frozenset[UUID]
    """Workers that were in the store before."""
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
                await self._by_hand("rabbitmq", lambda: self._restart_broker(crash))
            case Down(part, how, seconds):
                self.faults[fault.kind] += 1
                if how == "killed":
                    await self.outage(part, seconds)
                else:
                    await self._by_hand(part, self.servers[part].fail_over)
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

    async def outage(self, part: Part, seconds: float) -> None:
        """Kill its server, and start it again after a while."""

        def work() -> None:
            self.servers[part].kill()
            time.sleep(seconds)
            self.servers[part].start()

        await self._by_hand(part, work)

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
        server = self.servers[victim]  # type: ignore[index]  # or it would be a process of ours

        def work() -> None:
            server.freeze()
            time.sleep(seconds)
            server.resume()

        await self._by_hand(victim, work)  # type: ignore[arg-type]

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


def setup_of(store: Store) -> Setup:
    """With the servers that were given: the database's, and the store's if it is KurrentDB."""
    given: dict[Part, str] = {"postgresql": GIVEN_DATABASE}
    if store == "kurrentdb":
        given["kurrentdb"] = GIVEN_STORE
    return Setup(
        store,
        {part: GivenServer(_NAMES[part]).harms for part, address in given.items() if os.environ.get(address)},
    )


@asynccontextmanager
async def system(folder: Path, setup: Setup, kills: int, plant: str | None = None) -> AsyncIterator[System]:
    """All of it, running; none of it is left at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        rabbitmq = stack.enter_context(private_rabbitmq(folder / "rabbitmq"))
        ec2 = stack.enter_context(module("cml_embedded.ec2_simulator", "--data-dir", str(folder / "ec2")))
        assert ec2.stdout is not None
        ec2_url = ec2.stdout.readline().strip()
        urls: dict[Part, str] = {"rabbitmq": _bus(rabbitmq.port), "ec2": ec2_url}
        servers: dict[Part, Server] = {
            "rabbitmq": OwnServer(rabbitmq.signal),
            "ec2": OwnServer(ec2.send_signal),
        }
        if "postgresql" in setup.given:
            urls["postgresql"] = await stack.enter_async_context(
                database_of_its_own(os.environ[GIVEN_DATABASE])
            )
            servers["postgresql"] = GivenServer(_NAMES["postgresql"])
        else:
            postgresql = stack.enter_context(private_postgresql())
            urls["postgresql"] = postgresql.url
            servers["postgresql"] = own_postgresql(postgresql)
        store_uri = f"sqlite:///{folder}/data/events.sqlite3"
        if "kurrentdb" in setup.given:
            store_uri = urls["kurrentdb"] = os.environ[GIVEN_STORE]
            servers["kurrentdb"] = GivenServer(_NAMES["kurrentdb"])
        elif setup.store == "kurrentdb":
            store_uri, servers["kurrentdb"] = stack.enter_context(own_kurrentdb(folder / "store"))
            urls["kurrentdb"] = store_uri
        networks = {
            (who, part): await stack.enter_async_context(TcpProxy(_port(urls[part])))
            for who, part in links(setup)
        }
        others: frozenset[UUID] = frozenset()
        if "kurrentdb" in setup.given:
            store = open_event_store(store_uri)
            others = await stored_workers(store)
            await store.close()
        hands = {part: stack.enter_context(ThreadPoolExecutor(1)) for part in servers}

        def each(name: str) -> dict[str, str]:
            return {
                _SETTINGS[part]: _through(urls[part], network.port)
                for (who, part), network in networks.items()
                if who == name
            }

        await declare_topology(rabbitmq.url)
        await subscribe(rabbitmq.url)
        await make_schema(urls["postgresql"])
        roles = Roles(
            folder,
            processes=PROCESSES,
            each=each,
            plant=plant,
            **{_SETTINGS[part]: urls[part] for part in setup.given},
            CML_VISIBILITY_GRACE_SECONDS=str(GRACE),
            CML_AUTHORIZE="false",
        )
        stack.callback(roles.kill)
        yield System(
            folder,
            rabbitmq,
            urls["postgresql"],
            SimulatorAdmin(ec2_url),
            store_uri,
            networks,
            roles,
            servers,
            hands,
            others,
            wanted=kills,
        )


def _bus(port: int) -> str:
    return f"amqp://guest:guest@127.0.0.1:{port}/?heartbeat={HEARTBEAT}"


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def _through(url: str, port: int) -> str:
    """The address by way of a network of ours."""
    return url.replace(f":{_port(url)}", f":{port}", 1)


def _lock(path: Path, seconds: float) -> None:
    there = f"file:{path}?mode=rw"
    with contextlib.closing(sqlite3.connect(there, uri=True, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
