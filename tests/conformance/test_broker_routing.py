"""The embedded broker and RabbitMQ, seen through aio-pika: routing and declaring."""

from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import (
    AMQPError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
)

from support.queues import QUORUM, Connection, a_queue, an_exchange, bodies, put


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#", "", True),
        ("#.c", "a.b.c", True),
        ("*.b.#", "a.b", True),
        ("*", "", False),
        ("a.#.c", "a.c", True),
        ("a.#.c", "a.b.b.c", True),
        ("a.b", "a", False),
    ],
)
async def test_topics_match_by_words(channel: AbstractChannel, pattern: str, key: str, matches: bool):
    async with an_exchange(channel, "topic") as exchange, a_queue(channel) as queue:
        await queue.bind(exchange, pattern)
        if matches:
            await exchange.publish(aio_pika.Message(b"x"), key)
            assert await bodies(queue, 1) == ["x"]
        else:
            with pytest.raises(DeliveryError):
                await exchange.publish(aio_pika.Message(b"x"), key)


async def test_direct_and_fanout_reach_each_queue_once(channel: AbstractChannel):
    async with (
        an_exchange(channel, "direct") as direct,
        an_exchange(channel, "fanout") as fanout,
        a_queue(channel) as one,
        a_queue(channel) as two,
    ):
        await one.bind(direct, "k")
        await one.bind(fanout, "x")
        await one.bind(fanout, "y")
        await two.bind(fanout)
        await direct.publish(aio_pika.Message(b"d"), "k")
        await fanout.publish(aio_pika.Message(b"f"), "whatever")
        assert await bodies(one, 2) == ["d", "f"]
        assert await bodies(two, 1) == ["f"]
        assert await one.get(fail=False) is None


async def test_what_no_queue_takes_comes_back_and_the_channel_lives(channel: AbstractChannel):
    with pytest.raises(DeliveryError):
        await channel.default_exchange.publish(aio_pika.Message(b"x"), "no such queue")
    await channel.default_exchange.publish(aio_pika.Message(b"x"), "no such queue", mandatory=False)
    async with a_queue(channel) as queue:
        await put(channel, queue, "y")


async def test_publishing_to_a_missing_exchange_closes_the_channel(channel: AbstractChannel):
    exchange = await channel.get_exchange("no such exchange", ensure=False)
    with pytest.raises((ChannelClosed, ChannelNotFoundEntity)):
        await exchange.publish(aio_pika.Message(b"x"), "k")


async def test_declaring_again_with_other_arguments_is_refused_by_name(
    connection: Connection, channel: AbstractChannel
):
    async with a_queue(channel, **QUORUM, x_delivery_limit=3) as queue:
        await channel.declare_queue(queue.name, durable=True, arguments={**QUORUM, "x-delivery-limit": 3})
        other = await connection.channel()
        with pytest.raises(ChannelPreconditionFailed) as raised:
            await other.declare_queue(queue.name, durable=True, arguments={**QUORUM, "x-delivery-limit": 4})
        assert queue.name in str(raised.value)
        assert "x-delivery-limit" in str(raised.value)


async def test_what_does_not_exist_is_not_found(connection: Connection):
    for ask in ("declare_queue", "declare_exchange"):
        channel = await connection.channel()
        with pytest.raises(ChannelNotFoundEntity):
            await getattr(channel, ask)(f"t.{uuid4()}", passive=True)


@pytest.mark.parametrize(
    "wrong", [{"exclusive": True}, {"auto_delete": True}, {"durable": False}, {"x-max-priority": 5}]
)
async def test_a_quorum_queue_refuses_what_it_cannot_keep(channel: AbstractChannel, wrong: dict[str, Any]):
    arguments = {**QUORUM, **{key: value for key, value in wrong.items() if key.startswith("x-")}}
    flags = {"durable": True, **{key: value for key, value in wrong.items() if not key.startswith("x-")}}
    with pytest.raises((ChannelClosed, AMQPError)):
        await channel.declare_queue(f"t.{uuid4()}", arguments=arguments, **flags)


async def test_an_exclusive_queue_is_its_connections_own_and_goes_with_it(
    amqp_url: str, channel: AbstractChannel
):
    async with await aio_pika.connect(amqp_url) as other:
        mine = await (await other.channel()).declare_queue(exclusive=True)
        assert mine.name
        with pytest.raises(AMQPError):
            await channel.declare_queue(mine.name, passive=True)
    async with await aio_pika.connect(amqp_url) as third:
        with pytest.raises(ChannelNotFoundEntity):
            await (await third.channel()).declare_queue(mine.name, passive=True)
