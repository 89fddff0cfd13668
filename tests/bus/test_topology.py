"""The topology on both brokers: declared again, and found with other arguments."""

import aio_pika
import pytest

from cml_contracts.topology import QUERIES_EXCHANGE
from cml_workers.bus.port import (
    TopologyError,
)
from cml_workers.bus.rabbit import RabbitBus, declare_topology
from cml_workers.bus.topology import PROJECTOR_QUERIES


async def test_declaring_again_changes_nothing(empty: str):
    await declare_topology(empty)
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
