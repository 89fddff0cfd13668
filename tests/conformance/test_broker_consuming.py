"""The embedded broker and RabbitMQ, seen through aio-pika: prefetch, redelivery, several consumers."""

import asyncio
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from support.queues import QUORUM, Consumer, a_queue, bodies, put, take


@pytest.mark.parametrize("arguments", [{}, QUORUM], ids=["classic", "quorum"])
async def test_prefetch_is_honoured(channel: AbstractChannel, arguments: dict[str, Any]):
    async with a_queue(channel, **arguments) as queue:
        await put(channel, queue, *"abcdef")
        await channel.set_qos(prefetch_count=2)
        consumer = Consumer()
        await queue.consume(consumer)
        await consumer.until(2)
        await asyncio.sleep(0.2)
        assert consumer.bodies == ["a", "b"]
        await consumer.got[0].ack()
        await consumer.until(3)
        await asyncio.sleep(0.1)
        assert consumer.bodies == ["a", "b", "c"]


@pytest.mark.parametrize("arguments", [{}, QUORUM], ids=["classic", "quorum"])
async def test_what_comes_back_is_redelivered(channel: AbstractChannel, arguments: dict[str, Any]):
    async with a_queue(channel, **arguments) as queue:
        await put(channel, queue, "a")
        first = await take(queue)
        assert not first.redelivered
        await first.nack(requeue=True)
        second = await take(queue)
        assert second.redelivered
        await second.ack()


async def test_what_was_unacknowledged_comes_back_when_the_connection_goes(
    amqp_url: str, channel: AbstractChannel
):
    async with a_queue(channel, **QUORUM) as queue:
        await put(channel, queue, "a", "b")
        async with await aio_pika.connect(amqp_url) as dying:
            consumer = Consumer()
            await (await (await dying.channel()).get_queue(queue.name)).consume(consumer)
            await consumer.until(2)
        again = [await take(queue) for _ in range(2)]
        assert [message.body for message in again] == [b"a", b"b"]
        assert all(message.redelivered for message in again)


async def test_two_consumers_share(amqp_url: str, channel: AbstractChannel):
    async with a_queue(channel) as queue, await aio_pika.connect(amqp_url) as other:
        one, two = Consumer(), Consumer()
        await queue.consume(one)
        await (await (await other.channel()).get_queue(queue.name)).consume(two)
        await put(channel, queue, *(str(n) for n in range(10)))
        await one.until(5)
        await two.until(5)
        assert sorted(one.bodies + two.bodies, key=int) == [str(n) for n in range(10)]


async def test_a_single_active_consumer_is_followed_by_the_next(amqp_url: str, channel: AbstractChannel):
    async with a_queue(channel, **QUORUM, x_single_active_consumer=True) as queue:
        first, second = Consumer(), Consumer()
        tag = await queue.consume(first, no_ack=True)
        dying = await aio_pika.connect(amqp_url)
        await (await (await dying.channel()).get_queue(queue.name)).consume(second, no_ack=True)
        await put(channel, queue, "a")
        await first.until(1)
        await queue.cancel(tag)
        await put(channel, queue, "b")
        await second.until(1)
        await dying.close()
        standby = Consumer()
        await queue.consume(standby, no_ack=True)
        await put(channel, queue, "c")
        await standby.until(1)
        assert (first.bodies, second.bodies, standby.bodies) == (["a"], ["b"], ["c"])


async def test_acknowledged_is_gone_and_purged_too(channel: AbstractChannel):
    async with a_queue(channel) as queue:
        await put(channel, queue, "a", "b", "c")
        assert await bodies(queue, 1) == ["a"]
        await queue.purge()
        assert await queue.get(fail=False) is None
