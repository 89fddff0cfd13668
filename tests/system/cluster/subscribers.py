"""Subscribers of all events of workers: with a queue of their connection, and with a durable one, classic and quorum."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from uuid import UUID

import aio_pika
from aio_pika.abc import AbstractConnection

from cml_contracts.client import WorkerClient
from cml_contracts.envelope import EventEnvelope
from cml_contracts.subscription import Subscription
from cml_contracts.topology import EVENTS_EXCHANGE, subscriber_queue
from cml_workers.runtime.role import background
from system.cluster.parts import SUBSCRIBER
from system.cluster.waits import Waits

PATTERN = "#"
CLASSIC = {"x-queue-type": "classic"}
OPENING, LOOKS_EVERY = 10.0, 10.0
"""Seconds that connecting and declaring may take, and between two looks whether a queue is still known."""

Came = AsyncIterator[tuple[EventEnvelope, bool]]
"""Events, and whether the broker had sent each before, to a consumer that was lost and may not have got it."""
Opened = AbstractAsyncContextManager[Came]


@dataclass
class Subscriber:
    """``keeps``: its queue keeps every event, whatever node is lost."""

    kind: str
    open: Callable[[], Opened]
    keeps: bool = False
    came: dict[UUID, EventEnvelope] = field(default_factory=dict)
    """In the order in which they came first."""
    sent_again: set[UUID] = field(default_factory=set)
    """Those that came first when they were sent again: perhaps behind later ones, which a queue has given to the next consumer meanwhile."""
    repeated: int = 0
    subscribed: asyncio.Event = field(default_factory=asyncio.Event)
    """For the first time."""

    async def follow(self, waits: Waits) -> None:
        """Until cancelled: whatever fails, it subscribes again."""
        since = time.monotonic()
        while True:
            try:
                async with self.open() as events:
                    self.subscribed.set()
                    async for event, sent_again in events:
                        waits.over(self.kind, "", since)
                        since = time.monotonic()
                        self.repeated += event.id in self.came
                        if sent_again and event.id not in self.came:
                            self.sent_again.add(event.id)
                        self.came.setdefault(event.id, event)
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) and task.cancelling():
                    raise
            except Exception:  # noqa: BLE001 - the library raises a plain one, among others
                pass
            await asyncio.sleep(0.1)

    def wrong(self, stored: Mapping[UUID, datetime]) -> list[str]:
        """Events that it should have got, and events of a worker that came in another order; ``stored``: when each was recorded."""
        missing = Counter(f"{at:%H:%M:%S}" for event_id, at in stored.items() if event_id not in self.came)
        listed = ", ".join(f"{number} of {second}" for second, number in sorted(missing.items()))
        found = [f"4: {self.kind} did not get these events: {listed}"] if self.keeps and missing else []
        return found + [
            f"4: {self.kind} got event {event.revision} of worker {event.worker_id} too late"
            for event in self._late()
            if event.id not in self.sent_again
        ]

    def counts(self) -> str:
        """For people; also what ``wrong`` does not count, as RabbitMQ had sent it to a consumer that was lost."""
        late = sum(event.id in self.sent_again for event in self._late())
        return (
            f"{len(self.came)} events, {self.repeated} of them again; {len(self.sent_again)} came first as sent again, "
            f"{late} of these behind later ones"
        )

    def _late(self) -> Iterator[EventEnvelope]:
        last: dict[UUID, int] = {}
        for event in self.came.values():
            if event.revision <= last.get(event.worker_id, -1):
                yield event
            elif event.id not in self.sent_again:
                last[event.worker_id] = event.revision


def subscribers(url: str, balanced_url: str) -> list[Subscriber]:
    """One of each kind. ``balanced_url``: for who uses aio-pika alone."""
    return [
        Subscriber("exclusive, WorkerClient", lambda: by_client(url)),
        Subscriber("exclusive, aio-pika", lambda: _by_aio_pika(balanced_url)),
        Subscriber(
            "classic, aio-pika", lambda: _by_aio_pika(balanced_url, subscriber_queue(SUBSCRIBER, "classic"))
        ),
        Subscriber("quorum, WorkerClient", lambda: by_client(url, "quorum"), keeps=True),
    ]


@asynccontextmanager
async def by_client(url: str, queue: str | None = None) -> AsyncIterator[Came]:
    """An event is acknowledged when the next one is taken."""
    async with WorkerClient(url) as client, client.events(PATTERN, queue=queue) as events:
        assert isinstance(events, Subscription)

        async def came() -> Came:
            async for event in events:
                assert events._taken
                yield event, bool(events._taken.redelivered)

        yield came()


@asynccontextmanager
async def _by_aio_pika(url: str, queue: str | None = None) -> AsyncIterator[Came]:
    """Without a name, its queue gets another one each time, as one that is lost with its node stays locked."""
    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.timeout(OPENING):
            connection = await stack.enter_async_context(await aio_pika.connect(url))
            channel = await connection.channel()
            # The broker cancels the consumer of a queue whose node is lost, and the library's iterator goes on waiting.
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(lambda *_: asyncio.ensure_future(connection.close()))
            await channel.set_qos(prefetch_count=100)
            declared = await channel.declare_queue(
                queue, durable=bool(queue), exclusive=not queue, arguments=dict(CLASSIC)
            )
            await declared.bind(EVENTS_EXCHANGE.name, PATTERN)
            messages = await stack.enter_async_context(declared.iterator())
        if not queue:
            await stack.enter_async_context(background(partial(_look, connection, declared.name), "looks"))

        async def decoded() -> Came:
            async for message in messages:
                yield EventEnvelope.from_cloudevent(json.loads(message.body)), bool(message.redelivered)
                await message.ack()

        yield decoded()


async def _look(connection: AbstractConnection, queue: str) -> None:
    """As docs/deployment.md says: the nodes may forget a queue that is consumed."""
    try:
        while True:
            await asyncio.sleep(LOOKS_EVERY)
            async with asyncio.timeout(OPENING), connection.channel() as channel:
                await channel.declare_queue(queue, passive=True)
    finally:
        await connection.close()
