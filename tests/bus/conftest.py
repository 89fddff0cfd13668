"""The bus on both brokers, with one handler."""

from collections.abc import AsyncIterator

import aio_pika
import pytest

from cml_workers.bus.rabbit import RabbitBus, declare_topology
from cml_workers.bus.topology import DEAD_LETTER_EXCHANGE, LIFECYCLE_COMMANDS, PROJECTOR_QUERIES, Queue
from support.buses import emptied, left_behind
from support.raw_amqp import RawAmqp
from support.recorder import Recipient, Recorder


@pytest.fixture
async def empty(amqp_url: str) -> AsyncIterator[str]:
    """The broker with the topology and empty queues; at the end of a test they are empty again."""
    yield await emptied(amqp_url)
    assert await left_behind(amqp_url) == {}


@pytest.fixture
async def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def bus(empty: str, recorder: Recorder) -> AsyncIterator[RabbitBus]:
    bus = RabbitBus(empty, name="test")
    bus.consume(LIFECYCLE_COMMANDS, recorder, prefetch=10)
    async with bus:
        yield bus


@pytest.fixture(params=[LIFECYCLE_COMMANDS, PROJECTOR_QUERIES], ids=lambda queue: queue.name)
def queue(request: pytest.FixtureRequest) -> Queue:
    """A queue with retries, and one without."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def consumer(rabbitmq_url: str, queue: Queue) -> AsyncIterator[Recipient]:
    await declare_topology(rabbitmq_url)
    async with await aio_pika.connect(rabbitmq_url) as connection:
        channel = await connection.channel()
        await (await channel.get_queue(queue.name)).purge()
        dead = await channel.declare_queue(exclusive=True)
        await dead.bind(DEAD_LETTER_EXCHANGE.name, "#")
        consumer = Recipient(dead)
        consumer.bus = bus = RabbitBus(rabbitmq_url, name="test")
        bus.consume(queue, consumer, prefetch=10)
        async with bus:
            yield consumer
            assert bus.problem() is None


@pytest.fixture
async def stranger(rabbitmq_url: str) -> AsyncIterator[RawAmqp]:
    async with RawAmqp(rabbitmq_url) as stranger:
        yield stranger
