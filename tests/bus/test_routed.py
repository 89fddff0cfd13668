"""Many messages at once, and whether one that is published and not confirmed has been routed: on both brokers, over a network that
stalls and breaks.
"""

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
from cml_workers.bus.rabbit import RabbitBus, line
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
        while (message := await self.taken()) is not None:
            self._seen.append(message.message_id)
        return self._seen

    async def taken(self) -> aio_pika.abc.AbstractIncomingMessage | None:
        """The next message, if there is one."""
        return await self._queue.get(no_ack=True, fail=False)

    async def written(self) -> int:
        """Messages that the connection was given, and that are not confirmed."""
        channel = await (await self.bus._publisher._channel()).get_underlay_channel()
        return len(channel.message_id_delivery_tag)


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
    publishing = asyncio.ensure_future(given.bus.publish(message))
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
        publishing = [asyncio.ensure_future(given.bus.publish(each)) for each in messages]
        await asyncio.sleep(0)
        routed = await asyncio.gather(*(given.bus.routed(each) for each in messages))
        said |= {message.message_id for message, is_so in zip(messages, routed, strict=True) if is_so}
        assert said <= {*await given.arrived()}
        await asyncio.gather(*publishing)
    assert said


async def test_a_message_is_not_known_by_the_connection_after_its_own(given: Given):
    message = event()
    given.network.pause()
    publishing = asyncio.ensure_future(given.bus.publish(message))
    await asyncio.sleep(0)
    asking = asyncio.create_task(given.bus.routed(message))
    await asyncio.sleep(0.05)
    given.network.cut()
    given.network.heal()
    for task in (publishing, asking):
        with pytest.raises(BusUnavailableError):
            await task
    assert not await given.bus.routed(message)
    await until_published(given.bus, event())
    assert not await given.bus.routed(message)


async def test_what_must_not_come_before_another_is_published_on_its_connection_only(given: Given):
    """A lost connection is restored, and whoever publishes waits for that."""
    first, second = event("first"), replace(event("second"), behind="first")
    given.network.pause()
    publishing = asyncio.ensure_future(given.bus.publish(first))
    await asyncio.sleep(0.05)
    following = asyncio.ensure_future(given.bus.publish(second))
    await asyncio.sleep(0.05)
    given.network.heal()
    await asyncio.gather(publishing, following)
    assert await given.arrived() == ["first", "second"]

    given.network.pause()
    publishing = asyncio.ensure_future(given.bus.publish(first))
    await asyncio.sleep(0.05)
    given.network.cut()
    given.network.heal()
    with pytest.raises(BusUnavailableError):
        await publishing
    await until_published(given.bus, event("third"))
    with pytest.raises(BusUnavailableError, match="comes first"):
        await given.bus.publish(second)
    assert await given.arrived() == ["first", "second", "third"]


async def until_published(bus: RabbitBus, message: Outgoing) -> None:
    """Once, when there is a connection again."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(BusUnavailableError):
                await bus.publish(message)
                return
            await asyncio.sleep(0.02)


async def test_many_at_once_arrive_in_the_order_in_which_they_were_published(given: Given):
    messages = [event(f"{number}") for number in range(1_000)]
    await asyncio.gather(*(given.bus.publish(each) for each in messages))
    assert await given.arrived() == [each.message_id for each in messages]


async def test_none_of_many_is_taken_for_confirmed_that_was_lost_with_the_connection(given: Given):
    """And none arrives behind a lost one: it might be of the same worker."""
    first = [event(f"first {number}") for number in range(20)]
    lost = [event(f"lost {number}") for number in range(200)]
    await asyncio.gather(*(given.bus.publish(each) for each in first))
    given.network.pause()
    publishing = [asyncio.ensure_future(given.bus.publish(each)) for each in lost]
    await asyncio.sleep(0.05)
    given.network.cut()
    given.network.heal()
    ended = await asyncio.gather(*publishing, return_exceptions=True)
    assert {type(each) for each in ended} == {BusUnavailableError}
    await until_published(given.bus, event("again"))
    *before, last = await given.arrived()
    assert before == [each.message_id for each in [*first, *lost]][: len(before)]
    assert last == "again"


async def test_a_connection_that_takes_nothing_is_not_given_ever_more(
    given: Given, monkeypatch: pytest.MonkeyPatch
):
    """As when RabbitMQ has an alarm, which may last for hours."""
    monkeypatch.setattr(line, "UNDRAINED", 3)
    large = [Outgoing(EVENTS_EXCHANGE, "e", b" " * 3_000_000, "e", f"{n}", mandatory=False) for n in range(3)]
    small = [event(f"{number}") for number in range(3, 50)]
    given.network.pause()
    tasks = [asyncio.ensure_future(given.bus.publish(each)) for each in large]
    await asyncio.sleep(0.2)
    tasks += [asyncio.ensure_future(given.bus.publish(each)) for each in small]
    await asyncio.sleep(0.2)
    assert await given.written() == 3, "the others wait for the connection to take those"
    given.network.heal()
    await asyncio.gather(*tasks)
    assert await given.arrived() == [each.message_id for each in [*large, *small]]


async def test_a_message_has_the_properties_that_it_was_given_and_no_correlation_id_of_ours(given: Given):
    await given.bus.publish(replace(event("m-1"), headers={"traceparent": "00-a-b-01"}, content_type=None))
    message = await given.taken()
    assert message is not None
    assert (message.message_id, message.type, message.headers) == ("m-1", "e", {"traceparent": "00-a-b-01"})
    assert (message.content_type, message.correlation_id, message.reply_to) == (None, None, None)
    assert (message.app_id, message.delivery_mode) == ("test", aio_pika.DeliveryMode.PERSISTENT)
    assert message.timestamp is not None


async def test_what_is_not_answered_in_time_may_not_have_arrived(
    given: Given, monkeypatch: pytest.MonkeyPatch
):
    """And what is published after it is given its own time."""
    monkeypatch.setattr(line, "CONFIRM_TIMEOUT", 0.5)
    await given.bus.publish(event())
    given.network.pause()
    first = asyncio.ensure_future(given.bus.publish(event("first")))
    await asyncio.sleep(0.3)
    second = asyncio.ensure_future(given.bus.publish(event("second")))
    with pytest.raises(BusUnavailableError, match=r"no answer within 0\.5 s"):
        await first
    assert not second.done()
    with pytest.raises(BusUnavailableError, match=r"no answer within 0\.5 s"):
        await second
    given.network.heal()
    await given.bus.publish(event("third"))
    assert (await given.arrived())[1:] == ["first", "second", "third"]


async def test_who_no_longer_waits_leaves_the_others_their_confirms(given: Given):
    await given.bus.publish(event())
    given.network.pause()
    messages = [event(f"{number}") for number in range(5)]
    publishing = [asyncio.ensure_future(given.bus.publish(each)) for each in messages]
    publishing[1].cancel()
    given.network.heal()
    await asyncio.gather(*(each for each in publishing if each is not publishing[1]))
    assert (await given.arrived())[1:] == [each.message_id for each in messages]
