"""What a consumer had and had not acknowledged when its connection was lost. On a cluster: tests/system/test_lost_consumers.py."""

import asyncio
import json
from pathlib import Path

import aio_pika
import pytest
from yarl import URL

from cml_contracts.client import WorkerClient
from cml_contracts.envelope import EventEnvelope
from cml_contracts.topology import EVENTS_EXCHANGE
from support.buses import emptied
from support.queues import Consumer, a_queue, put
from support.tcp_proxy import TcpProxy


@pytest.mark.parametrize("noticed", ["at once", "late"])
async def test_it_is_sent_again_marked_and_behind_later_messages_if_the_loss_is_noticed_late(
    rabbitmq_url: str, noticed: str
):
    lost, following = Consumer(), Consumer()
    async with (
        asyncio.timeout(60),
        TcpProxy(URL(rabbitmq_url).port or 5672) as network,
        await aio_pika.connect(rabbitmq_url) as connection,
        await aio_pika.connect(network.through(rabbitmq_url)) as broken,
        connection.channel() as channel,
        a_queue(channel, x_queue_type="quorum") as queue,
    ):
        await (await (await broken.channel()).get_queue(queue.name)).consume(lost)
        await put(channel, queue, "first")
        await lost.until(1)
        if noticed == "at once":
            network.cut()
            await put(channel, queue, "second", "third")
            await queue.consume(following)
        else:
            network.pause()
            await queue.consume(following)
            await put(channel, queue, "second", "third")  # by turns, as both are known
            await following.until(1)
            network.cut()
        await following.until(3)
    marked = {message.body.decode(): message.redelivered for message in following.got}
    assert sorted(marked) == ["first", "second", "third"]
    assert marked["first"]
    if noticed == "at once":
        assert following.bodies == ["first", "second", "third"]
    else:
        assert not marked[following.bodies[0]]
        assert following.bodies.index("first") > 0


async def test_a_subscriber_whose_connection_is_lost_gets_again_what_it_had_fetched(rabbitmq_url: str):
    """By WorkerClient, which goes on by itself."""
    await emptied(rabbitmq_url)
    example = Path(__file__).parents[2] / "contracts/examples/cml.event_envelope.v1.json"
    event = EventEnvelope.model_validate_json(example.read_text())
    async with (
        asyncio.timeout(60),
        TcpProxy(URL(rabbitmq_url).port or 5672) as network,
        await aio_pika.connect(rabbitmq_url) as connection,
        connection.channel() as channel,
        a_queue(channel, x_queue_type="quorum") as queue,
        WorkerClient(network.through(rabbitmq_url)) as client,
        client.events("#", queue=queue.name) as events,
    ):
        exchange = await channel.get_exchange(EVENTS_EXCHANGE.name, ensure=False)
        for revision in range(3):
            body = json.dumps(event.model_copy(update={"revision": revision}).to_cloudevent()).encode()
            await exchange.publish(aio_pika.Message(body), event.type)
        assert (await anext(events)).revision == 0
        await asyncio.sleep(0.5)  # the others are fetched
        network.cut()
        await asyncio.sleep(0.5)  # and dropped
        assert [(await anext(events)).revision for _ in range(3)] == [0, 1, 2]
