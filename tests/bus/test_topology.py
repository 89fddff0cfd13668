"""The topology on both brokers: declared again, and found with other arguments."""

import asyncio

import aio_pika
import pytest
from aiormq.exceptions import PublishError

from cml_contracts.events import LaunchRequested
from cml_contracts.topology import EVENTS_EXCHANGE, QUERIES_EXCHANGE, Exchange
from cml_workers.bus.port import (
    TopologyError,
)
from cml_workers.bus.rabbit import RabbitBus, declare_topology
from cml_workers.bus.topology import (
    DEAD_LETTER_EXCHANGE,
    DEAD_LETTER_QUEUE,
    EC2_TRIGGERS,
    PROJECTOR_QUERIES,
    TRIGGERS_EXCHANGE,
)
from cml_workers.process.registry import ROLES


async def test_declaring_again_changes_nothing(empty: str):
    await declare_topology(empty)
    await declare_topology(empty)


async def test_the_bindings_of_earlier_versions_go_when_the_relay_starts_and_not_before(empty: str):
    """Until then it is an earlier relay that publishes, to the old exchange alone."""
    event = LaunchRequested.TYPE
    async with await aio_pika.connect(empty) as connection:
        channel = await connection.channel(on_return_raises=True)
        triggers = await channel.get_queue(EC2_TRIGGERS.name)
        await triggers.bind(EVENTS_EXCHANGE.name, event)  # as 65339c3 left it

        async def arrives(exchange: Exchange) -> bool:
            try:
                await (await channel.get_exchange(exchange.name)).publish(aio_pika.Message(b""), event)
            except PublishError:
                return False  # no queue is bound
            return True

        await declare_topology(empty, ROLES["ec2-adapter"].uses)
        assert await arrives(EVENTS_EXCHANGE)
        assert await arrives(TRIGGERS_EXCHANGE)
        await declare_topology(empty, ROLES["relay"].uses)
        async with asyncio.timeout(5):  # with Khepri, routes follow the bindings a moment later
            while await arrives(EVENTS_EXCHANGE):
                await asyncio.sleep(0.05)
        assert await arrives(TRIGGERS_EXCHANGE)
        await triggers.purge()


async def test_the_fanout_of_dead_letters_that_an_earlier_version_declared_is_used_as_it_is(empty: str):
    async with await aio_pika.connect(empty) as connection:
        channel = await connection.channel(on_return_raises=True)
        await channel.exchange_delete(DEAD_LETTER_EXCHANGE.name)
        earlier = await channel.declare_exchange(DEAD_LETTER_EXCHANGE.name, "fanout", durable=True)
        try:
            await declare_topology(empty)
            await earlier.publish(aio_pika.Message(b"", message_id="died"), "any.key")
            message = await (await channel.get_queue(DEAD_LETTER_QUEUE.name)).get(no_ack=True)
            assert message is not None
            assert message.message_id == "died"
        finally:
            await channel.exchange_delete(DEAD_LETTER_EXCHANGE.name)
            await declare_topology(empty)


@pytest.mark.parametrize("kind", ["queue", "exchange"])
async def test_what_exists_with_other_arguments_is_named_with_its_remedy(empty: str, kind: str):
    name = PROJECTOR_QUERIES.name if kind == "queue" else QUERIES_EXCHANGE.name
    async with await aio_pika.connect(empty) as connection:
        channel = await connection.channel()
        if kind == "queue":
            await channel.queue_delete(name)
            await channel.declare_queue(name, durable=True)
        else:
            await channel.exchange_delete(name)
            await channel.declare_exchange(name, "direct", durable=True)
        try:
            with pytest.raises(TopologyError, match=name) as error:
                await RabbitBus(empty, name="test").start()
            assert "delete it" in str(error.value)
        finally:
            channel = await connection.channel()
            await (channel.queue_delete if kind == "queue" else channel.exchange_delete)(name)
