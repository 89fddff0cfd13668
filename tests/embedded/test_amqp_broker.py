"""The embedded broker where it is not RabbitMQ: what it does not support, it says, and never does it in silence."""

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError

from cml_embedded.amqp_broker import AmqpBroker


async def nothing(_message: object) -> None:
    """Take it."""


async def consume_alone(channel: AbstractChannel) -> None:
    queue = await channel.declare_queue("q", exclusive=True)
    await queue.consume(nothing, exclusive=True)


async def bind_exchanges(channel: AbstractChannel) -> None:
    one, two = [await channel.declare_exchange(name, "topic") for name in ("one", "two")]
    await one.bind(two, "#")


UNSUPPORTED: dict[str, Callable[[AbstractChannel], Awaitable[Any]]] = {
    "streams": lambda channel: channel.declare_queue("q", arguments={"x-queue-type": "stream"}),
    "x-expires": lambda channel: channel.declare_queue("q", arguments={"x-expires": 1000}),
    "x-max-length-bytes": lambda channel: channel.declare_queue("q", arguments={"x-max-length-bytes": 5}),
    "x-max-length without": lambda channel: channel.declare_queue("q", arguments={"x-max-length": 5}),
    "exchanges that are internal": lambda channel: channel.declare_exchange("e", "topic", internal=True),
    "or have arguments": lambda channel: channel.declare_exchange(
        "e", "topic", arguments={"alternate-exchange": "other"}
    ),
    "exclusive consumers": consume_alone,
    "Exchange.Bind": bind_exchanges,
    "for a whole channel": lambda channel: channel.set_qos(5, global_=True),
    "if-unused": lambda channel: channel.exchange_delete("e", if_unused=True),
}


@pytest.mark.parametrize("what", UNSUPPORTED)
async def test_what_it_does_not_support_it_says(what: str):
    async with AmqpBroker() as broker, await aio_pika.connect(broker.url) as connection:
        with pytest.raises(
            AMQPError, match=f"NOT_IMPLEMENTED - the embedded broker does not support.*{what}"
        ):
            await UNSUPPORTED[what](await connection.channel())


async def test_a_journal_of_an_earlier_version_is_read(tmp_path: Path):
    """It had bindings between exchanges, and exchanges with properties."""
    async with AmqpBroker(data_dir=tmp_path) as broker, await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("kept", "topic", durable=True)
        queue = await channel.declare_queue("work", durable=True)
        await queue.bind(exchange, "#")
    database = sqlite3.connect(tmp_path / "amqp.sqlite", isolation_level=None)
    database.execute("UPDATE exchanges SET auto_delete = 0, internal = 1, arguments = x'00000000'")
    database.execute("INSERT INTO bindings VALUES ('kept', 'exchange', 'gone', '#')")
    database.close()
    async with AmqpBroker(data_dir=tmp_path) as broker, await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange("kept")
        await exchange.publish(aio_pika.Message(b"x"), "any")
        assert (await (await channel.get_queue("work")).get()).body == b"x"
