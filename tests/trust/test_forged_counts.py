"""What a sender writes where the broker counts: deliveries, and deaths. On a message that comes again, or that died, the broker's count is there, too."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from cml_contracts.topology import COMMANDS_EXCHANGE
from cml_workers.bus.rabbit.messages import delivered
from cml_workers.bus.topology import (
    DEAD_LETTER_QUEUE,
    DELIVERY_LIMIT,
    LIFECYCLE_COMMANDS,
    LIFECYCLE_REPORTS,
    Queue,
)
from cml_workers.bus.trust import Trust
from cml_workers.deadletters.letter import Letter, letter_of
from support.buses import emptied

COUNTS = {"x-delivery-count": 500, "x-acquired-count": 500}


def death(queue: Queue, reason: str) -> dict[str, Any]:
    return {"queue": queue.name, "reason": reason, "count": 99, "exchange": "", "routing-keys": ["x"]}


FORGED: dict[str, Any] = {
    "another queue": [death(LIFECYCLE_REPORTS, "rejected")],
    "its own queue": [death(LIFECYCLE_COMMANDS, "delivery_limit")],
    "many": [
        death(queue, reason)
        for queue in (LIFECYCLE_REPORTS, LIFECYCLE_COMMANDS)
        for reason in ("maxlen", "expired")
    ],
    "no list": "delivery_limit",
}


@pytest.fixture
async def channel(rabbitmq_url: str) -> AsyncIterator[AbstractChannel]:
    await emptied(rabbitmq_url)
    async with await aio_pika.connect(rabbitmq_url) as connection:
        yield await connection.channel()
    await emptied(rabbitmq_url)


async def send(channel: AbstractChannel, deaths: Any) -> None:
    exchange = await channel.get_exchange(COMMANDS_EXCHANGE.name, ensure=False)
    message = aio_pika.Message(b"{}", message_id="1", headers={**COUNTS, "x-death": deaths, "mark": "x"})
    await exchange.publish(message, "cml.worker.stop.v1")


async def got(channel: AbstractChannel, queue: Queue) -> aio_pika.abc.AbstractIncomingMessage:
    there = await channel.get_queue(queue.name, ensure=False)
    async with asyncio.timeout(60):
        while (message := await there.get(fail=False)) is None:
            await asyncio.sleep(0.05)
    return message


def read(message: aio_pika.abc.AbstractIncomingMessage, queue: Queue) -> Any:
    return delivered(message, queue, Trust())[0]


@pytest.mark.parametrize("deaths", FORGED)
async def test_a_message_that_comes_again_was_delivered_as_often_as_the_broker_says(
    channel: AbstractChannel, deaths: str
):
    await send(channel, FORGED[deaths])
    for times in range(1, 5):
        message = await got(channel, LIFECYCLE_COMMANDS)
        assert read(message, LIFECYCLE_COMMANDS).deliveries == times
        await message.reject(requeue=True)


@pytest.mark.parametrize("deaths", FORGED)
async def test_what_died_of_its_deliveries_did_so_where_the_broker_says(
    channel: AbstractChannel, deaths: str
):
    await send(channel, FORGED[deaths])
    for _ in range(DELIVERY_LIMIT + 1):
        await (await got(channel, LIFECYCLE_COMMANDS)).reject(requeue=True)
    letter: Letter = letter_of(read(await got(channel, DEAD_LETTER_QUEUE), DEAD_LETTER_QUEUE))
    assert (letter.queue, letter.cause) == (LIFECYCLE_COMMANDS.name, "DeliveryLimit")
    assert letter.message_id == "1"
