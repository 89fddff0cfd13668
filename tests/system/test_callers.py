"""The callers of the tests of whole processes: they must not make up for what is lost, and must not lose anything."""

from collections.abc import AsyncIterator
from uuid import uuid4

import aio_pika
import pytest
from yarl import URL

from cml_contracts.commands import StopCMLWorker
from cml_contracts.results import OperationResult
from cml_workers.bus.rabbit import declare_topology
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from support.callers import Callers
from support.tcp_proxy import TcpProxy, Trap

BOUND = 60.0
COMMAND = StopCMLWorker(worker_id=uuid4())


@pytest.fixture
async def network(rabbitmq_url: str) -> AsyncIterator[TcpProxy]:
    await declare_topology(rabbitmq_url)
    async with TcpProxy(URL(rabbitmq_url).port or 5672) as network:
        yield network


@pytest.fixture
async def callers(rabbitmq_url: str, network: TcpProxy) -> AsyncIterator[Callers]:
    url = URL(rabbitmq_url).with_host("127.0.0.1").with_port(network.port)
    async with Callers(str(url), f"cml.replies.callers.{uuid4()}") as callers:
        yield callers


@pytest.fixture
async def channel(rabbitmq_url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(rabbitmq_url) as connection:
        channel = await connection.channel()
        await (await channel.get_queue(LIFECYCLE_COMMANDS.name)).purge()
        yield channel
        await (await channel.get_queue(LIFECYCLE_COMMANDS.name)).purge()


async def taken(channel: aio_pika.abc.AbstractChannel) -> list[tuple[str | None, str | None]]:
    """Command ids and addresses of the messages that the broker took."""
    queue = await channel.get_queue(LIFECYCLE_COMMANDS.name)
    messages = []
    while (message := await queue.get(no_ack=True, fail=False)) is not None:
        messages.append((message.message_id, message.correlation_id))
    return messages


async def test_what_is_confirmed_is_sent_once_and_awaited(network, callers, channel):
    await callers.send(COMMAND, "stop", "address")
    await callers.send(COMMAND, "posted", None)
    assert callers.unconfirmed == 0
    network.cut()
    await callers.send(COMMAND, "after the cut", "another")
    assert await taken(channel) == [("stop", "address"), ("posted", None), ("after the cut", "another")]
    assert callers.awaited == {"address": "stop", "another": "after the cut"}
    assert callers.unanswered == {"address", "another"}
    assert callers.confirmed.keys() == {"stop", "posted", "after the cut"}


async def test_what_was_taken_and_not_confirmed_is_published_again_and_counted(network, callers, channel):
    network.arm(Trap(COMMAND.TYPE.encode(), "server", "cut the answer"))
    await callers.send(COMMAND, "stop", "address")
    assert await taken(channel) == [("stop", "address")] * 2
    assert callers.unconfirmed == 1
    assert callers.awaited == {"address": "stop"}


async def test_a_reply_that_was_cut_off_comes_again(network, callers, channel):
    network.arm(Trap(b"rejected", "client", "cut before"))
    await callers.send(COMMAND, "stop", "address")
    result = OperationResult(command_id="stop", outcome="rejected")
    message = aio_pika.Message(result.model_dump_json().encode(), correlation_id="address", delivery_mode=2)
    await channel.default_exchange.publish(message, callers.queue)
    assert await callers.answer("address", BOUND)
    assert network.fired == {"cut before": 1}
    assert callers.replies == {"stop": [result]}
    assert await callers.all_answers(0)
