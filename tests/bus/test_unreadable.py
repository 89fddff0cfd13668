"""Messages whose properties no library reads: each is a dead letter with its reason, and delays nobody."""

import asyncio
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from cml_workers.bus.port import Ack, DeadLetter, Message, Outgoing, Verdict
from cml_workers.bus.rabbit import RabbitBus, declare_topology
from cml_workers.bus.topology import DEAD_LETTER_EXCHANGE, LIFECYCLE_COMMANDS, PROJECTOR_QUERIES, Queue
from support.raw_amqp import Bytes, RawAmqp, Seconds, nested
from support.recorder import Recipient

NO_TEXT = Bytes(b"\xff\xfe\xed\xa0\x80")


YEAR_292_277_026_596 = Seconds.of(2**63 - 1)


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
    consumer: Recipient, stranger: RawAmqp, queue: Queue, properties: dict[str, Any]
):
    body = uuid4().bytes
    await stranger.publish("", queue.name, body, **properties)
    await stranger.publish("", queue.name, b"well", message_id="next")
    kept = await consumer.dead_letter()
    assert kept.body == body
    assert "properties cannot be read" in str(kept.headers["x-cml-reason"])
    assert (await consumer.next()).message_id == "next"


async def test_a_routing_key_that_cannot_be_read_is_none(
    consumer: Recipient, stranger: RawAmqp, queue: Queue
):
    exchange = queue.bindings[0].exchange.name
    await stranger.publish(exchange, NO_TEXT, b"{}", message_id="m-1")
    message = await consumer.next()
    assert (message.message_id, message.routing_key, message.type) == ("m-1", "", "")


async def test_what_travels_on_with_a_message_are_plain_headers_and_others_as_text(
    consumer: Recipient, stranger: RawAmqp, queue: Queue
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
    as_text = {name: str(value) for name, value in odd.items() if len(name) < 200}
    assert {name: kept.headers[name] for name in as_text} == as_text
    assert "k" * 200 not in kept.headers
    assert (len(reason), reason.isprintable()) == (1000, True)


async def test_a_handler_that_fails_where_nothing_waits_leaves_a_dead_letter(
    rabbitmq_url: str, stranger: RawAmqp
):
    async def broken(_message: Message) -> Verdict:
        raise ValueError("a bug")

    await declare_topology(rabbitmq_url)
    async with await aio_pika.connect(rabbitmq_url) as connection:
        dead = await (await connection.channel()).declare_queue(exclusive=True)
        await dead.bind(DEAD_LETTER_EXCHANGE.name, "#")
        bus = RabbitBus(rabbitmq_url, name="test")
        bus.consume(PROJECTOR_QUERIES, broken, prefetch=1)
        async with bus:
            await stranger.publish("", PROJECTOR_QUERIES.name, b"{}", message_id="m-1")
            assert "a bug" in str((await Recipient(dead).dead_letter()).headers["x-cml-reason"])


@pytest.mark.parametrize(("replied", "tries"), [(LIFECYCLE_COMMANDS, [0, 1, 2]), (PROJECTOR_QUERIES, [0])])
async def test_a_reply_that_its_callers_queue_does_not_accept_is_dropped_and_counted(
    rabbitmq_url: str,
    stranger: RawAmqp,
    monkeypatch: pytest.MonkeyPatch,
    replied: Queue,
    tries: list[int],
):
    """The result is on record, so that the message is no dead letter."""
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
        await dead.bind(DEAD_LETTER_EXCHANGE.name, "#")
        full = await channel.declare_queue(
            exclusive=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"}
        )
        bus = RabbitBus(rabbitmq_url, name="test")
        bus.consume(replied, replying, prefetch=1)
        with capture_logs(processors=[merge_contextvars]) as logged:
            async with bus:
                await stranger.publish("", replied.name, b"{}", message_id="m-1", reply_to=full.name)
                async with asyncio.timeout(60):
                    while bus.counts() != {"replies_dropped": 1}:
                        await asyncio.sleep(0.05)
        assert attempts == tries
        assert await dead.get(fail=False) is None
    (dropped,) = [each for each in logged if each["event"] == "reply dropped"]
    assert (dropped["message_id"], dropped["queue"]) == ("m-1", replied.name)
