"""Queues of one sender alone: they are read beside that of all, and what is published again of their messages goes the way of all."""

import asyncio
from collections.abc import AsyncIterator

import aio_pika
import pytest
from yarl import URL

from cml_contracts.topology import COMMANDS_EXCHANGE, Exchange, own_exchange
from cml_workers.bus.deaths import death_of
from cml_workers.bus.headers import DEATH_HEADER, QUEUE_HEADER
from cml_workers.bus.port import Ack, DeadLetter, Message, Retry, TopologyError, Verdict
from cml_workers.bus.rabbit import RabbitBus, declare_topology, verify_topology
from cml_workers.bus.rabbit import own_queues as own_queues_module
from cml_workers.bus.topology import (
    DELIVERY_LIMIT,
    LIFECYCLE_COMMANDS,
    PROJECTOR_QUERIES,
    RETRY_DELAYS,
    counts_as,
    own_queues,
)
from cml_workers.bus.usage import EVERYTHING, Usage
from support.recorder import Recorder, dead_letter
from support.tcp_proxy import TcpProxy
from support.waiting import until

SENDERS = ("ann", "ben")
KIND = "cml.worker.start.v1"
COMMANDS, QUERIES = own_queues("ann")


@pytest.fixture
async def broker(empty: str) -> AsyncIterator[str]:
    """With the queues of two senders."""
    await declare_topology(empty, EVERYTHING.with_own(SENDERS))
    yield empty
    async with await aio_pika.connect(empty) as connection:
        channel = await connection.channel()
        for queue in (each for user in SENDERS for each in own_queues(user)):
            await channel.queue_delete(queue.name)
            await channel.exchange_delete(queue.bindings[0].exchange.name)


async def sent(url: str, *to: Exchange) -> list[str]:
    """A command to each; their ids."""
    ids = [f"{number} {exchange.name}" for number, exchange in enumerate(to)]
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(on_return_raises=True)
        for message_id, exchange in zip(ids, to, strict=True):
            message = aio_pika.Message(b"{}", message_id=message_id, type=KIND, user_id=connection.url.user)
            await (await channel.get_exchange(exchange.name, ensure=False)).publish(message, KIND)
    return ids


def reading(
    url: str, handler: Recorder, *, prefetch: int = 10, of_sender: int = 1, declare: bool = True
) -> RabbitBus:
    uses = Usage((LIFECYCLE_COMMANDS,)).with_own(SENDERS)
    bus = RabbitBus(url, name="test", uses=uses, declare=declare)
    bus.consume(LIFECYCLE_COMMANDS, handler, prefetch=prefetch, of_sender=of_sender)
    return bus


OF_ANN, OF_BEN = (own_exchange(COMMANDS_EXCHANGE, user) for user in SENDERS)


async def test_the_queues_of_all_and_of_each_sender_are_read_at_once(broker: str, recorder: Recorder):
    ids = await sent(broker, COMMANDS_EXCHANGE, OF_ANN, OF_BEN)
    async with reading(broker, recorder):
        assert {each.message_id for each in await recorder.until(3)} == set(ids)


async def test_who_has_sent_much_keeps_nobody_else_waiting(broker: str, recorder: Recorder):
    """The first are what was delivered before the other sender's queue was read; then each has its turn."""
    await sent(broker, *[OF_ANN] * 200)
    (of_ben,) = await sent(broker, OF_BEN)

    async def slowly(_message: Message) -> Verdict:
        await asyncio.sleep(0.02)
        return Ack()

    recorder.answer = slowly
    async with reading(broker, recorder, of_sender=2):
        seen = [each.message_id for each in await recorder.until(201)]
    assert seen.index(of_ben) < 20


async def test_no_more_of_one_sender_are_handled_at_once_than_its_share(broker: str, recorder: Recorder):
    under_way = most = 0

    async def counted(_message: Message) -> Verdict:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        under_way -= 1
        return Ack()

    recorder.answer = counted
    await sent(broker, *[OF_ANN] * 20)
    async with reading(broker, recorder, of_sender=3):
        await recorder.until(20)
    assert most == 3


async def test_a_retried_command_comes_back_as_its_sender_s(broker: str, recorder: Recorder):
    async def once(message: Message) -> Verdict:
        return Ack() if message.attempt else Retry(RETRY_DELAYS[0])

    recorder.answer = once
    async with reading(broker, recorder) as bus:
        await sent(broker, OF_ANN)
        first, again = await recorder.until(2)
        assert (first.message_id, first.user_id, first.attempt) == (again.message_id, bus.user, 0)
        assert (again.user_id, again.attempt) == (bus.user, 1)


async def test_a_dead_letter_names_the_queue_of_all(broker: str, recorder: Recorder):
    async def refuse(_message: Message) -> Verdict:
        return DeadLetter("no", "No")

    recorder.answer = refuse
    async with reading(broker, recorder):
        await sent(broker, OF_ANN)
        assert (await dead_letter(broker)).headers[QUEUE_HEADER] == LIFECYCLE_COMMANDS.name


async def test_so_does_one_of_the_delivery_limit(broker: str):
    await sent(broker, OF_ANN)
    async with await aio_pika.connect(broker) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(COMMANDS.name, ensure=False)
        for _ in range(DELIVERY_LIMIT + 1):
            async with asyncio.timeout(10):
                while (message := await queue.get(fail=False)) is None:
                    await asyncio.sleep(0.01)
            await message.reject(requeue=True)
    died = await dead_letter(broker)
    assert QUEUE_HEADER not in died.headers
    death = death_of(died.headers)
    assert (death.queue, death.cause) == (LIFECYCLE_COMMANDS.name, "DeliveryLimit")
    assert DEATH_HEADER in death.headers


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_queues_module, "LOOKS_EVERY", 0.1)
    monkeypatch.setattr(own_queues_module, "AGAIN", 0.1)


@pytest.mark.usefixtures("soon")
async def test_a_sender_s_queue_that_is_missing_keeps_nobody_else_waiting(broker: str, recorder: Recorder):
    """When the role starts and when the queue is deleted while it runs; it is read as soon as it is there."""
    (of_ann,) = await sent(broker, OF_ANN)
    async with await aio_pika.connect(broker) as connection:
        channel = await connection.channel()
        ben = own_queues("ben")[0]
        await channel.queue_delete(ben.name)
        async with reading(broker, recorder, declare=False) as bus:
            assert (await recorder.until(1))[0].message_id == of_ann
            await until(lambda: "'cml.lifecycle.commands.ben' is missing" in (bus.warning() or ""))
            assert "CML_SENDERS" in str(bus.warning())
            assert bus.problem() is None
            for times in (1, 2):
                await declare_topology(broker, Usage((LIFECYCLE_COMMANDS,)).with_own(SENDERS))
                (of_ben,) = await sent(broker, OF_BEN)
                assert (await recorder.until(2 * times))[-1].message_id == of_ben
                assert bus.warning() is None
                await channel.queue_delete(ben.name)
                await until(lambda: "'cml.lifecycle.commands.ben' is missing" in (bus.warning() or ""))
                (of_all,) = await sent(broker, COMMANDS_EXCHANGE)
                assert (await recorder.until(2 * times + 1))[-1].message_id == of_all
            assert bus.problem() is None
            assert not bus.consuming.done()


@pytest.mark.usefixtures("soon")
async def test_a_lost_connection_is_restored_though_a_sender_s_queue_is_missing(
    broker: str, recorder: Recorder
):
    async with await aio_pika.connect(broker) as connection:
        await (await connection.channel()).queue_delete(own_queues("ben")[0].name)
    async with (
        TcpProxy(URL(broker).port or 5672) as network,
        reading(network.through(broker), recorder, declare=False) as bus,
    ):
        await sent(broker, OF_ANN, COMMANDS_EXCHANGE)
        await recorder.until(2)
        await network.outage(1)
        await sent(broker, OF_ANN, COMMANDS_EXCHANGE)
        await recorder.until(4)
        await until(lambda: bus.problem() is None)
        await until(lambda: "'cml.lifecycle.commands.ben' is missing" in (bus.warning() or ""))


async def test_a_sender_whose_queue_is_missing_is_named_with_the_remedy(broker: str):
    with pytest.raises(TopologyError, match=r"'cml\.lifecycle\.commands\.eve' is missing.*CML_SENDERS"):
        await verify_topology(broker, Usage((LIFECYCLE_COMMANDS,)).with_own([*SENDERS, "eve"]))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        (COMMANDS.name, LIFECYCLE_COMMANDS.name),
        (QUERIES.name, PROJECTOR_QUERIES.name),
        (LIFECYCLE_COMMANDS.name, LIFECYCLE_COMMANDS.name),
        (LIFECYCLE_COMMANDS.retry_queue(1), None),
        ("cml.dead-letters.ann", None),
        ("", None),
    ],
)
def test_which_queue_a_name_counts_as(name: str, counts: str | None):
    assert counts_as(name) == counts
