"""How many events a second the relay publishes from a backlog, beside a bare publisher of the same messages.

    PYTHONPATH=tests .venv/bin/python -m bench.bench_relay [--events 20000] [--workers 2000] [--kurrentdb] [--projector]

A relay process, a RabbitMQ of its own, and subscribers' quorum queues that take every event and that nobody reads. The reference is
a process that does nothing but publish the same bodies to the same queues with aio-pika, confirmed, with 300 in flight. Each
round measures both, so the ratio is worth more than the figures. Exits with 1 if an event is missing, or a worker's are not in order.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import aio_pika
import uvloop
from aio_pika.abc import AbstractQueue

from bench.bench_rebuild import filled
from bench.medians import say
from cml_contracts.topology import EVENTS_EXCHANGE
from cml_workers.bus.rabbit import declare_topology
from cml_workers.bus.topology import EC2_TRIGGERS, TRIGGERS_EXCHANGE
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import CaughtUp, EventStore, StoredEvent, StoreUnavailableError
from cml_workers.eventstore.relay_stream import append_saved, begin, load_saved
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.relay.relay import event_message
from cml_workers.relay.triggers import TRIGGER_TYPES, trigger_message
from support.children import tied
from support.ports import free_port
from support.queues import QUORUM
from support.rabbitmq import private_rabbitmq
from support.roles import Roles

IN_FLIGHT = 300
"""Messages of the reference that are not confirmed."""
LOOK_EVERY = 0.05
"""Seconds between two looks at the queues."""


async def reference(url: str, file: Path) -> None:
    """Publish the lines of the file, each an exchange, a routing key and a body."""
    room = asyncio.Semaphore(IN_FLIGHT)
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        exchanges = {
            each.name: await channel.get_exchange(each.name, ensure=False)
            for each in (EVENTS_EXCHANGE, TRIGGERS_EXCHANGE)
        }

        async def publish(exchange: str, routing_key: str, body: str) -> None:
            message = aio_pika.Message(body.encode(), delivery_mode=2, type=routing_key)
            await exchanges[exchange].publish(message, routing_key, mandatory=False)
            room.release()

        async with asyncio.TaskGroup() as publishing:
            for line in file.read_text().splitlines():
                await room.acquire()
                publishing.create_task(publish(*json.loads(line)))


async def written(store: EventStore, file: Path) -> int:
    """Everything that the relay will publish, as lines for the reference; how many events."""
    events = 0
    with file.open("w") as lines:
        async for item in store.follow(after=None, prefix="cml_worker-"):
            if isinstance(item, CaughtUp):
                break
            if isinstance(item, StoredEvent):
                events += 1
                message = event_message("/cml-workers/bench", item)
                of_event = [message, *([trigger_message(message)] if item.type in TRIGGER_TYPES else [])]
                for each in of_event:
                    assert each.exchange
                    lines.write(json.dumps([each.exchange.name, each.routing_key, each.body.decode()]) + "\n")
    return events


class Bench:
    """Queues of subscribers, and how fast they fill."""

    def __init__(self, queues: Sequence[AbstractQueue], triggers: AbstractQueue, events: int) -> None:
        self._queues = queues
        self._triggers = triggers
        self._events = events
        self.rates: dict[str, list[float]] = defaultdict(list)

    async def measure(self, kind: str, publisher: AbstractContextManager[object]) -> None:
        """Events a second, from the first one in the queues to the last."""
        with publisher:
            while not (first := await self._least()):
                await asyncio.sleep(LOOK_EVERY)
            began = time.perf_counter()
            while (last := await self._least()) < self._events:
                await asyncio.sleep(LOOK_EVERY)
            took = time.perf_counter() - began
        self.rates[kind].append((last - first) / took)
        say(f"{kind:9} {self.rates[kind][-1]:7.0f} events/s")

    async def _least(self) -> int:
        channel = await self._triggers.channel.get_underlay_channel()
        found = [await channel.queue_declare(each.name, passive=True) for each in self._queues]
        return min(each.message_count or 0 for each in found)

    async def empty(self) -> bool:
        """Empty the queues: whether the first one has each event once, and those of a worker in order."""
        first, *others = self._queues
        revisions: dict[str, list[int]] = defaultdict(list)
        while (message := await first.get(no_ack=True, fail=False)) is not None:
            event = json.loads(message.body)
            revisions[event["subject"]].append(event["streamrevision"])
        for each in (*others, self._triggers):
            await each.purge()
        return sum(map(len, revisions.values())) == self._events and all(
            each == list(range(len(each))) for each in revisions.values()
        )


@contextmanager
def process(*command: str) -> Iterator[None]:
    running = subprocess.Popen(tied(*command))
    try:
        yield
    finally:
        running.kill()
        running.wait()


@contextmanager
def roles(folder: Path, names: Sequence[str], settings: Mapping[str, str]) -> Iterator[None]:
    running = Roles(
        folder,
        processes=names,
        each=lambda _: dict(settings),
        CML_AUTHORIZE="false",
        CML_DEPLOYMENT="bench",
    )
    try:
        yield
    finally:
        running.kill()


async def run(folder: Path, chosen: argparse.Namespace) -> bool:
    """Whether every event was published, each worker's in order."""
    async with AsyncExitStack() as stack:
        amqp_url = stack.enter_context(private_rabbitmq(folder / "rabbitmq")).url
        settings = {"RABBITMQ_URL": amqp_url}
        store: EventStore = SqliteEventStore(folder / "data" / "events.sqlite3")
        if chosen.kurrentdb:
            port = free_port()
            stack.enter_context(
                process(sys.executable, "-m", "support.kurrentdb_standin", "--port", str(port))
            )
            settings["KURRENTDB_URI"] = f"esdb://127.0.0.1:{port}?tls=false"
            store = KurrentDbEventStore(settings["KURRENTDB_URI"])
            await until_it_answers(store)
        stack.push_async_callback(store.close)
        await begin(store, None, uuid4())
        await filled(store, chosen.events, chosen.workers)
        lines = folder / "messages"
        events = await written(store, lines)
        say(f"{events} events of {chosen.workers} workers, {chosen.subscribers} subscribers")
        await declare_topology(amqp_url)
        connection = await stack.enter_async_context(await aio_pika.connect(amqp_url))
        channel = await connection.channel()
        queues = [
            await channel.declare_queue(f"bench.{number}", durable=True, arguments=QUORUM)
            for number in range(chosen.subscribers)
        ]
        for queue in queues:
            await queue.bind(EVENTS_EXCHANGE.name, "#")
        bench = Bench(queues, await channel.get_queue(EC2_TRIGGERS.name), events)
        names = ["relay", "projector"] if chosen.projector else ["relay"]
        whole = True
        for _ in range(chosen.rounds):
            await bench.measure(
                "reference", process(sys.executable, "-m", "bench.bench_relay", amqp_url, str(lines))
            )
            await bench.empty()
            await bench.measure("relay", roles(folder, names, settings))
            whole &= await bench.empty()
            saved = await load_saved(store)
            assert saved
            await append_saved(store, None, None, uuid4(), expected=saved.revision)
        middle = {kind: statistics.median(rates) for kind, rates in bench.rates.items()}
        say(
            f"medians: relay {middle['relay']:.0f}, reference {middle['reference']:.0f} events/s; "
            f"ratio {middle['relay'] / middle['reference']:.2f}; {'each once, in order' if whole else 'NOT ALL, OR NOT IN ORDER'}"
        )
        return whole


async def until_it_answers(store: EventStore) -> None:
    async with asyncio.timeout(30):
        while True:
            with suppress(StoreUnavailableError):
                await store.ping()
                return
            await asyncio.sleep(0.1)


def main() -> None:
    if len(sys.argv) == 3 and "://" in sys.argv[1]:
        uvloop.run(reference(sys.argv[1], Path(sys.argv[2])))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2_000)
    parser.add_argument("--subscribers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--kurrentdb", action="store_true", help="on the stand-in for KurrentDB; else on SQLite"
    )
    parser.add_argument(
        "--projector", action="store_true", help="a projector follows the same store beside it"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cml-bench-relay-") as folder:
        sys.exit(not asyncio.run(run(Path(folder), chosen)))


if __name__ == "__main__":
    main()
