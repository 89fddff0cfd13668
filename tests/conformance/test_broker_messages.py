"""The embedded broker and RabbitMQ, seen through aio-pika: requests and replies, bodies, headers, order.

https://www.rabbitmq.com/docs/direct-reply-to
"""

import asyncio
from contextlib import suppress
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import (
    AMQPError,
    DeliveryError,
)
from faststream import AckPolicy
from faststream.rabbit import RabbitBroker, RabbitMessage, RabbitQueue

from support.queues import QUORUM, Connection, Consumer, a_queue, put, take


async def test_direct_reply_to_reaches_the_asker_from_another_connection(
    amqp_url: str, channel: AbstractChannel
):
    async with a_queue(channel) as requests, await aio_pika.connect(amqp_url) as asking:
        asker = await asking.channel()
        replies = Consumer()
        await (await asker.get_queue("amq.rabbitmq.reply-to", ensure=False)).consume(replies, no_ack=True)
        await put(asker, requests, "?", reply_to="amq.rabbitmq.reply-to", correlation_id="c-1")
        request = await take(requests)
        await request.ack()
        assert request.reply_to
        assert request.reply_to != "amq.rabbitmq.reply-to"
        answer = aio_pika.Message(b"!", correlation_id="c-1")
        exchange = channel.default_exchange
        await exchange.publish(answer, request.reply_to, mandatory=False)
        (got,) = await replies.until(1)
        assert (got.body, got.correlation_id) == (b"!", "c-1")
        with suppress(DeliveryError):  # not a queue: before RabbitMQ 4.2 it comes back, although it arrived
            await exchange.publish(answer, request.reply_to, mandatory=True)
        await replies.until(2)
        await asking.close()
        await asyncio.sleep(0.1)
        await exchange.publish(answer, request.reply_to, mandatory=False)


async def test_a_forged_user_is_refused_and_the_own_one_passed_on(connection: Connection):
    channel = await connection.channel()
    async with a_queue(channel) as queue:
        await put(channel, queue, "a", user_id="guest")
        message = await take(queue)
        await message.ack()
        assert message.user_id == "guest"
        forging = await connection.channel()
        with pytest.raises(AMQPError):
            await put(forging, queue, "b", user_id="somebody")


async def test_faststream_consumes_and_acknowledges_by_hand(amqp_url: str, channel: AbstractChannel):
    async with a_queue(channel, **QUORUM) as queue:
        broker = RabbitBroker(amqp_url, logger=None, apply_types=False)
        attempts: list[bool] = []

        async def whole(message: RabbitMessage) -> RabbitMessage:
            return message

        @broker.subscriber(
            RabbitQueue(queue.name, declare=False), ack_policy=AckPolicy.MANUAL, decoder=whole, no_reply=True
        )
        async def handle(message: RabbitMessage) -> None:
            attempts.append(bool(message.raw_message.redelivered))
            await (message.ack() if len(attempts) > 1 else message.nack())

        await broker.start()
        await put(channel, queue, "a")
        async with asyncio.timeout(60):
            while len(attempts) < 2:
                await asyncio.sleep(0.02)
        await broker.stop()
        assert attempts == [False, True]
        assert await queue.get(fail=False) is None


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 1_000_000, 5_000_000])
async def test_bodies_of_any_size_arrive_whole(channel: AbstractChannel, size: int):
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with a_queue(channel) as queue:
        await channel.default_exchange.publish(aio_pika.Message(body), queue.name)
        message = await take(queue)
        await message.ack()
        assert message.body == body


async def test_headers_of_all_kinds_arrive(channel: AbstractChannel):
    headers: Any = {
        "text": "ä",
        "number": 7,
        "big": 2**40,
        "yes": True,
        "list": [1, "a"],
        "table": {"a": {"b": 1}},
        "none": None,
    }
    async with a_queue(channel) as queue:
        await put(channel, queue, "a", headers=headers)
        message = await take(queue)
        await message.ack()
        assert message.headers == headers


async def test_a_thousand_confirmed_messages_keep_their_order(channel: AbstractChannel):
    async with a_queue(channel, **QUORUM) as queue:
        exchange = channel.default_exchange
        sent = [aio_pika.Message(str(n).encode(), delivery_mode=2) for n in range(1000)]
        await asyncio.gather(*(exchange.publish(message, queue.name) for message in sent))
        consumer = Consumer()
        await queue.consume(consumer, no_ack=True)
        await consumer.until(1000)
        assert consumer.bodies == [str(n) for n in range(1000)]
