"""A client that knows nothing of this project: aio-pika, JSON and the routing keys of the README."""

import asyncio
import json
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage


class PlainAmqp:
    """Sends commands and queries, collects replies by correlation id, and events as they come."""

    def __init__(self, url: str, *, direct: bool = False) -> None:
        self.url = url
        self.direct = direct
        self.events: list[dict[str, Any]] = []
        self.replies: dict[str, list[dict[str, Any]]] = {}
        self.arrived = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self.connection = await aio_pika.connect(self.url)
        self.channel = await self.connection.channel()
        if self.direct:
            replies = await self.channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
        else:
            replies = await self.channel.declare_queue(exclusive=True)
        self.reply_to = replies.name
        await replies.consume(self._on_reply, no_ack=True)
        events = await self.channel.declare_queue(exclusive=True)
        await events.bind("cml.events", "#")
        await events.consume(self._on_event, no_ack=True)
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.connection.close()

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        async with self.arrived:
            self.replies.setdefault(message.correlation_id or "", []).append(json.loads(message.body))
            self.arrived.notify_all()

    async def _on_event(self, message: AbstractIncomingMessage) -> None:
        async with self.arrived:
            self.events.append(json.loads(message.body))
            self.arrived.notify_all()

    async def publish(
        self, exchange: str, routing_key: str, body: bytes, *, declared: bool = True, **properties: Any
    ) -> str:
        """Publish raw bytes; the correlation id."""
        correlation_id = properties.pop("correlation_id", None) or str(uuid4())
        target = await self.channel.get_exchange(exchange, ensure=False)
        properties = {"message_id": str(uuid4()), "type": routing_key, "reply_to": self.reply_to} | properties
        await target.publish(
            aio_pika.Message(body, correlation_id=correlation_id, delivery_mode=2, **properties), routing_key
        )
        return str(correlation_id)

    async def replies_to(
        self, correlation_id: str, count: int = 1, seconds: float = 60
    ) -> list[dict[str, Any]]:
        """Wait for that many replies."""
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
        """Ask the read model until it shows the status."""
        async with asyncio.timeout(seconds):
            while True:
                data = (await self.query("worker.get", worker_id=worker_id))["data"]
                if data and data["status"] == status:
                    assert isinstance(data, dict)
                    return data
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
