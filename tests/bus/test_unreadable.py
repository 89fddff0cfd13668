"""Messages whose properties no library reads: each is a dead letter with its reason, and delays nobody."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import aio_pika
import pytest

from cml_workers.bus.direct_reply import DirectReplies
from cml_workers.bus.port import Ack, DeadLetter, Message, Outgoing, Verdict
from cml_workers.bus.rabbit import RabbitBus, declare_topology
from cml_workers.bus.topology import DEAD_LETTER_EXCHANGE, LIFECYCLE_COMMANDS, PROJECTOR_QUERIES, Queue
from support.plain_amqp import PlainAmqp
from support.raw_amqp import Bytes, RawAmqp, Seconds, nested

Answer = Callable[[Message], Awaitable[Verdict]]
NO_TEXT = Bytes(b"\xff\xfe\xed\xa0\x80")
YEAR_292_277_026_596 = Seconds.of(2**63 - 1)


class Consumer:
    """A bus that answers as told, and the dead letters of this moment."""

    def __init__(self, dead: aio_pika.abc.AbstractQueue) -> None:
        self._dead = dead
        self.bus: RabbitBus
        self.seen: asyncio.Queue[Message] = asyncio.Queue()
        self.answer: Answer = self.done

    async def done(self, _message: Message) -> Verdict:
        return Ack()

    async def __call__(self, message: Message) -> Verdict:
        try:
            return await self.answer(message)
        finally:
            self.seen.put_nowait(message)

    async def next(self) -> Message:
        async with asyncio.timeout(60):
            return await self.seen.get()

    async def dead_letter(self) -> aio_pika.abc.AbstractIncomingMessage:
        async with asyncio.timeout(40):
            while (message := await self._dead.get(fail=False, no_ack=True)) is None:
                await asyncio.sleep(0.05)
            return message


@pytest.fixture(params=[LIFECYCLE_COMMANDS, PROJECTOR_QUERIES], ids=lambda queue: queue.name)
def queue(request: pytest.FixtureRequest) -> Queue:
    """One that puts messages aside, and one that does not."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def consumer(rabbitmq_url: str, queue: Queue) -> AsyncIterator[Consumer]:
    await declare_topology(rabbitmq_url)
    async with await aio_pika.connect(rabbitmq_url) as connection:
        channel = await connection.channel()
        await (await channel.get_queue(queue.name)).purge()
        dead = await channel.declare_queue(exclusive=True)
        await dead.bind(DEAD_LETTER_EXCHANGE.name)
        consumer = Consumer(dead)
        consumer.bus = bus = RabbitBus(rabbitmq_url, name="test")
        bus.consume(queue, consumer, prefetch=10)
        async with bus:
            yield consumer
            assert bus.problem() is None


@pytest.fixture
async def stranger(rabbitmq_url: str) -> AsyncIterator[RawAmqp]:
    async with RawAmqp(rabbitmq_url) as stranger:
        yield stranger


@pytest.mark.parametrize(
    "properties",
    [
        {"correlation_id": NO_TEXT},
        {"reply_to": NO_TEXT},
        {"message_id": NO_TEXT},
        {"message_type": NO_TEXT},
        {"content_type": NO_TEXT},
        {"timestamp": YEAR_292_277_026_596},
        {"headers": {NO_TEXT: 1}},
        {"headers": {"when": YEAR_292_277_026_596}},
        {"headers": nested(3_000)},
        {"headers": {"large": "x" * 100_000}},
        {"headers": dict.fromkeys(map(str, range(15_000)))},
    ],
    ids="-".join,
)
async def test_properties_that_cannot_be_read_are_a_dead_letter_and_the_next_message_is_handled(
    consumer: Consumer, stranger: RawAmqp, queue: Queue, properties: dict[str, Any]
):
    body = uuid4().bytes
    await stranger.publish("", queue.name, body, **properties)
    await stranger.publish("", queue.name, b"well", message_id="next")
    kept = await consumer.dead_letter()
    assert kept.body == body
    assert "properties cannot be read" in str(kept.headers["x-cml-reason"])
    assert (await consumer.next()).message_id == "next"


async def test_a_routing_key_that_cannot_be_read_is_none(consumer: Consumer, stranger: RawAmqp, queue: Queue):
    exchange = queue.bindings[0].exchange.name
    await stranger.publish(exchange, NO_TEXT, b"{}", message_id="m-1")
    message = await consumer.next()
    assert (message.message_id, message.routing_key, message.type) == ("m-1", "", "")


async def test_what_travels_on_with_a_message_are_plain_headers_and_others_as_text(
    consumer: Consumer, stranger: RawAmqp, queue: Queue
):
    odd = {"table": {"a": 1}, "array": [1, [2]], "bytes": bytearray(b"\xff"), "void": None, "k" * 200: "long"}
    plain = {"text": "a\x00b", "number": 2**40, "yes": True, "real": 0.5}

    async def complaining(_message: Message) -> Verdict:
        return DeadLetter("\x1b[2J" + "why " * 50_000)

    consumer.answer = complaining
    await stranger.publish("", queue.name, b"{}", message_id="m-1", headers={**odd, **plain})
    kept = await consumer.dead_letter()
    reason = str(kept.headers["x-cml-reason"])
    assert kept.headers.items() >= plain.items()
    told = {name: str(value) for name, value in odd.items() if len(name) < 200}
    assert {name: kept.headers[name] for name in told} == told
    assert "k" * 200 not in kept.headers
    assert (len(reason), reason.isprintable()) == (1000, True)


def process(node: bytes = b"reply@1", *, tag: bytes = b"v", more: bytes = b"") -> str:
    """An Erlang process as it stands in the address of a direct reply."""
    length = len(node).to_bytes(1 if tag == b"w" else 2, "big")
    return base64.b64encode(b"\x83X" + tag + length + node + bytes(12) + more).decode()


@pytest.mark.parametrize(
    "address",
    [
        "x",
        "a.b",
        "AAAA.b",
        f"{process()}.key",
        f"{process(tag=b'w')}.key",
        f"{process(b'rabbit@gone')}.key",
        f"{process(more=b'x')}.key",
        f"{process(b'reply')}.key",
        "..g2EF..key..",
        "\N{GRINNING FACE}.key",
    ],
)
async def test_a_made_up_direct_reply_address_ends_no_connection(
    consumer: Consumer, stranger: RawAmqp, queue: Queue, address: str
):
    async def replying(message: Message) -> Verdict:
        await consumer.bus.publish(
            Outgoing(None, message.reply_to or "", b"", "t", "m-1/result", mandatory=False)
        )
        return Ack()

    consumer.answer = replying
    connection = consumer.bus._broker._connection
    for number in ("one", "two"):
        await stranger.publish(
            "", queue.name, b"{}", message_id=number, reply_to=f"amq.rabbitmq.reply-to.{address}"
        )
    assert [(await consumer.next()).message_id for _ in range(2)] == ["one", "two"]
    await consumer.bus.publish(Outgoing(None, queue.name, b"", "t", "three"))
    assert (await consumer.next()).message_id == "three"
    assert connection is not None
    assert consumer.bus._broker._connection is connection
    assert connection.connected.is_set()


async def test_a_direct_reply_arrives_and_the_node_is_asked_for_once(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    ask = DirectReplies._ask

    async def counted(self: DirectReplies, node: bytes, process: str) -> None:
        asked.append(node)
        await ask(self, node, process)

    monkeypatch.setattr(DirectReplies, "_ask", counted)
    async with PlainAmqp(rabbitmq_url, direct=True) as caller, RabbitBus(rabbitmq_url, name="test") as bus:
        inbox = await caller.channel.declare_queue(exclusive=True)
        for number in range(3):
            await caller.channel.default_exchange.publish(
                aio_pika.Message(b"", reply_to="amq.rabbitmq.reply-to"), inbox.name
            )
            address = (await inbox.get(no_ack=True)).reply_to or ""
            await bus.publish(Outgoing(None, address, b"{}", "t", "m", f"c-{number}", mandatory=False))
            assert await caller.replies_to(f"c-{number}") == [{}]
    assert len(asked) == 1


async def test_a_handler_that_fails_where_nothing_waits_leaves_a_dead_letter(
    rabbitmq_url: str, stranger: RawAmqp
):
    async def broken(_message: Message) -> Verdict:
        raise ValueError("a bug")

    await declare_topology(rabbitmq_url)
    async with await aio_pika.connect(rabbitmq_url) as connection:
        dead = await (await connection.channel()).declare_queue(exclusive=True)
        await dead.bind(DEAD_LETTER_EXCHANGE.name)
        bus = RabbitBus(rabbitmq_url, name="test")
        bus.consume(PROJECTOR_QUERIES, broken, prefetch=1)
        async with bus:
            await stranger.publish("", PROJECTOR_QUERIES.name, b"{}", message_id="m-1")
            assert "a bug" in str((await Consumer(dead).dead_letter()).headers["x-cml-reason"])


async def test_a_caller_whose_queue_refuses_replies_is_not_tried_for_ever(
    rabbitmq_url: str, stranger: RawAmqp, monkeypatch: pytest.MonkeyPatch
):
    attempts = []

    async def replying(message: Message) -> Verdict:
        attempts.append(message.attempt)
        await bus.publish(Outgoing(None, message.reply_to or "", b"", "t", "m-1/result", mandatory=False))
        return Ack()

    monkeypatch.setattr("cml_workers.bus.delivery.MAX_FAULTS", 3)
    await declare_topology(rabbitmq_url)
    async with await aio_pika.connect(rabbitmq_url) as connection:
        channel = await connection.channel()
        dead = await channel.declare_queue(exclusive=True)
        await dead.bind(DEAD_LETTER_EXCHANGE.name)
        full = await channel.declare_queue(
            exclusive=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"}
        )
        bus = RabbitBus(rabbitmq_url, name="test")
        bus.consume(LIFECYCLE_COMMANDS, replying, prefetch=1)
        async with bus:
            await stranger.publish("", LIFECYCLE_COMMANDS.name, b"{}", message_id="m-1", reply_to=full.name)
            reason = str((await Consumer(dead).dead_letter()).headers["x-cml-reason"])
    assert attempts == [0, 1, 2]
    assert "refuses it (3 times)" in reason
