"""A handler that records its messages, messages for it, and the dead letters it leaves."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import aio_pika

from cml_contracts.topology import COMMANDS_EXCHANGE
from cml_workers.bus.port import (
    Ack,
    Message,
    Outgoing,
    Verdict,
)
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.topology import (
    DEAD_LETTER_QUEUE,
)

Answer = Callable[[Message], Awaitable[Verdict]]


class Recorder:
    """A handler that records its messages; ``answer`` gives the verdicts."""

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self.arrived = asyncio.Condition()
        self.answer: Answer = self.done

    async def done(self, _message: Message) -> Verdict:
        return Ack()

    async def __call__(self, message: Message) -> Verdict:
        async with self.arrived:
            self.seen.append(message)
            self.arrived.notify_all()
        return await self.answer(message)

    async def until(self, count: int) -> list[Message]:
        async with asyncio.timeout(60), self.arrived:
            await self.arrived.wait_for(lambda: len(self.seen) >= count)
            return self.seen


def outgoing(message_id: str | None = None, **fields: object) -> Outgoing:
    values: dict[str, object] = {
        "exchange": COMMANDS_EXCHANGE,
        "routing_key": "cml.worker.start.v1",
        "body": b"{}",
        "type": "cml.worker.start.v1",
        "message_id": message_id or str(uuid4()),
    }
    return Outgoing(**(values | fields))  # type: ignore[arg-type]


async def dead_letter(url: str, seconds: float = 10) -> aio_pika.abc.AbstractIncomingMessage:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(DEAD_LETTER_QUEUE.name)
        async with asyncio.timeout(seconds):
            while (message := await queue.get(fail=False)) is None:
                await asyncio.sleep(0.05)
        await message.ack()
        return message


class Recipient:
    """A handler on a bus of its own: the messages in turn, and the dead letters since it began."""

    def __init__(self, dead: aio_pika.abc.AbstractQueue) -> None:
        self._dead = dead
        self.bus: RabbitBus
        self.seen: asyncio.Queue[Message] = asyncio.Queue()
        self.answer: Answer = self.done

    async def done(self, _message: Message) -> Verdict:
        return Ack()

    async def __call__(self, message: Message) -> Verdict:
        try:
            return await self.answer(message)
        finally:
            self.seen.put_nowait(message)

    async def next(self) -> Message:
        async with asyncio.timeout(60):
            return await self.seen.get()

    async def dead_letter(self) -> aio_pika.abc.AbstractIncomingMessage:
        async with asyncio.timeout(40):
            while (message := await self._dead.get(fail=False, no_ack=True)) is None:
                await asyncio.sleep(0.05)
            return message
