"""Queues and exchanges for one test, and messages put into them and taken out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue

Connection = AbstractConnection


QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}


@asynccontextmanager
async def a_queue(channel: AbstractChannel, **arguments: Any) -> AsyncIterator[AbstractQueue]:
    """A durable queue of the test's own, deleted at its end."""
    queue = await channel.declare_queue(
        f"cml.replies.t.{uuid4()}",
        durable=True,
        arguments={key.replace("_", "-"): value for key, value in arguments.items()},
    )
    try:
        yield queue
    finally:
        async with asyncio.timeout(60):
            await queue.channel.queue_delete(queue.name)


@asynccontextmanager
async def an_exchange(channel: AbstractChannel, kind: str) -> AsyncIterator[aio_pika.abc.AbstractExchange]:
    exchange = await channel.declare_exchange(f"t.{uuid4()}", kind, durable=True)
    yield exchange
    await channel.exchange_delete(exchange.name)


async def put(channel: AbstractChannel, queue: AbstractQueue, *bodies: str, **properties: Any) -> None:
    for body in bodies:
        message = aio_pika.Message(body.encode(), delivery_mode=2, **properties)
        await channel.default_exchange.publish(message, queue.name)


async def take(queue: AbstractQueue, seconds: float = 10) -> AbstractIncomingMessage:
    async with asyncio.timeout(seconds):
        while (message := await queue.get(fail=False)) is None:
            await asyncio.sleep(0.02)
    return message


async def bodies(queue: AbstractQueue, count: int) -> list[str]:
    found = []
    for _ in range(count):
        message = await take(queue)
        await message.ack()
        found.append(message.body.decode())
    return found


class Consumer:
    """Collects deliveries and leaves them unacknowledged."""

    def __init__(self) -> None:
        self.got: list[AbstractIncomingMessage] = []
        self.arrived = asyncio.Condition()

    async def __call__(self, message: AbstractIncomingMessage) -> None:
        async with self.arrived:
            self.got.append(message)
            self.arrived.notify_all()

    async def until(self, count: int) -> list[AbstractIncomingMessage]:
        async with asyncio.timeout(60), self.arrived:
            await self.arrived.wait_for(lambda: len(self.got) >= count)
        return self.got

    @property
    def bodies(self) -> list[str]:
        return [message.body.decode() for message in self.got]
