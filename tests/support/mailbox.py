"""A queue that outlives whoever made it: for callers and subscribers who are away while something comes."""

import asyncio
import json
from typing import Any, Self
from uuid import uuid4

import aio_pika


class Mailbox:
    """``opened`` makes it, ``taken`` looks into it. Every use has a connection of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    async def opened(cls, url: str, *, exchange: str | None = None, pattern: str = "#") -> Self:
        """A durable queue, for replies, or bound to an exchange."""
        mailbox = cls(f"cml.replies.mailbox.{uuid4()}")
        async with await aio_pika.connect(url) as connection:
            queue = await (await connection.channel()).declare_queue(mailbox.name, durable=True)
            if exchange:
                await queue.bind(exchange, pattern)
        return mailbox

    async def taken(
        self, url: str, count: int, *, differing: str = "", seconds: float = 60
    ) -> list[dict[str, Any]]:
        """So many messages (that differ in a field), and all that are there by then; the queue is gone afterwards."""
        found: list[dict[str, Any]] = []
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(self.name)
            async with asyncio.timeout(seconds):
                while (message := await queue.get(fail=False, no_ack=True)) or count > (
                    len({each[differing] for each in found}) if differing else len(found)
                ):
                    if message is None:
                        await asyncio.sleep(0.05)
                    else:
                        found.append(json.loads(message.body))
            await channel.queue_delete(self.name)
        return found
