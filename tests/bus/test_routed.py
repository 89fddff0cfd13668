"""Whether a message that is published and not confirmed has been routed: asked of both brokers, over a network that stalls and breaks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import aio_pika
import pytest
from yarl import URL

from cml_contracts.topology import EVENTS_EXCHANGE
from cml_workers.bus.port import BusUnavailableError, Outgoing
from cml_workers.bus.rabbit import RabbitBus
from support.buses import emptied
from support.tcp_proxy import TcpProxy


class Given:
    """A bus over a network, and a subscriber's queue that is looked at from outside."""

    def __init__(self, network: TcpProxy, bus: RabbitBus, queue: aio_pika.abc.AbstractQueue) -> None:
        self.network = network
        self.bus = bus
        self._queue = queue
        self._seen: list[str | None] = []

    async def arrived(self) -> list[str | None]:
        """The ids of all messages so far."""
        while (message := await self._queue.get(no_ack=True, fail=False)) is not None:
            self._seen.append(message.message_id)
        return self._seen


@pytest.fixture
async def given(amqp_url: str) -> AsyncIterator[Given]:
    await emptied(amqp_url)
    async with (
        TcpProxy(URL(amqp_url).port or 5672) as network,
        await aio_pika.connect(amqp_url) as connection,
        RabbitBus(f"amqp://guest:guest@127.0.0.1:{network.port}/", name="test") as bus,
    ):
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(EVENTS_EXCHANGE.name, "#")
        yield Given(network, bus, queue)


def event(message_id: str | None = None) -> Outgoing:
    return Outgoing(EVENTS_EXCHANGE, "e", b"{}", "e", message_id or str(uuid4()), mandatory=False)


async def test_of_what_is_not_under_way_it_is_not_known(given: Given):
    message = event()
    assert not await given.bus.routed(message)
    await given.bus.publish(message)
    assert not await given.bus.routed(message), "it is confirmed"


@pytest.mark.parametrize("size", [2, 3_000_000], ids=["small", "larger than every buffer"])
async def test_it_is_not_said_before_the_broker_has_it(given: Given, size: int):
    message = Outgoing(EVENTS_EXCHANGE, "e", b" " * size, "e", "m", mandatory=False)
    given.network.pause()
    publishing = asyncio.create_task(given.bus.publish(message))
    await asyncio.sleep(0)
    asking = asyncio.create_task(given.bus.routed(message))
    done, _ = await asyncio.wait((publishing, asking), timeout=0.5)
    assert not done
    given.network.heal()
    assert await asking
    assert await given.arrived() == ["m"]
    await publishing


async def test_whatever_is_published_after_it_was_said_comes_behind(given: Given):
    """Many at once, so that they wait for one another on the channel."""
    await given.bus.publish(event())
    said: set[str] = set()
    for turn in range(20):
        messages = [event(f"{turn}.{number}") for number in range(50)]
        publishing = [asyncio.create_task(given.bus.publish(each)) for each in messages]
        await asyncio.sleep(0)
        routed = await asyncio.gather(*(given.bus.routed(each) for each in messages))
        said |= {message.message_id for message, is_so in zip(messages, routed, strict=True) if is_so}
        assert said <= {*await given.arrived()}
        await asyncio.gather(*publishing)
    assert said


async def test_a_message_is_not_known_by_the_connection_after_its_own(given: Given):
    message = event()
    given.network.pause()
    publishing = asyncio.create_task(given.bus.publish(message))
    await asyncio.sleep(0)
    asking = asyncio.create_task(given.bus.routed(message))
    await asyncio.sleep(0.05)
    given.network.cut()
    given.network.heal()
    for task in (publishing, asking):
        with pytest.raises(BusUnavailableError):
            await task
    again = asyncio.create_task(given.bus.publish(event()))
    assert not await given.bus.routed(message)
    await again


async def test_what_must_not_come_before_another_is_published_on_its_connection_only(given: Given):
    """A lost connection is restored, and whoever publishes waits for that."""
    first, second = event("first"), replace(event("second"), behind="first")
    given.network.pause()
    publishing = asyncio.create_task(given.bus.publish(first))
    await asyncio.sleep(0.05)
    following = asyncio.create_task(given.bus.publish(second))
    await asyncio.sleep(0.05)
    given.network.heal()
    await asyncio.gather(publishing, following)
    assert await given.arrived() == ["first", "second"]

    given.network.pause()
    publishing = asyncio.create_task(given.bus.publish(first))
    await asyncio.sleep(0.05)
    given.network.cut()
    given.network.heal()
    with pytest.raises(BusUnavailableError):
        await publishing
    async with asyncio.timeout(30):
        while given.bus.problem() or not await published(given.bus, event("third")):
            await asyncio.sleep(0.02)
    with pytest.raises(BusUnavailableError, match="comes first"):
        await given.bus.publish(second)
    assert await given.arrived() == ["first", "second", "third"]


async def published(bus: RabbitBus, message: Outgoing) -> bool:
    with contextlib.suppress(BusUnavailableError):
        await bus.publish(message)
        return True
    return False
