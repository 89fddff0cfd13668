"""The roles as processes, their callers, and a stranger whose messages are all accounted for at the end."""

import asyncio
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self
from uuid import UUID

import aiormq
from aiormq.abc import AbstractChannel, DeliveredMessage

from cml_contracts.client import WorkerClient
from cml_contracts.commands import CreateCMLWorker, UpdateCMLWorkerTags
from cml_contracts.queries import GetCMLWorker
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from cml_workers.bus.rabbit import declare_topology
from cml_workers.bus.rabbit.properties import read_tolerantly
from cml_workers.bus.topology import DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, HANDLED, RETRY_DELAYS
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import decode
from fuzz.books import Books, Outcome, command_of, is_of_no_effect
from fuzz.checks import QUIET, behind, ended, grown
from fuzz.hostile import REGION, USER, Hostile, Stranger
from support.ec2 import SimulatorAdmin
from support.invariants import violations
from support.malformed import in_words
from support.observed import Observed, simulated_instances, stored_events
from support.raw_amqp import RawAmqp
from support.roles import Roles

IN_FLIGHT = 64
"""Publishes that wait for their confirm."""
WAITING = 400
"""Messages in the queues above which the stranger pauses, so that a queue's length does not hide a slow service."""
PROMPT, PATIENCE = 5.0, 30.0
"""Seconds that half of the valid commands among the hostile ones, and each of them, may take on a busy machine."""
ENOUGH_FOR_MEMORY = 20_000
"""Messages below which a process has hardly reached its size."""
INBOUND = [queue for queue in HANDLED if queue is not DEAD_LETTER_QUEUE]


class Attack:
    """The roles, their callers and the stranger."""

    def __init__(self, amqp_url: str, database_url: str, folder: Path) -> None:
        self._url = amqp_url
        self._database_url = database_url
        self._folder = folder
        self.books = Books()
        self.memory: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self.waits: list[float] = []
        self._enough = asyncio.Event()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            read_tolerantly()
            await declare_topology(self._url)
            self._simulator = stack.enter_context(Ec2Simulator(transition_seconds=0.5))
            connection = await aiormq.connect(self._url)
            stack.push_async_callback(connection.close)
            self._watching = await connection.channel()
            for queue in HANDLED:
                for name in (
                    queue.name,
                    *(queue.retry_queue(delay) for delay in RETRY_DELAYS if queue.retries),
                ):
                    await self._watching.queue_purge(name)
            self._reply_to = await self._listening(await connection.channel(), "", self.books.reply)
            await self._listening(
                await connection.channel(), DEAD_LETTER_EXCHANGE.name, self.books.dead_letter
            )
            self._full = str(
                (
                    await self._watching.queue_declare(
                        "", exclusive=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"}
                    )
                ).queue
            )
            self.roles = Roles(
                self._folder,
                RABBITMQ_URL=self._url,
                DATABASE_URL=self._database_url,
                AWS_ENDPOINT_URL=self._simulator.url,
                CML_VISIBILITY_GRACE_SECONDS="3",
                CML_COMMAND_USERS=json.dumps({USER: ["*"]}),
                CML_ROLE_USERS=json.dumps([USER]),
                CML_LOG_FORMAT="json",
                CML_REMINDER_SECONDS="3600",
            )
            stack.callback(self.roles.kill)
            self._raw = await stack.enter_async_context(RawAmqp(self._url))
            self._client = await stack.enter_async_context(WorkerClient(self._url))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._watching.queue_purge(DEAD_LETTER_QUEUE.name)
        await self._stack.aclose()

    @staticmethod
    async def _listening(
        channel: AbstractChannel, exchange: str, take: Callable[[DeliveredMessage], None]
    ) -> str:
        declared = await channel.queue_declare("", exclusive=True)
        name = str(declared.queue)
        if exchange:
            await channel.queue_bind(name, exchange, "#")

        async def on_message(message: DeliveredMessage) -> None:
            take(message)

        await channel.basic_consume(name, on_message, no_ack=True)
        return name

    async def run(
        self,
        messages: int,
        *,
        seed: int,
        bodies: int,
        patient: bool,
        report: Callable[[str], None],
    ) -> Outcome:
        """Send the messages, wait until all is quiet, and say what became of them."""
        own, *victims = await self._workers(12)
        pids = {name: process.pid for name, process in self.roles.processes.items()}
        stranger = Stranger(
            seed=seed,
            reply_to=self._reply_to,
            full=self._full,
            victims=victims,
            bodies=bodies,
            patient=patient,
        )
        began = time.monotonic()
        valid = asyncio.create_task(self._valid(own))
        watch = asyncio.create_task(self._watch(messages, began, report))
        await self._send(stranger, messages)
        self._enough.set()
        await valid
        left = await self._quiet()
        seconds = time.monotonic() - began
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        return await self._outcome(seconds, pids, left)

    async def _workers(self, count: int) -> list[UUID]:
        """Workers that exist: the first is the valid caller's own, the others are the stranger's to hurt."""

        async def create(number: int) -> UUID:
            command = CreateCMLWorker(
                name=f"lab-{number}", aws_region=REGION, ami_id=DEMO_IMAGES[REGION], created_by=USER
            )
            result = await self._client.send(command, deadline=60)
            assert result.outcome == "succeeded", result
            assert result.worker_id is not None
            return result.worker_id

        return list(await asyncio.gather(*(create(number) for number in range(count))))

    async def _valid(self, worker_id: UUID) -> None:
        """A caller like any other; how long each of its commands takes. It begins none after there was enough."""
        number = 0
        while not self._enough.is_set():
            number += 1
            began = time.monotonic()
            if number % 2:
                command = UpdateCMLWorkerTags(worker_id=worker_id, tags={"turn": str(number)})
                result = await self._client.send(command, deadline=120)
            else:
                result = await self._client.query(GetCMLWorker(worker_id=worker_id), deadline=120)
            assert result.outcome == "succeeded", result
            self.waits.append(time.monotonic() - began)
            await asyncio.sleep(1)

    async def _watch(self, messages: int, began: float, report: Callable[[str], None]) -> None:
        """Measure the memory of each role, and report the progress."""
        while True:
            share = len(self.books.sent) / messages
            sizes = {name: _resident(process.pid) for name, process in self.roles.processes.items()}
            for name, size in sizes.items():
                self.memory[name].append((share, size))
            books, seconds = self.books, time.monotonic() - began
            report(
                f"{seconds:4.0f} s  sent {len(books.sent)}  answered {len(books.answered)}  "
                f"dead {len(books.dead)}  {len(books.sent) / seconds:4.0f}/s  "
                + "  ".join(f"{name} {size >> 20} MiB" for name, size in sizes.items())
            )
            await asyncio.sleep(1)

    async def _send(self, stranger: Stranger, messages: int) -> None:
        room = asyncio.Semaphore(IN_FLIGHT)

        async def publish(message: Hostile) -> None:
            async with room:
                await self._raw.publish(
                    message.target.exchange.name, message.routing_key, message.body, **message.properties
                )

        async with asyncio.TaskGroup() as group:
            for number in range(messages):
                message = stranger.message()
                self.books.send(message)
                async with room:
                    pass  # no more tasks than are under way
                group.create_task(publish(message))
                if number % 200 == 0:
                    while sum((await self._waiting()).values()) > WAITING:
                        await asyncio.sleep(0.1)

    async def _waiting(self, *, aside: bool = False) -> dict[str, int]:
        """Messages in the queues, retry queues included."""
        counts = {}
        for queue in INBOUND:
            names = [queue.retry_queue(delay) for delay in RETRY_DELAYS if queue.retries and aside]
            for name in (queue.name, *names):
                declared = await self._watching.queue_declare(name, passive=True)
                counts[name] = declared.message_count or 0
        return counts

    async def _quiet(self) -> dict[str, int]:
        """Wait until nothing is left to do; what is left all the same."""
        end = time.monotonic() + QUIET
        calm = 0
        while time.monotonic() < end:
            before = (len(self.books.answered), len(self.books.dead))
            await asyncio.sleep(1)
            busy = any((await self._waiting(aside=True)).values())
            moved = before != (len(self.books.answered), len(self.books.dead))
            calm = 0 if busy or moved else calm + 1
            if calm >= 3:
                break
        return {name: count for name, count in (await self._waiting(aside=True)).items() if count}

    # -- what became of it --------------------------------------------------------------------------------

    async def _outcome(self, seconds: float, pids: Mapping[str, int], left: Mapping[str, int]) -> Outcome:
        store = SqliteEventStore(self._folder / "data" / "events.sqlite3")
        events = await stored_events(store)
        decided = set()
        for stored in events:
            recorded = decode(stored)
            decided |= {recorded.metadata.command_id, getattr(recorded.event, "operation_id", None)} - {None}
        lost, in_streams, of_no_effect = [], 0, 0
        for message in self.books.open():
            asked = message.properties["message_id"] if message.target.name == "commands" else None
            if not decided.isdisjoint({asked, command_of(message.body)}):
                in_streams += 1
            elif is_of_no_effect(message):
                of_no_effect += 1
            else:
                lost.append(
                    f"{message.number} {message.target.name} {message.properties} {message.body[:2000]!r}"
                )
        problems = [f"lost: {each}" for each in lost[:20]]
        problems += [f"unanswered: {each}" for each in self.books.unanswered()[:20]]
        problems += [f"not of ours: {each}" for each in self.books.unknown[:20]]
        problems += [f"{name} still has {count} messages" for name, count in left.items()]
        if self.books.without_reason:
            problems.append(f"{self.books.without_reason} dead letters without a reason")
        waits = sorted(self.waits) or [float("inf")]
        if statistics.median(waits) > PROMPT or waits[-1] > PATIENCE:
            problems.append(
                f"valid commands took {statistics.median(waits):.1f} s, at most {waits[-1]:.1f} s"
            )
        problems += ended(self.roles, pids)
        problems += await behind(self._database_url, store, events)
        await store.close()
        if len(self.books.sent) >= ENOUGH_FOR_MEMORY:
            problems += grown(self.memory)
        instances = simulated_instances(SimulatorAdmin(self._simulator.url).instances())
        problems += violations(Observed(events, instances))
        problems += in_words(await asyncio.to_thread(SimulatorAdmin(self._simulator.url).malformed))
        return Outcome(
            self.books, seconds, in_streams, of_no_effect, lost, self.waits, dict(self.memory), problems
        )


def _resident(pid: int) -> int:
    """Bytes in memory (Linux: proc(5))."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0
