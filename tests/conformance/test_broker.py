"""One suite for the embedded broker and for RabbitMQ: what the system relies on, seen through aio-pika.

RabbitMQ's own words: https://www.rabbitmq.com/docs/quorum-queues, /docs/dlx, /docs/direct-reply-to
"""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import (
    AMQPError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
)
from faststream import AckPolicy
from faststream.rabbit import RabbitBroker, RabbitMessage, RabbitQueue

from support.rabbitmq import free_port, installed, private_rabbitmq, speaks_amqp

Connection = AbstractConnection
QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}


@pytest.fixture
async def connection(amqp_url: str) -> AsyncIterator[Connection]:
    async with await aio_pika.connect(amqp_url) as connection:
        yield connection


@pytest.fixture
async def channel(connection: Connection) -> AbstractChannel:
    return await connection.channel(on_return_raises=True)


@asynccontextmanager
async def a_queue(channel: AbstractChannel, **arguments: Any) -> AsyncIterator[AbstractQueue]:
    """A durable queue of the test's own, deleted at its end."""
    queue = await channel.declare_queue(
        f"t.{uuid4()}",
        durable=True,
        arguments={key.replace("_", "-"): value for key, value in arguments.items()},
    )
    try:
        yield queue
    finally:
        async with asyncio.timeout(60):
            await queue.channel.queue_delete(queue.name)


@asynccontextmanager
async def an_exchange(channel: AbstractChannel, kind: str) -> AsyncIterator[aio_pika.abc.AbstractExchange]:
    exchange = await channel.declare_exchange(f"t.{uuid4()}", kind, durable=True)
    yield exchange
    await channel.exchange_delete(exchange.name)


async def put(channel: AbstractChannel, queue: AbstractQueue, *bodies: str, **properties: Any) -> None:
    for body in bodies:
        message = aio_pika.Message(body.encode(), delivery_mode=2, **properties)
        await channel.default_exchange.publish(message, queue.name)


async def take(queue: AbstractQueue, seconds: float = 10) -> AbstractIncomingMessage:
    async with asyncio.timeout(seconds):
        while (message := await queue.get(fail=False)) is None:
            await asyncio.sleep(0.02)
    return message


async def bodies(queue: AbstractQueue, count: int) -> list[str]:
    found = []
    for _ in range(count):
        message = await take(queue)
        await message.ack()
        found.append(message.body.decode())
    return found


# -- routing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#", "", True),
        ("#.c", "a.b.c", True),
        ("*.b.#", "a.b", True),
        ("*", "", False),
        ("a.#.c", "a.c", True),
        ("a.#.c", "a.b.b.c", True),
        ("a.b", "a", False),
    ],
)
async def test_topics_match_by_words(channel: AbstractChannel, pattern: str, key: str, matches: bool):
    async with an_exchange(channel, "topic") as exchange, a_queue(channel) as queue:
        await queue.bind(exchange, pattern)
        if matches:
            await exchange.publish(aio_pika.Message(b"x"), key)
            assert await bodies(queue, 1) == ["x"]
        else:
            with pytest.raises(DeliveryError):
                await exchange.publish(aio_pika.Message(b"x"), key)


async def test_direct_and_fanout_reach_each_queue_once(channel: AbstractChannel):
    async with (
        an_exchange(channel, "direct") as direct,
        an_exchange(channel, "fanout") as fanout,
        a_queue(channel) as one,
        a_queue(channel) as two,
    ):
        await one.bind(direct, "k")
        await one.bind(fanout, "x")
        await one.bind(fanout, "y")
        await two.bind(fanout)
        await direct.publish(aio_pika.Message(b"d"), "k")
        await fanout.publish(aio_pika.Message(b"f"), "whatever")
        assert await bodies(one, 2) == ["d", "f"]
        assert await bodies(two, 1) == ["f"]
        assert await one.get(fail=False) is None


async def test_what_no_queue_takes_comes_back_and_the_channel_lives(channel: AbstractChannel):
    with pytest.raises(DeliveryError):
        await channel.default_exchange.publish(aio_pika.Message(b"x"), "no such queue")
    await channel.default_exchange.publish(aio_pika.Message(b"x"), "no such queue", mandatory=False)
    async with a_queue(channel) as queue:
        await put(channel, queue, "y")


async def test_publishing_to_a_missing_exchange_closes_the_channel(channel: AbstractChannel):
    exchange = await channel.get_exchange("no such exchange", ensure=False)
    with pytest.raises((ChannelClosed, ChannelNotFoundEntity)):
        await exchange.publish(aio_pika.Message(b"x"), "k")


# -- declaring --------------------------------------------------------------------------------------------


async def test_declaring_again_with_other_arguments_is_refused_by_name(
    connection: Connection, channel: AbstractChannel
):
    async with a_queue(channel, **QUORUM, x_delivery_limit=3) as queue:
        await channel.declare_queue(queue.name, durable=True, arguments={**QUORUM, "x-delivery-limit": 3})
        other = await connection.channel()
        with pytest.raises(ChannelPreconditionFailed) as raised:
            await other.declare_queue(queue.name, durable=True, arguments={**QUORUM, "x-delivery-limit": 4})
        assert queue.name in str(raised.value)
        assert "x-delivery-limit" in str(raised.value)


async def test_what_does_not_exist_is_not_found(connection: Connection):
    for ask in ("declare_queue", "declare_exchange"):
        channel = await connection.channel()
        with pytest.raises(ChannelNotFoundEntity):
            await getattr(channel, ask)(f"t.{uuid4()}", passive=True)


@pytest.mark.parametrize(
    "wrong", [{"exclusive": True}, {"auto_delete": True}, {"durable": False}, {"x-max-priority": 5}]
)
async def test_a_quorum_queue_refuses_what_it_cannot_keep(channel: AbstractChannel, wrong: dict[str, Any]):
    arguments = {**QUORUM, **{key: value for key, value in wrong.items() if key.startswith("x-")}}
    flags = {"durable": True, **{key: value for key, value in wrong.items() if not key.startswith("x-")}}
    with pytest.raises((ChannelClosed, AMQPError)):
        await channel.declare_queue(f"t.{uuid4()}", arguments=arguments, **flags)


async def test_an_exclusive_queue_is_its_connections_own_and_goes_with_it(
    amqp_url: str, channel: AbstractChannel
):
    async with await aio_pika.connect(amqp_url) as other:
        mine = await (await other.channel()).declare_queue(exclusive=True)
        assert mine.name
        with pytest.raises(AMQPError):
            await channel.declare_queue(mine.name, passive=True)
    async with await aio_pika.connect(amqp_url) as third:
        with pytest.raises(ChannelNotFoundEntity):
            await (await third.channel()).declare_queue(mine.name, passive=True)


# -- consuming --------------------------------------------------------------------------------------------


class Consumer:
    """Collects deliveries and leaves them unacknowledged."""

    def __init__(self) -> None:
        self.got: list[AbstractIncomingMessage] = []
        self.arrived = asyncio.Condition()

    async def __call__(self, message: AbstractIncomingMessage) -> None:
        async with self.arrived:
            self.got.append(message)
            self.arrived.notify_all()

    async def until(self, count: int) -> list[AbstractIncomingMessage]:
        async with asyncio.timeout(60), self.arrived:
            await self.arrived.wait_for(lambda: len(self.got) >= count)
        return self.got

    @property
    def bodies(self) -> list[str]:
        return [message.body.decode() for message in self.got]


@pytest.mark.parametrize("arguments", [{}, QUORUM], ids=["classic", "quorum"])
async def test_prefetch_is_honoured(channel: AbstractChannel, arguments: dict[str, Any]):
    async with a_queue(channel, **arguments) as queue:
        await put(channel, queue, *"abcdef")
        await channel.set_qos(prefetch_count=2)
        consumer = Consumer()
        await queue.consume(consumer)
        await consumer.until(2)
        await asyncio.sleep(0.2)
        assert consumer.bodies == ["a", "b"]
        await consumer.got[0].ack()
        await consumer.until(3)
        await asyncio.sleep(0.1)
        assert consumer.bodies == ["a", "b", "c"]


@pytest.mark.parametrize("arguments", [{}, QUORUM], ids=["classic", "quorum"])
async def test_what_comes_back_is_redelivered(channel: AbstractChannel, arguments: dict[str, Any]):
    async with a_queue(channel, **arguments) as queue:
        await put(channel, queue, "a")
        first = await take(queue)
        assert not first.redelivered
        await first.nack(requeue=True)
        second = await take(queue)
        assert second.redelivered
        await second.ack()


async def test_what_was_unacknowledged_comes_back_when_the_connection_goes(
    amqp_url: str, channel: AbstractChannel
):
    async with a_queue(channel, **QUORUM) as queue:
        await put(channel, queue, "a", "b")
        async with await aio_pika.connect(amqp_url) as dying:
            consumer = Consumer()
            await (await (await dying.channel()).get_queue(queue.name)).consume(consumer)
            await consumer.until(2)
        again = [await take(queue) for _ in range(2)]
        assert [message.body for message in again] == [b"a", b"b"]
        assert all(message.redelivered for message in again)


async def test_two_consumers_share(amqp_url: str, channel: AbstractChannel):
    async with a_queue(channel) as queue, await aio_pika.connect(amqp_url) as other:
        one, two = Consumer(), Consumer()
        await queue.consume(one)
        await (await (await other.channel()).get_queue(queue.name)).consume(two)
        await put(channel, queue, *(str(n) for n in range(10)))
        await one.until(5)
        await two.until(5)
        assert sorted(one.bodies + two.bodies, key=int) == [str(n) for n in range(10)]


async def test_a_single_active_consumer_is_followed_by_the_next(amqp_url: str, channel: AbstractChannel):
    async with a_queue(channel, **QUORUM, x_single_active_consumer=True) as queue:
        first, second = Consumer(), Consumer()
        tag = await queue.consume(first, no_ack=True)
        dying = await aio_pika.connect(amqp_url)
        await (await (await dying.channel()).get_queue(queue.name)).consume(second, no_ack=True)
        await put(channel, queue, "a")
        await first.until(1)
        await queue.cancel(tag)
        await put(channel, queue, "b")
        await second.until(1)
        await dying.close()
        standby = Consumer()
        await queue.consume(standby, no_ack=True)
        await put(channel, queue, "c")
        await standby.until(1)
        assert (first.bodies, second.bodies, standby.bodies) == (["a"], ["b"], ["c"])


async def test_acknowledged_is_gone_and_purged_too(channel: AbstractChannel):
    async with a_queue(channel) as queue:
        await put(channel, queue, "a", "b", "c")
        assert await bodies(queue, 1) == ["a"]
        await queue.purge()
        assert await queue.get(fail=False) is None


# -- dead letters, limits and delays ----------------------------------------------------------------------


@asynccontextmanager
async def a_grave(channel: AbstractChannel) -> AsyncIterator[tuple[AbstractQueue, dict[str, Any]]]:
    """A dead-letter queue, and the arguments that lead there."""
    async with an_exchange(channel, "fanout") as exchange, a_queue(channel, **QUORUM) as grave:
        await grave.bind(exchange)
        yield grave, {"x-dead-letter-exchange": exchange.name}


def death(message: AbstractIncomingMessage) -> dict[str, Any]:
    deaths: Any = message.headers["x-death"]
    return dict(deaths[0])


async def test_a_limit_of_three_is_four_deliveries(channel: AbstractChannel):
    async with (
        a_grave(channel) as (grave, arguments),
        a_queue(channel, **QUORUM, **arguments, x_delivery_limit=3) as queue,
    ):
        await put(channel, queue, "poison", "fine")
        for expected in range(4):
            message = await take(queue)
            assert message.body == b"poison"
            assert message.headers.get("x-delivery-count", 0) == expected
            await message.nack(requeue=True)
        assert await bodies(queue, 1) == ["fine"]
        dead = await take(grave)
        assert (death(dead)["reason"], death(dead)["queue"]) == ("delivery_limit", queue.name)
        await dead.ack()


async def test_what_is_rejected_is_dead_lettered_with_its_story(channel: AbstractChannel):
    async with a_grave(channel) as (grave, arguments), a_queue(channel, **QUORUM, **arguments) as queue:
        await put(channel, queue, "a", headers={"mine": "kept"}, message_id="m-1", correlation_id="c-1")
        await (await take(queue)).reject(requeue=False)
        dead = await take(grave)
        assert (death(dead)["reason"], death(dead)["count"]) == ("rejected", 1)
        assert dead.headers["x-first-death-queue"] == queue.name
        assert (dead.headers["mine"], dead.message_id, dead.correlation_id) == ("kept", "m-1", "c-1")
        await dead.ack()


async def test_a_waiting_queue_gives_back_after_its_time(channel: AbstractChannel):
    async with a_queue(channel, **QUORUM) as work:
        back = {"x-message-ttl": 300, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": work.name}
        safely = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
        async with a_queue(channel, **QUORUM, **back, **safely) as waiting:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await put(channel, waiting, "a", "b")
            assert await bodies(work, 2) == ["a", "b"]
            assert loop.time() - began >= 0.25


async def test_a_full_queue_that_rejects_says_no(channel: AbstractChannel):
    async with a_queue(channel, x_max_length=1, x_overflow="reject-publish") as queue:
        await put(channel, queue, "a")
        with pytest.raises(DeliveryError):
            await put(channel, queue, "b")
        assert await bodies(queue, 1) == ["a"]
        await put(channel, queue, "c")


# -- requests and replies ---------------------------------------------------------------------------------


async def test_direct_reply_to_reaches_the_asker_from_another_connection(
    amqp_url: str, channel: AbstractChannel
):
    async with a_queue(channel) as requests, await aio_pika.connect(amqp_url) as asking:
        asker = await asking.channel()
        replies = Consumer()
        await (await asker.get_queue("amq.rabbitmq.reply-to", ensure=False)).consume(replies, no_ack=True)
        await put(asker, requests, "?", reply_to="amq.rabbitmq.reply-to", correlation_id="c-1")
        request = await take(requests)
        await request.ack()
        assert request.reply_to
        assert request.reply_to != "amq.rabbitmq.reply-to"
        answer = aio_pika.Message(b"!", correlation_id="c-1")
        exchange = channel.default_exchange
        await exchange.publish(answer, request.reply_to, mandatory=False)
        (got,) = await replies.until(1)
        assert (got.body, got.correlation_id) == (b"!", "c-1")
        with pytest.raises(DeliveryError):  # not a queue: it comes back, although it arrived
            await exchange.publish(answer, request.reply_to, mandatory=True)
        await replies.until(2)
        await asking.close()
        await asyncio.sleep(0.1)
        await exchange.publish(answer, request.reply_to, mandatory=False)


async def test_a_forged_user_is_refused_and_the_own_one_passed_on(connection: Connection):
    channel = await connection.channel()
    async with a_queue(channel) as queue:
        await put(channel, queue, "a", user_id="guest")
        message = await take(queue)
        await message.ack()
        assert message.user_id == "guest"
        forging = await connection.channel()
        with pytest.raises(AMQPError):
            await put(forging, queue, "b", user_id="somebody")


async def test_faststream_consumes_and_acknowledges_by_hand(amqp_url: str, channel: AbstractChannel):
    async with a_queue(channel, **QUORUM) as queue:
        broker = RabbitBroker(amqp_url, logger=None, apply_types=False)
        attempts: list[bool] = []

        async def whole(message: RabbitMessage) -> RabbitMessage:
            return message

        @broker.subscriber(
            RabbitQueue(queue.name, declare=False), ack_policy=AckPolicy.MANUAL, decoder=whole, no_reply=True
        )
        async def handle(message: RabbitMessage) -> None:
            attempts.append(bool(message.raw_message.redelivered))
            await (message.ack() if len(attempts) > 1 else message.nack())

        await broker.start()
        await put(channel, queue, "a")
        async with asyncio.timeout(60):
            while len(attempts) < 2:
                await asyncio.sleep(0.02)
        await broker.stop()
        assert attempts == [False, True]
        assert await queue.get(fail=False) is None


# -- bodies, headers, order -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 1_000_000, 5_000_000])
async def test_bodies_of_any_size_arrive_whole(channel: AbstractChannel, size: int):
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with a_queue(channel) as queue:
        await channel.default_exchange.publish(aio_pika.Message(body), queue.name)
        message = await take(queue)
        await message.ack()
        assert message.body == body


async def test_headers_of_all_kinds_arrive(channel: AbstractChannel):
    headers: Any = {
        "text": "ä",
        "number": 7,
        "big": 2**40,
        "yes": True,
        "list": [1, "a"],
        "table": {"a": {"b": 1}},
        "none": None,
    }
    async with a_queue(channel) as queue:
        await put(channel, queue, "a", headers=headers)
        message = await take(queue)
        await message.ack()
        assert message.headers == headers


async def test_a_thousand_confirmed_messages_keep_their_order(channel: AbstractChannel):
    async with a_queue(channel, **QUORUM) as queue:
        exchange = channel.default_exchange
        sent = [aio_pika.Message(str(n).encode(), delivery_mode=2) for n in range(1000)]
        await asyncio.gather(*(exchange.publish(message, queue.name) for message in sent))
        consumer = Consumer()
        await queue.consume(consumer, no_ack=True)
        await consumer.until(1000)
        assert consumer.bodies == [str(n) for n in range(1000)]


# -- restarts ---------------------------------------------------------------------------------------------


class Restartable(Protocol):
    """A broker of the test's own."""

    @property
    def url(self) -> str: ...
    def crash_and_start(self) -> None: ...


class EmbeddedProcess:
    """The embedded broker in a process, killed with -9 and started on the same port and folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}/"
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "cml_embedded.amqp_broker",
                "--port",
                str(self._port),
                "--data-dir",
                self._folder,
            ],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        assert speaks_amqp("127.0.0.1", self._port)

    def close(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def crash_and_start(self) -> None:
        self.close()
        self.start()


class CrashingRabbitMQ:
    """RabbitMQ, likewise."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url = server.url

    def crash_and_start(self) -> None:
        self._server.kill()
        self._server.start()


@contextmanager
def restartable(kind: str, folder: Path) -> Iterator[Restartable]:
    if kind == "embedded":
        process = EmbeddedProcess(folder)
        try:
            yield process
        finally:
            process.close()
    else:
        with private_rabbitmq(folder) as server:
            yield CrashingRabbitMQ(server)


@pytest.mark.parametrize("kind", ["embedded", "rabbitmq"])
async def test_what_was_confirmed_survives_a_crash(request: pytest.FixtureRequest, tmp_path: Path, kind: str):
    if kind == "rabbitmq" and not installed():
        request.getfixturevalue("rabbitmq_url")  # says why there is none
        pytest.skip("a RabbitMQ that may be killed needs an installed server")
    with restartable(kind, tmp_path / "broker") as broker:
        async with await aio_pika.connect(broker.url) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange("kept", "topic", durable=True)
            queue = await channel.declare_queue("work", durable=True, arguments=QUORUM)
            await queue.bind(exchange, "k.#")
            back: dict[str, Any] = {
                "x-message-ttl": 500,
                "x-dead-letter-exchange": "kept",
                "x-dead-letter-routing-key": "k.back",
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
            await channel.declare_queue("waiting", durable=True, arguments={**QUORUM, **back})
            await asyncio.sleep(
                1
            )  # a RabbitMQ that is killed within half a second forgets a new quorum queue
            for body in ("a", "b", "c"):
                await exchange.publish(aio_pika.Message(body.encode(), delivery_mode=2), "k.x")
            assert await bodies(queue, 1) == ["a"]
            held = await take(queue)
            assert held.body == b"b"
            await put(channel, await channel.get_queue("waiting"), "later")
            await asyncio.sleep(0.3)
            await asyncio.to_thread(broker.crash_and_start)
        async with await aio_pika.connect(broker.url) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue("work")
            seen = [await take(queue, 20) for _ in range(3)]
            assert await queue.get(fail=False) is None
            assert sorted(message.body for message in seen) == [b"b", b"c", b"later"]
            assert {m.body: m.redelivered for m in seen}[b"b"]
            exchange = await channel.declare_exchange("kept", "topic", durable=True)
            await exchange.publish(aio_pika.Message(b"d", delivery_mode=2), "k.y")
            assert (await take(queue)).body == b"d"
