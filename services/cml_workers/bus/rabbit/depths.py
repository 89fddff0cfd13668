"""How many messages wait in the queues that a role consumes, and how many consume them: asked of the broker now and then."""

import asyncio
from collections.abc import Callable, Iterable

from aio_pika.abc import AbstractConnection

from cml_workers.foundation.metrics import QUEUE_CONSUMERS, QUEUE_MESSAGES

LOOKS_EVERY = 10.0
"""Seconds between two looks."""
TIMEOUT = 5.0
"""Seconds for one look."""


async def keep_measured(connected: Callable[[], AbstractConnection | None], queues: Iterable[str]) -> None:
    """Return never. What cannot be asked is not shown: that has a reason which readiness has, too."""
    names = list(queues)
    while True:
        try:
            async with asyncio.timeout(TIMEOUT):
                await _look(connected(), names)
        except Exception:  # noqa: BLE001 - whatever it is, the consumers find out for themselves
            for name in names:
                QUEUE_MESSAGES.remove(name)
                QUEUE_CONSUMERS.remove(name)
        await asyncio.sleep(LOOKS_EVERY)


async def _look(connection: AbstractConnection | None, names: Iterable[str]) -> None:
    """On a channel of its own, which is not restored with the connection."""
    transport = connection and connection.transport
    if not transport:
        raise ConnectionError("not connected")
    channel = await transport.connection.channel()
    try:
        for name in names:
            queue = await channel.queue_declare(name, passive=True)
            QUEUE_MESSAGES.labels(name).set(queue.message_count or 0)
            QUEUE_CONSUMERS.labels(name).set(queue.consumer_count or 0)
    finally:
        await channel.close()
