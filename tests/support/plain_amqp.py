"""A client that knows nothing of this project: aio-pika, JSON and the routing keys of the README.

It sends once, and at its end it says what it was sent that it should not have been: see ``wrong``.
"""

import asyncio
import json
from collections import Counter
from itertools import pairwise
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

NOBODY = str(UUID(int=0))
LAST = "the last message of all"


class PlainAmqp:
    """Sends commands and queries, collects replies by correlation id, and events as they come.

    ``disturbed``: a process, a connection or the broker is killed meanwhile, so that what comes at least once may
    come twice. ``inside``: listens to reminders and dead letters, too, which strangers may not. Not ``listens``: its user gets no events.
    """

    def __init__(
        self,
        url: str,
        *,
        direct: bool = False,
        disturbed: bool = False,
        inside: bool = False,
        listens: bool = True,
    ) -> None:
        self.url = url
        self.direct = direct
        self.disturbed = disturbed
        self.inside = inside
        self.listens = listens
        self.events: list[dict[str, Any]] = []
        self.replies: dict[str, list[dict[str, Any]]] = {}
        self.reminded: list[str] = []
        self.dead: list[str] = []
        self.dead_expected = 0
        """How many of the messages sent are to become dead letters."""
        self.arrived = asyncio.Condition()
        self._sent: set[str] = set()
        self._commands: set[str] = set()
        self._awaited: dict[str, int] = {}
        self._ended = 0

    async def __aenter__(self) -> Self:
        self.connection = await aio_pika.connect(self.url)
        self.channel = await self.connection.channel()
        if self.direct:
            replies = await self.channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
        else:
            replies = await self.channel.declare_queue(exclusive=True)
        self.reply_to = replies.name
        await replies.consume(self._on_reply, no_ack=True)
        self._queues = [] if self.direct else [replies.name]
        if self.listens:
            await self._listen("cml.events", "#", self._on_event)
        if self.inside:
            await self._listen("cml.internal", "cml.reminder.v1", self._on_reminder)
            await self._listen("cml.dead-letters", "#", self._on_dead_letter)
        return self

    async def _listen(self, exchange: str, pattern: str, on_message: Any) -> None:
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind(exchange, pattern)
        await queue.consume(on_message, no_ack=True)
        self._queues.append(queue.name)

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None and not self.disturbed:
                await self._all_of_it()
        finally:
            await self.connection.close()
        if error is None and (wrong := self.wrong()):
            raise AssertionError("\n".join(wrong))

    async def _all_of_it(self) -> None:
        """Wait until what must come and what is in our queues now has arrived."""
        async with asyncio.timeout(30), self.arrived:
            await self.arrived.wait_for(lambda: len(self.dead) >= self.dead_expected)
        for name in self._queues:
            await self.channel.default_exchange.publish(aio_pika.Message(b"", message_id=LAST), name)
        async with asyncio.timeout(60), self.arrived:
            await self.arrived.wait_for(lambda: self._ended == len(self._queues))

    def wrong(self) -> list[str]:
        """Replies of others or too many of them, events out of place, reminders and dead letters that need not be."""
        found = [f"a reply to {each}, which nobody sent" for each in self.replies if each not in self._sent]
        if self.disturbed:
            return found
        for correlation_id, count in self._awaited.items():
            replies = self.replies.get(correlation_id, [])
            # Of what the EC2 adapter reports twice, as two messages met one intent, the same reply comes twice.
            reported = correlation_id in self._commands and replies[-1]["outcome"] != "rejected"
            repeated = replies[count:]
            if (
                len(replies) < count
                or (repeated and not reported)
                or repeated != [replies[-1]] * len(repeated)
            ):
                found.append(f"{len(replies)} replies, not {count}: {replies}")
        for event_id, count in Counter(each["id"] for each in self.events).items():
            if count > 1:
                found.append(f"event {event_id} came {count} times")
        for subject in {each["subject"] for each in self.events}:
            seen = [each["streamrevision"] for each in self.events if each["subject"] == subject]
            if any(after != before + 1 for before, after in pairwise(seen)):
                found.append(f"the events of {subject} came as {seen}")
        found += [f"a reminder of {worker_id} was needed" for worker_id in self.reminded]
        if self.inside and len(self.dead) != self.dead_expected:
            found.append(f"{len(self.dead)} dead letters, not {self.dead_expected}: {self.dead}")
        return found

    async def _arrived(self, message: AbstractIncomingMessage, take: Any) -> None:
        async with self.arrived:
            if message.message_id == LAST:
                self._ended += 1
            else:
                take()
            self.arrived.notify_all()

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        await self._arrived(
            message,
            lambda: self.replies.setdefault(message.correlation_id or "", []).append(
                json.loads(message.body)
            ),
        )

    async def _on_event(self, message: AbstractIncomingMessage) -> None:
        await self._arrived(message, lambda: self.events.append(json.loads(message.body)))

    async def _on_reminder(self, message: AbstractIncomingMessage) -> None:
        def take() -> None:
            worker_id = json.loads(message.body)["worker_id"]
            if worker_id != NOBODY:  # by which an adapter learns that it is the leader
                self.reminded.append(worker_id)

        await self._arrived(message, take)

    async def _on_dead_letter(self, message: AbstractIncomingMessage) -> None:
        await self._arrived(message, lambda: self.dead.append(str(message.headers.get("x-cml-reason"))))

    async def publish(
        self, exchange: str, routing_key: str, body: bytes, *, declared: bool = True, **properties: Any
    ) -> str:
        """Publish raw bytes; the correlation id."""
        correlation_id = properties.pop("correlation_id", None) or str(uuid4())
        self._sent.add(correlation_id)
        if exchange == "cml.commands":
            self._commands.add(correlation_id)
        target = await self.channel.get_exchange(exchange, ensure=False)
        properties = {"message_id": str(uuid4()), "type": routing_key, "reply_to": self.reply_to} | properties
        await target.publish(
            aio_pika.Message(body, correlation_id=correlation_id, delivery_mode=2, **properties), routing_key
        )
        return str(correlation_id)

    async def replies_to(
        self, correlation_id: str, count: int = 1, seconds: float = 60
    ) -> list[dict[str, Any]]:
        """Wait for that many replies; at the end there must not have been more."""
        self._sent.add(correlation_id)
        self._awaited[correlation_id] = max(count, self._awaited.get(correlation_id, 0))
        async with asyncio.timeout(seconds), self.arrived:
            await self.arrived.wait_for(lambda: len(self.replies.get(correlation_id, [])) >= count)
            return self.replies[correlation_id]

    async def command(self, name: str, /, **fields: Any) -> dict[str, Any]:
        """Send a command and await its reply."""
        sent = await self.publish("cml.commands", f"cml.worker.{name}.v1", json.dumps(fields).encode())
        return (await self.replies_to(sent))[0]

    async def query(self, name: str, /, **fields: Any) -> dict[str, Any]:
        """Send a query and await its answer."""
        sent = await self.publish("cml.queries", f"cml.{name}.v1", json.dumps(fields).encode())
        return (await self.replies_to(sent))[0]

    async def until_status(self, worker_id: str, status: str, seconds: float = 30) -> dict[str, Any]:
        """Ask the read model until it shows the status; it never goes back, nor past a status that is final."""
        revision = -1
        async with asyncio.timeout(seconds):
            while True:
                data = (await self.query("worker.get", worker_id=worker_id))["data"]
                if data:
                    assert isinstance(data, dict)
                    assert data["revision"] >= revision, f"the read model went back from {revision}: {data}"
                    revision = data["revision"]
                    if data["status"] == status:
                        return data
                    assert data["status"] not in ("FAILED", "TERMINATED"), data
                await asyncio.sleep(0.1)

    async def until_event(self, worker_id: str, event_type: str, **data: Any) -> dict[str, Any]:
        """Wait for an event of a worker with this data."""

        def found() -> list[dict[str, Any]]:
            return [
                each
                for each in self.events
                if (each["subject"], each["type"]) == (worker_id, event_type)
                and data.items() <= each["data"].items()
            ]

        async with asyncio.timeout(30), self.arrived:
            await self.arrived.wait_for(found)
            return found()[0]
