"""The embedded broker and RabbitMQ, seen through aio-pika: dead letters, limits and delays.

https://www.rabbitmq.com/docs/quorum-queues, https://www.rabbitmq.com/docs/dlx
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import (
    DeliveryError,
)

from support.queues import QUORUM, a_queue, an_exchange, bodies, put, take


@asynccontextmanager
async def a_grave(channel: AbstractChannel) -> AsyncIterator[tuple[AbstractQueue, dict[str, Any]]]:
    """A dead-letter queue, and the arguments that lead there."""
    async with an_exchange(channel, "fanout") as exchange, a_queue(channel, **QUORUM) as grave:
        await grave.bind(exchange)
        yield grave, {"x-dead-letter-exchange": exchange.name}


def death(message: AbstractIncomingMessage) -> dict[str, Any]:
    deaths: Any = message.headers["x-death"]
    return dict(deaths[0])


async def test_a_limit_of_three_is_four_deliveries(channel: AbstractChannel):
    async with (
        a_grave(channel) as (grave, arguments),
        a_queue(channel, **QUORUM, **arguments, x_delivery_limit=3) as queue,
    ):
        await put(channel, queue, "poison", "fine")
        for expected in range(4):
            message = await take(queue)
            assert message.body == b"poison"
            assert message.headers.get("x-delivery-count", 0) == expected
            await message.reject(requeue=True)  # from RabbitMQ 4.3 on `nack` does not count
        assert await bodies(queue, 1) == ["fine"]
        dead = await take(grave)
        assert (death(dead)["reason"], death(dead)["queue"]) == ("delivery_limit", queue.name)
        await dead.ack()


async def test_what_is_rejected_is_dead_lettered_with_its_story(channel: AbstractChannel):
    async with a_grave(channel) as (grave, arguments), a_queue(channel, **QUORUM, **arguments) as queue:
        await put(channel, queue, "a", headers={"mine": "kept"}, message_id="m-1", correlation_id="c-1")
        await (await take(queue)).reject(requeue=False)
        dead = await take(grave)
        assert (death(dead)["reason"], death(dead)["count"]) == ("rejected", 1)
        assert dead.headers["x-first-death-queue"] == queue.name
        assert (dead.headers["mine"], dead.message_id, dead.correlation_id) == ("kept", "m-1", "c-1")
        await dead.ack()


async def test_a_waiting_queue_gives_back_after_its_time(channel: AbstractChannel):
    async with a_queue(channel, **QUORUM) as work:
        back = {"x-message-ttl": 300, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": work.name}
        safely = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
        async with a_queue(channel, **QUORUM, **back, **safely) as waiting:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await put(channel, waiting, "a", "b")
            assert await bodies(work, 2) == ["a", "b"]
            assert loop.time() - began >= 0.25


async def test_a_full_queue_that_rejects_says_no(channel: AbstractChannel):
    async with a_queue(channel, x_max_length=1, x_overflow="reject-publish") as queue:
        await put(channel, queue, "a")
        with pytest.raises(DeliveryError):
            await put(channel, queue, "b")
        assert await bodies(queue, 1) == ["a"]
        await put(channel, queue, "c")
