"""The bus on both brokers: verdicts are carried out, and nothing is lost on the way."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from cml_contracts.topology import COMMANDS_EXCHANGE, QUERIES_EXCHANGE
from cml_workers.bus import delivery
from cml_workers.bus.port import (
    Ack,
    BusUnavailableError,
    DeadLetter,
    Message,
    Outgoing,
    Retry,
    Verdict,
)
from cml_workers.bus.rabbit import RabbitBus, consuming
from cml_workers.bus.topology import (
    DEAD_LETTER_EXCHANGE,
    DEAD_LETTER_QUEUE,
    DELIVERY_LIMIT,
    LIFECYCLE_COMMANDS,
    PROJECTOR_QUERIES,
)
from support import mortal
from support.recorder import Recorder, dead_letter, outgoing


async def test_a_message_arrives_with_all_its_properties(bus: RabbitBus, recorder: Recorder):
    await bus.publish(
        outgoing("m-1", correlation_id="c-1", reply_to="somewhere", headers={"traceparent": "00-a-b-01"})
    )
    (message,) = await recorder.until(1)
    assert (message.message_id, message.correlation_id, message.reply_to) == ("m-1", "c-1", "somewhere")
    assert (message.type, message.routing_key, message.body) == ("cml.worker.start.v1",) * 2 + (b"{}",)
    assert message.headers["traceparent"] == "00-a-b-01"
    assert (message.redelivered, message.attempt) == (False, 0)


async def test_a_retried_message_comes_back_as_it_was(bus: RabbitBus, recorder: Recorder):
    async def twice(message: Message) -> Verdict:
        return Retry() if message.attempt < 2 else Ack()

    recorder.answer = twice
    await bus.publish(outgoing("m-1", correlation_id="c-1", reply_to="somewhere", body=b'{"a": 1}'))
    seen = await recorder.until(3)
    assert [
        (m.attempt, m.redelivered, m.message_id, m.correlation_id, m.reply_to, m.type, m.body) for m in seen
    ] == [
        (attempt, False, "m-1", "c-1", "somewhere", "cml.worker.start.v1", b'{"a": 1}')
        for attempt in range(3)
    ]
    first, *retried = [each.received_at for each in seen]
    assert first
    assert retried == [first.replace(microsecond=0)] * 2


async def test_the_sender_is_known_for_certain_also_after_a_retry(
    bus: RabbitBus, recorder: Recorder, empty: str
):
    async def once(message: Message) -> Verdict:
        return Retry() if message.attempt == 0 else Ack()

    recorder.answer = once
    forged = {"x-cml-user-id": "admin", "x-cml-attempt": 7, "x-cml-faults": 7, "x-cml-received": 7}
    await bus.publish(outgoing("anonymous", headers=forged))
    await bus.publish(outgoing("known", user_id="guest"))
    seen = await recorder.until(4)
    assert all(each.received_at and each.received_at.year > 1970 for each in seen)
    assert sorted((m.message_id or "", m.user_id, m.attempt) for m in seen) == [
        ("anonymous", None, 0),
        ("anonymous", None, 1),
        ("known", "guest", 0),
        ("known", "guest", 1),
    ]
    async with await aio_pika.connect(empty) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("cml.commands")
        with pytest.raises(aio_pika.exceptions.AMQPError):
            await exchange.publish(aio_pika.Message(b"{}", user_id="somebody-else"), "cml.worker.start.v1")


async def test_a_broken_message_is_kept_with_its_reason_and_blocks_nobody(
    bus: RabbitBus, recorder: Recorder, empty: str
):
    async def by_id(message: Message) -> Verdict:
        return DeadLetter("it is broken") if message.message_id == "bad" else Ack()

    recorder.answer = by_id
    for message_id in ("bad", "good"):
        await bus.publish(outgoing(message_id))
    await recorder.until(2)
    kept = await dead_letter(empty)
    assert (kept.message_id, kept.headers["x-cml-reason"]) == ("bad", "it is broken")
    assert kept.headers["x-cml-queue"] == LIFECYCLE_COMMANDS.name


async def test_a_message_with_which_a_handler_keeps_failing_ends_in_the_dead_letters_while_others_flow(
    bus: RabbitBus, recorder: Recorder, empty: str, monkeypatch: pytest.MonkeyPatch
):
    async def fail(message: Message) -> Verdict:
        if message.message_id != "bad":
            return Ack()
        raise ValueError("a bug")

    monkeypatch.setattr(delivery, "MAX_FAULTS", 2)
    recorder.answer = fail
    for message_id in ("bad", *map(str, range(20))):
        await bus.publish(outgoing(message_id))
    kept = await dead_letter(empty)
    assert "a bug" in str(kept.headers["x-cml-reason"])
    assert (kept.message_id, kept.headers["x-cml-cause"]) == ("bad", "HandlerFailed")
    await recorder.until(22)
    seen = [message.message_id for message in recorder.seen]
    first, again = (place for place, message_id in enumerate(seen) if message_id == "bad")
    assert again > first + 1  # it waits, and others do not
    assert len(seen) == 22


async def test_a_message_that_kills_its_consumer_ends_in_the_dead_letters_and_takes_nobody_with_it(
    empty: str, tmp_path: Path
):
    said = tmp_path / "said"
    async with await aio_pika.connect(empty) as connection:
        channel = await connection.channel()
        commands = await channel.get_exchange(COMMANDS_EXCHANGE.name)

        async def send(*ids: str) -> None:
            for message_id in ids:
                await commands.publish(aio_pika.Message(b"{}", message_id=message_id, delivery_mode=2), "x")

        before, meanwhile = ([f"{when}-{n}" for n in range(20)] for when in ("before", "meanwhile"))
        await send(*before[:10], mortal.POISON, *before[10:])
        with said.open("w") as output:
            consumer = subprocess.Popen(
                [sys.executable, mortal.__file__, empty],
                stdout=output,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
        try:
            async with asyncio.timeout(90):
                while said.read_text().count("died") < 5:
                    await asyncio.sleep(0.1)
                await send(*meanwhile)
                while not {f"done {each}" for each in before + meanwhile} <= set(
                    said.read_text().split("\n")
                ):
                    await asyncio.sleep(0.1)
                deaths = said.read_text().count("died")
                kept = await dead_letter(empty, seconds=90)
        finally:
            consumer.kill()
            consumer.wait()
    death: Any = kept.headers["x-death"]
    assert (kept.message_id, death[0]["reason"]) == (mortal.POISON, "delivery_limit")
    assert deaths < DELIVERY_LIMIT, "the others waited until it was gone"
    async with await aio_pika.connect(empty) as connection:
        queue = await (await connection.channel()).get_queue(DEAD_LETTER_QUEUE.name)
        assert await queue.get(fail=False) is None


async def test_an_outage_makes_no_dead_letter(
    bus: RabbitBus, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
):
    async def down(message: Message) -> Verdict:
        if message.attempt < 3:
            raise ConnectionError("the store is down")
        return Ack()

    monkeypatch.setattr(delivery, "MAX_FAULTS", 2)
    recorder.answer = down
    await bus.publish(outgoing())
    assert [message.attempt for message in await recorder.until(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [BusUnavailableError("planted"), TypeError("a header of no known type")])
async def test_a_verdict_that_cannot_be_carried_out_is_a_redelivery(
    bus: RabbitBus, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    monkeypatch.setattr(consuming, "UNSETTLED_PAUSE", 0.01)
    publish = bus._publisher
    failing = [True]

    async def broken_once(message: Outgoing, /) -> None:
        if message.exchange == DEAD_LETTER_EXCHANGE and failing:
            failing.clear()
            raise error
        await publish(message)

    async def first(message: Message) -> Verdict:
        return DeadLetter("broken") if not message.redelivered else Ack()

    recorder.answer = first
    monkeypatch.setattr(bus, "_publisher", broken_once)
    await bus.publish(outgoing("m-1"))
    seen = await recorder.until(2)
    assert [(message.message_id, message.redelivered) for message in seen] == [("m-1", False), ("m-1", True)]
    assert not failing


async def test_a_query_whose_answer_is_not_confirmed_is_answered_again(
    empty: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
):
    """When a connection is restored, consumers may be there before the channel for answers is."""
    monkeypatch.setattr(consuming, "UNSETTLED_PAUSE", 0.01)

    async def answer(message: Message) -> Verdict:
        if not message.redelivered:
            raise BusUnavailableError("the channel is closed")
        return Ack()

    recorder.answer = answer
    bus = RabbitBus(empty, name="test")
    bus.consume(PROJECTOR_QUERIES, recorder, prefetch=5)
    async with bus:
        await bus.publish(outgoing("q-1", exchange=QUERIES_EXCHANGE, routing_key="cml.worker.get.v1"))
        seen = await recorder.until(2)
    assert [(each.message_id, each.redelivered) for each in seen] == [("q-1", False), ("q-1", True)]
