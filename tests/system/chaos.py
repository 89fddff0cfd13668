"""Chaos: real processes on a real RabbitMQ, real store files and PostgreSQL, killed and cut off at random under load.

Two lifecycles and two EC2 adapters, relay and projector, each with a network of its own to each part. Faults follow a
seeded schedule and overlap; callers who do not give up keep sending. Then all is quiet, and what must be true is checked.

Run it with ``make chaos KILLS=200``, or in ``tests``: ``python -m system.chaos --kills 200 --seed 1``.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal, assert_never

import aio_pika
import sqlalchemy as sa
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from cml_contracts.client import WorkerClient
from cml_contracts.envelope import EventEnvelope
from cml_contracts.topology import DEAD_LETTERS, EVENTS
from cml_workers.bus.port import REASON_HEADER
from cml_workers.bus.rabbit import declare_topology
from cml_workers.database import migrate, open_database, transaction
from cml_workers.eventstore.opening import open_event_store
from cml_workers.eventstore.port import EventStore
from cml_workers.process import ended_by_signals
from cml_workers.projector.read_model import OPERATIONS, WORKERS
from support.children import module
from support.ec2 import SimulatorAdmin
from support.invariants import Observed, observe, violations
from support.load import Load
from support.postgresql import private_postgresql
from support.rabbitmq import SpawnedRabbitMQ, free_port, private_rabbitmq
from support.roles import Roles
from support.tcp_proxy import TcpProxy

Store = Literal["sqlite", "kurrentdb"]

PROCESSES = ("lifecycle", "lifecycle.2", "relay", "ec2-adapter", "ec2-adapter.2", "projector")
CALLERS = "callers"

HEARTBEAT = 2
"""Seconds, of every connection to RabbitMQ, which gives up a silent one after two to three of them."""
GRACE = 12.0
"""Seconds that EC2 may hide an instance. No fault holds back what is on its way to EC2 for as long: the promise that
nothing is launched behind a recorded failure rests on that (in production they are 300)."""
STARTING = 2
"""Processes that may be on their way up when the next fault comes; with more, a busy machine leaves nothing to hit."""
BREATH = 5.0
"""Seconds at most that the next fault waits for these, and as long again for RabbitMQ."""
WAVE = 100
"""Commands after which callers turn to workers of a new fleet, of which there are an eighth as many."""
PATIENCE = 240.0
"""Seconds in which all must be answered and at rest once the faults are over."""

AT_EC2: tuple[Mapping[str, Any], ...] = (
    {"operation": "RunInstances", "code": "InternalError", "status": 500, "effect": "after", "times": 8},
    {"operation": "RunInstances", "effect": "after", "close_connection": True, "times": 8},
    {"operation": "RunInstances", "code": "InsufficientInstanceCapacity", "status": 500, "times": 8},
    {"operation": "RunInstances", "code": "RequestLimitExceeded", "status": 503, "times": 12},
    {"operation": "RunInstances", "effect": "delay", "hide_seconds": 2.0, "times": 4},
    {"operation": "RunInstances", "effect": "delay", "delay_seconds": 3.0, "times": 2},
    {"operation": "StartInstances", "code": "Unavailable", "status": 503, "effect": "after", "times": 6},
    {"operation": "StopInstances", "code": "InternalError", "status": 500, "effect": "after", "times": 6},
    {"operation": "StopInstances", "code": "RequestLimitExceeded", "status": 503, "times": 12},
    {"operation": "TerminateInstances", "effect": "after", "close_connection": True, "times": 6},
    {"operation": "CreateTags", "code": "InternalError", "status": 500, "effect": "after", "times": 6},
    {"operation": "DescribeInstances", "code": "RequestLimitExceeded", "status": 503, "times": 12},
    {"operation": "DescribeInstances", "effect": "delay", "delay_seconds": 2.0, "times": 2},
)
"""More often than the client repeats a call by itself, but for what only takes its time."""


# -- the schedule -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kill:
    """kill -9; ``again``: once more so many seconds into the victim's new start."""

    victims: tuple[str, ...]
    again: float | None = None


@dataclass(frozen=True, slots=True)
class Freeze:
    """SIGSTOP for longer than the broker waits for a sign of life, then SIGCONT."""

    victim: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Broker:
    """RabbitMQ crashes, or is restarted in good order."""

    crash: bool


@dataclass(frozen=True, slots=True)
class Network:
    """Between ``who`` and ``part``: reset and refused, silent, or slow."""

    who: str
    part: str
    how: Literal["cut", "stalled", "slowed"]
    seconds: float


@dataclass(frozen=True, slots=True)
class Locked:
    """Somebody else holds the store file's only write lock."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AtEc2:
    """An entry of ``AT_EC2``."""

    how: Mapping[str, Any]


Fault = Kill | Freeze | Broker | Network | Locked | AtEc2


def links(store: Store) -> list[tuple[str, str]]:
    """Who reaches which part over a network."""
    found = [(who, "rabbitmq") for who in (*PROCESSES, CALLERS)]
    found += [(who, "postgresql") for who in ("relay", "projector")]
    found += [(who, "ec2") for who in PROCESSES if who.startswith("ec2-adapter")]
    if store == "kurrentdb":
        found += [(who, "kurrentdb") for who in PROCESSES]
    return found


def schedule(seed: int, store: Store) -> Iterator[Fault]:
    """Faults without end, the same for the same seed: a deck that is shuffled and dealt again and again."""
    chance = random.Random(seed)
    adapters = [name for name in PROCESSES if name.startswith("ec2-adapter")]

    def network(how: Literal["cut", "stalled", "slowed"], shortest: float, longest: float) -> Network:
        who, part = chance.choice(links(store))
        return Network(who, part, how, chance.uniform(shortest, longest))

    deck: list[Callable[[], Fault]] = [
        *[lambda: Kill((chance.choice(PROCESSES),))] * 8,
        *[lambda: Kill(tuple(chance.sample(PROCESSES, 2)))] * 2,
        *[lambda: Kill((chance.choice(PROCESSES),), again=chance.uniform(0, 2))] * 3,
        *[lambda: network("cut", 0, 3)] * 3,
        *[lambda: network("stalled", 1, 8)] * 2,
        *[lambda: network("slowed", 2, 6)] * 2,
        *[lambda: AtEc2(chance.choice(AT_EC2))] * 3,
        lambda: Freeze(chance.choice(adapters), chance.uniform(7, 10)),
        lambda: Freeze(chance.choice(PROCESSES), chance.uniform(1, 10)),
        lambda: Broker(crash=chance.random() < 0.5),
        *([lambda: Locked(chance.uniform(1, 7))] if store == "sqlite" else []),
    ]
    while True:
        chance.shuffle(deck)
        for deal in deck:
            yield deal()


# -- the system -------------------------------------------------------------------------------------------


@dataclass
class System:
    """Everything that runs, and what the faults do to it."""

    folder: Path
    rabbitmq: SpawnedRabbitMQ
    database_url: str
    admin: SimulatorAdmin
    store_uri: str
    networks: Mapping[tuple[str, str], TcpProxy]
    roles: Roles
    hands: ThreadPoolExecutor
    """One thread for what blocks: RabbitMQ dies and comes back in order."""
    wanted: int
    """Kills; no more are done."""
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
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
                    await self._kill_again(victims[0], again)
            case Freeze(victim, seconds):
                self.faults["freeze"] += 1
                process = self.roles.processes[victim]
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(seconds)
                process.send_signal(signal.SIGCONT)
            case Broker(crash):
                self.faults["broker killed" if crash else "broker restarted"] += 1
                await asyncio.get_running_loop().run_in_executor(self.hands, self._restart_broker, crash)
            case Network(who, part, how, seconds):
                self.faults[f"network {how}"] += 1
                network = self.networks[who, part]
                if how == "cut":
                    await network.outage(seconds)
                elif how == "stalled":
                    await network.stall(seconds)
                else:
                    network.delay = 0.2
                    await asyncio.sleep(seconds)
                    network.delay = 0.0
            case Locked(seconds):
                self.faults["store file locked"] += 1
                await asyncio.to_thread(_lock, Path(self.store_uri.removeprefix("sqlite:///")), seconds)
            case AtEc2(how):
                self.faults["fault of EC2"] += 1
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

    async def _kill_again(self, victim: str, seconds: float) -> None:
        killed = self.roles.processes[victim]
        async with asyncio.timeout(60):
            while self.roles.processes[victim] is killed:
                await asyncio.sleep(0.05)
        await asyncio.sleep(seconds)
        self.faults["kill while it starts"] += 1
        self._kill(victim)

    def _restart_broker(self, crash: bool) -> None:
        if crash:
            self.rabbitmq.kill()
        else:
            self.rabbitmq.stop()
        self.rabbitmq.start()


@asynccontextmanager
async def system(folder: Path, store: Store, kills: int) -> AsyncIterator[System]:
    """All of it, running; none of it is left at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        rabbitmq = stack.enter_context(private_rabbitmq(folder / "rabbitmq"))
        hands = stack.enter_context(ThreadPoolExecutor(1))
        postgresql = stack.enter_context(private_postgresql())
        ec2 = stack.enter_context(
            module("cml_workers.embedded.ec2_simulator", "--data-dir", str(folder / "ec2"))
        )
        assert ec2.stdout is not None
        ec2_url = ec2.stdout.readline().strip()
        ports = {
            "rabbitmq": rabbitmq.port,
            "postgresql": postgresql.port,
            "ec2": int(ec2_url.rpartition(":")[2]),
        }
        store_uri = f"sqlite:///{folder}/data/events.sqlite3"
        if store == "kurrentdb":
            ports["kurrentdb"] = free_port()
            stack.enter_context(module("support.kurrentdb_standin", "--port", str(ports["kurrentdb"])))
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
        await _subscribe(rabbitmq.url)
        await _make_schema(postgresql.url)
        roles = Roles(
            folder,
            processes=PROCESSES,
            each=each,
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
            hands,
            wanted=kills,
        )


async def _make_schema(url: str) -> None:
    engine = open_database(url)
    await migrate(engine)
    await engine.dispose()


def _bus(port: int) -> str:
    return f"amqp://guest:guest@127.0.0.1:{port}/?heartbeat={HEARTBEAT}"


def _kurrentdb(port: int) -> str:
    return f"esdb://127.0.0.1:{port}?tls=false"


def _lock(path: Path, seconds: float) -> None:
    there = f"file:{path}?mode=rw"
    with contextlib.closing(sqlite3.connect(there, uri=True, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)


# -- what came of it --------------------------------------------------------------------------------------

SUBSCRIBER = "chaos.events"
MOURNER = "chaos.dead-letters"
_QUORUM = {"x-queue-type": "quorum"}


async def _subscribe(url: str) -> None:
    """Keep every event that is published, and every dead letter, until the end."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for name, exchange in ((SUBSCRIBER, EVENTS), (MOURNER, DEAD_LETTERS)):
            queue = await channel.declare_queue(name, durable=True, arguments=dict(_QUORUM))
            await queue.bind(exchange.name, "#")


async def _taken(url: str, name: str) -> list[aio_pika.abc.AbstractIncomingMessage]:
    """Everything that lies in a queue."""
    async with await aio_pika.connect(url) as connection:
        queue = await (await connection.channel()).get_queue(name)
        messages: list[aio_pika.abc.AbstractIncomingMessage] = []
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            messages.append(message)
        return messages


async def _dead_letters(url: str) -> list[str]:
    """Nobody sends anything broken, so there must be none."""
    return [
        f"9: {each.type} {each.message_id} became a dead letter: {each.headers.get(REASON_HEADER)!r}"
        for each in await _taken(url, MOURNER)
    ]


@dataclass
class Outcome:
    """The figures, and every promise that was broken."""

    seed: int
    kills: Counter[str]
    faults: Counter[str]
    gave_up: Counter[str]
    sent: int
    answered: int
    repeated: int
    launched: int
    events: int
    seconds: float
    violations: list[str]

    @property
    def doubled(self) -> int:
        """Instances and decisions that were there twice."""
        return sum(each.startswith("1:") or "twice" in each for each in self.violations)

    def table(self) -> Table:
        """For people."""
        table = Table(box=None, show_header=False)
        for name, figure in (
            ("kills", f"{self.kills.total()}: {_listed(self.kills)}"),
            ("faults", f"{self.faults.total()}: {_listed(self.faults)}"),
            ("ended by themselves", _listed(self.gave_up) or "none"),
            ("commands sent", self.sent),
            ("answered", f"{self.answered}, {self.repeated} of them sent again"),
            ("lost", self.sent - self.answered),
            ("doubled", self.doubled),
            ("instances launched", self.launched),
            ("events", self.events),
            ("violations", len(self.violations)),
            ("seconds", f"{self.seconds:.0f}"),
        ):
            table.add_row(name, str(figure))
        return table


def _listed(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counted.items()))


class Chaos:
    """One run: the load, the faults, the quiet, the judgement."""

    def __init__(self, system: System, *, seed: int, store: Store, pace: float, wave: int = WAVE) -> None:
        self.system = system
        self.stage = "starting"
        self.launched = self.open = 0
        self._seed = seed
        self._faults = schedule(seed, store)
        self._pace = pace
        self._wave = wave
        self._loads: list[Load] = []
        self._began = time.monotonic()

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
        async with _beside(self.system.supervise()), _beside(self._look()):
            callers = [asyncio.create_task(self._call(lane)) for lane in range(2)]
            try:
                await self._until_answered(4)
                self.stage = "faults"
                await self._strike()
                self.stage = "quiet"
                await asyncio.to_thread(self.system.heal)
                await asyncio.wait(callers, timeout=PATIENCE)
                return await self._judge()
            finally:
                for caller in callers:
                    caller.cancel()
                await asyncio.gather(*callers, return_exceptions=True)

    async def _call(self, lane: int) -> None:
        """Fleet after fleet, until the faults are over."""
        async with WorkerClient(self.system.bus(CALLERS)) as client:
            for wave in count():
                if self.stage == "quiet":
                    return
                load = Load(
                    client,
                    total=self._wave,
                    fleet=self._wave // 8,
                    seed=(self._seed * 2 + lane) * 10_000 + wave,
                    callers=12,
                )
                self._loads.append(load)
                await load.run(patience=24 * 3600)

    async def _until_answered(self, number: int) -> None:
        async with asyncio.timeout(120):
            while self.answered < number:
                await asyncio.sleep(0.1)

    async def _strike(self) -> None:
        """Deal faults, several at a time, until enough processes were killed; fewer while there is no broker."""
        pauses = random.Random(self._seed)
        broker: asyncio.Task[None] | None = None
        async with asyncio.timeout(120 + 20 * self.system.wanted), asyncio.TaskGroup() as striking:
            while self.system.kills.total() < self.system.wanted:
                fault = next(self._faults)
                task = striking.create_task(self.system.strike(fault))
                if isinstance(fault, Broker):
                    broker = task
                await asyncio.sleep(pauses.uniform(0, 2 * self._pace))
                if broker is not None:
                    await asyncio.wait({broker}, timeout=BREATH)
                await self._until_most_are_ready()

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
                    self.launched = await connection.scalar(_how_many(WORKERS, '"instance":{')) or 0
                    self.open = await connection.scalar(_how_many(OPERATIONS, '"result":null')) or 0
                await asyncio.sleep(2)
        finally:
            await engine.dispose()

    async def _judge(self) -> Outcome:
        """What is broken still when patience ends, or nothing as soon as nothing is."""
        store = open_event_store(self.system.store_uri)
        published: list[EventEnvelope] = []
        end = time.monotonic() + PATIENCE
        while True:
            seen = await self._observe(store, published)
            broken = violations(seen)
            if not broken or time.monotonic() > end:
                break
            await asyncio.sleep(2)
        await store.close()
        broken += [f"3: command {each} was not answered" for each in seen.confirmed - seen.replies.keys()]
        broken += await _dead_letters(self.system.rabbitmq.url)
        broken += [
            f"a traceback in {log}"
            for log in self.system.roles.logs.values()
            if "Traceback" in log.read_text()
        ]
        return Outcome(
            seed=self._seed,
            kills=self.system.kills,
            faults=self.system.faults,
            gave_up=self.system.gave_up,
            sent=self.sent,
            answered=self.answered,
            repeated=self.repeated,
            launched=len(seen.instances),
            events=len(seen.events),
            seconds=time.monotonic() - self._began,
            violations=broken,
        )

    async def _observe(self, store: EventStore, published: list[EventEnvelope]) -> Observed:
        """``published``: what the subscriber got before; what came since is added."""
        published += [
            EventEnvelope.from_cloudevent(json.loads(each.body))
            for each in await _taken(self.system.rabbitmq.url, SUBSCRIBER)
        ]
        return await observe(
            store,
            self.system.admin,
            self.system.database_url,
            replies={command_id: got for load in self._loads for command_id, got in load.replies.items()},
            confirmed=[command_id for load in self._loads for command_id in load.sent],
            published=published,
        )


def _how_many(table: sa.Table, holding: str) -> sa.Select[int]:
    return sa.select(sa.func.count()).select_from(table).where(table.c.view.contains(holding))


@asynccontextmanager
async def _beside(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# -- the program ------------------------------------------------------------------------------------------


def _told(chaos: Chaos) -> str:
    return (
        f"{chaos.stage}: {chaos.system.kills.total()} of {chaos.system.wanted} kills, "
        f"{chaos.system.faults.total()} faults; commands: {chaos.sent} sent, {chaos.answered} answered, "
        f"{chaos.repeated} repeated; {chaos.launched} instances, {chaos.open} operations open"
    )


def _shown(chaos: Chaos) -> Group:
    bar = ProgressBar(total=chaos.system.wanted, completed=chaos.system.kills.total())
    return Group(_told(chaos), bar)


async def _lines(out: Console, chaos: Chaos) -> None:
    """Where nothing can be drawn over: a line now and then."""
    while True:
        await asyncio.sleep(15)
        out.print(_told(chaos), soft_wrap=True)


async def unleash(
    folder: Path, *, kills: int, seed: int, store: Store, pace: float, wave: int = WAVE, out: Console
) -> Outcome:
    """One run of chaos on a system of its own."""
    out.print(f"chaos: {kills} kills, seed {seed}, on {store}; logs and store files are in {folder}")
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # callers tell of outages by sending again
    async with system(folder, store, kills) as running:
        chaos = Chaos(running, seed=seed, store=store, pace=pace, wave=wave)
        if out.is_terminal:
            with Live(get_renderable=lambda: _shown(chaos), console=out, refresh_per_second=2):
                return await chaos.run()
        async with _beside(_lines(out, chaos)):
            return await chaos.run()


def main() -> None:
    """Exit code 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="processes killed in all (default: 200)")
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(1_000_000),
        help="of all that is chosen at random (default: another each time)",
    )
    parser.add_argument(
        "--store", choices=("sqlite", "kurrentdb"), default="sqlite", help="the event store (default: sqlite)"
    )
    parser.add_argument(
        "--pace", type=float, default=2.0, help="seconds between two faults, on average (default: 2)"
    )
    asked = parser.parse_args()
    out = Console()
    folder = Path(tempfile.mkdtemp(prefix="cml-chaos-"))

    outcomes: list[Outcome] = []

    async def run() -> None:
        with ended_by_signals():
            outcomes.append(
                await unleash(
                    folder, kills=asked.kills, seed=asked.seed, store=asked.store, pace=asked.pace, out=out
                )
            )

    asyncio.run(run())
    if not outcomes:
        out.print(f"interrupted; logs and store files are in {folder}")
        sys.exit(130)
    [outcome] = outcomes
    out.print(outcome.table())
    if outcome.violations:
        for violation in outcome.violations[:50]:
            out.print(violation, style="red", markup=False, highlight=False, soft_wrap=True)
        out.print(f"Logs and store files are kept in {folder}.")
        out.print(f"Again: make chaos KILLS={asked.kills} SEED={asked.seed} STORE={asked.store}")
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
