"""The bus on both brokers: verdicts are carried out, nothing is lost on the way, and topology is checked."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
import uvloop

from cml_contracts.topology import COMMANDS_EXCHANGE, QUERIES_EXCHANGE
from cml_workers.bus import delivery, rabbit
from cml_workers.bus.port import (
    Ack,
    BusUnavailableError,
    DeadLetter,
    Message,
    Outgoing,
    Retry,
    TopologyError,
    UnroutableError,
    Verdict,
)
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.topology import DEAD_LETTER_QUEUE, DELIVERY_LIMIT, LIFECYCLE_COMMANDS, PROJECTOR_QUERIES
from support import mortal
from support.buses import emptied, left_behind

Answer = Callable[[Message], Awaitable[Verdict]]


class Recorder:
    """A handler that remembers what it was given and answers as told."""

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self.arrived = asyncio.Condition()
        self.answer: Answer = self.done

    async def done(self, _message: Message) -> Verdict:
        return Ack()

    async def __call__(self, message: Message) -> Verdict:
        async with self.arrived:
            self.seen.append(message)
            self.arrived.notify_all()
        return await self.answer(message)

    async def until(self, count: int) -> list[Message]:
        async with asyncio.timeout(60), self.arrived:
            await self.arrived.wait_for(lambda: len(self.seen) >= count)
            return self.seen


@pytest.fixture
async def empty(amqp_url: str) -> AsyncIterator[str]:
    """The broker with the topology and empty queues; at the end of a test they are empty again."""
    yield await emptied(amqp_url)
    assert await left_behind(amqp_url) == {}


@pytest.fixture
async def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def bus(empty: str, recorder: Recorder) -> AsyncIterator[RabbitBus]:
    bus = RabbitBus(empty, name="test")
    bus.consume(LIFECYCLE_COMMANDS, recorder, prefetch=10)
    async with bus:
        yield bus


def outgoing(message_id: str | None = None, **fields: object) -> Outgoing:
    values: dict[str, object] = {
        "exchange": COMMANDS_EXCHANGE,
        "routing_key": "cml.worker.start.v1",
        "body": b"{}",
        "type": "cml.worker.start.v1",
        "message_id": message_id or str(uuid4()),
    }
    return Outgoing(**(values | fields))  # type: ignore[arg-type]


async def dead_letter(url: str, seconds: float = 10) -> aio_pika.abc.AbstractIncomingMessage:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(DEAD_LETTER_QUEUE.name)
        async with asyncio.timeout(seconds):
            while (message := await queue.get(fail=False)) is None:
                await asyncio.sleep(0.05)
        await message.ack()
        return message


async def test_a_message_arrives_with_all_its_properties(bus: RabbitBus, recorder: Recorder):
    await bus.publish(
        outgoing("m-1", correlation_id="c-1", reply_to="somewhere", headers={"traceparent": "00-a-b-01"})
    )
    (message,) = await recorder.until(1)
    assert (message.message_id, message.correlation_id, message.reply_to) == ("m-1", "c-1", "somewhere")
    assert (message.type, message.routing_key, message.body) == ("cml.worker.start.v1",) * 2 + (b"{}",)
    assert message.headers["traceparent"] == "00-a-b-01"
    assert (message.redelivered, message.attempt) == (False, 0)


async def test_what_is_put_aside_comes_back_as_it_was(bus: RabbitBus, recorder: Recorder):
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


async def test_the_sender_is_known_for_certain_also_after_a_retry(
    bus: RabbitBus, recorder: Recorder, empty: str
):
    async def once(message: Message) -> Verdict:
        return Retry() if message.attempt == 0 else Ack()

    recorder.answer = once
    forged = {"x-cml-user-id": "admin", "x-cml-attempt": 7, "x-cml-faults": 7}
    await bus.publish(outgoing("anonymous", headers=forged))
    await bus.publish(outgoing("known", user_id="guest"))
    seen = await recorder.until(4)
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
    await recorder.until(21)
    assert [message.message_id for message in recorder.seen].count("bad") == 1  # it waits, and they do not
    kept = await dead_letter(empty)
    assert "a bug" in str(kept.headers["x-cml-reason"])
    assert (kept.message_id, kept.headers["x-cml-cause"]) == ("bad", "HandlerFailed")
    assert len(recorder.seen) == 22


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


async def test_what_passes_by_itself_never_ends_there(
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
    monkeypatch.setattr(rabbit, "UNSETTLED_PAUSE", 0.01)
    publish = bus.publish
    failing = [True]

    async def broken_once(message: Outgoing) -> None:
        if failing.pop() if failing else False:
            raise error
        await publish(message)

    async def first(message: Message) -> Verdict:
        return DeadLetter("broken") if not message.redelivered else Ack()

    recorder.answer = first
    monkeypatch.setattr(bus, "publish", broken_once)
    await publish(outgoing("m-1"))
    seen = await recorder.until(2)
    assert [(message.message_id, message.redelivered) for message in seen] == [("m-1", False), ("m-1", True)]
    assert not failing


async def test_a_cancellation_of_the_librarys_own_is_an_outage(
    bus: RabbitBus, monkeypatch: pytest.MonkeyPatch
):
    async def given_up(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(bus._broker, "publish", given_up)
        with pytest.raises(BusUnavailableError):
            await bus.publish(outgoing())


async def test_what_nobody_takes_is_said_so(bus: RabbitBus, recorder: Recorder):
    with pytest.raises(UnroutableError):
        await bus.publish(outgoing(exchange=None, routing_key="no such queue"))
    await bus.publish(outgoing(exchange=None, routing_key="no such queue", mandatory=False))
    await bus.publish(outgoing())
    await recorder.until(1)


async def test_many_at_once_and_no_more_than_asked_for(empty: str, recorder: Recorder):
    running, most = 0, 0

    async def slow(_message: Message) -> Verdict:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return Ack()

    recorder.answer = slow
    bus = RabbitBus(empty, name="test")
    bus.consume(LIFECYCLE_COMMANDS, recorder, prefetch=5)
    async with bus:
        await asyncio.gather(*(bus.publish(outgoing()) for _ in range(50)))
        await recorder.until(50)
    assert most == 5


async def test_stopping_lets_handlers_end_and_takes_no_more(empty: str, recorder: Recorder):
    async def slow(_message: Message) -> Verdict:
        await asyncio.sleep(0.3)
        return Ack()

    recorder.answer = slow
    bus = RabbitBus(empty, name="test")
    bus.consume(LIFECYCLE_COMMANDS, recorder, prefetch=1)
    async with bus:
        for _ in range(3):
            await bus.publish(outgoing())
        await recorder.until(1)
    handled = len(recorder.seen)
    again = Recorder()
    bus = RabbitBus(empty, name="test")
    bus.consume(LIFECYCLE_COMMANDS, again, prefetch=10)
    async with bus:
        rest = await again.until(3 - handled)
        await asyncio.sleep(0.2)
    assert handled == 1
    assert len(rest) == 2
    assert not any(message.redelivered for message in rest)


async def test_a_question_that_nobody_can_answer_now_is_dropped(empty: str, recorder: Recorder):
    async def later(_message: Message) -> Verdict:
        return Retry()

    recorder.answer = later
    bus = RabbitBus(empty, name="test")
    bus.consume(PROJECTOR_QUERIES, recorder, prefetch=5)
    async with bus:
        await bus.publish(outgoing(exchange=QUERIES_EXCHANGE, routing_key="cml.worker.get.v1"))
        await recorder.until(1)
        await asyncio.sleep(0.3)
    assert len(recorder.seen) == 1


async def test_declaring_again_changes_nothing(empty: str):
    await rabbit.declare_topology(empty)
    await rabbit.declare_topology(empty)


@pytest.mark.parametrize("kind", ["queue", "exchange"])
async def test_what_exists_with_other_arguments_is_named_with_its_remedy(empty: str, kind: str):
    name = PROJECTOR_QUERIES.name if kind == "queue" else QUERIES_EXCHANGE.name
    async with await aio_pika.connect(empty) as connection:
        channel = await connection.channel()
        if kind == "queue":
            await channel.queue_delete(name)
            await channel.declare_queue(name, durable=True)
        else:
            await channel.exchange_delete(name)
            await channel.declare_exchange(name, "direct", durable=True)
        try:
            with pytest.raises(TopologyError, match=name) as told:
                await RabbitBus(empty, name="test").start()
            assert "delete it" in str(told.value)
        finally:
            channel = await connection.channel()
            await (channel.queue_delete if kind == "queue" else channel.exchange_delete)(name)


async def test_a_broker_that_is_not_there_is_said_so_without_the_password():
    with pytest.raises(BusUnavailableError) as told:
        await RabbitBus("amqp://ann:secret@127.0.0.1:1/", name="test").start()
    assert "127.0.0.1:1" in str(told.value)
    assert "secret" not in str(told.value)


def test_a_connection_that_ends_while_it_is_opened_is_said_so():
    """On the loop that roles run on: there aiormq lets a StopAsyncIteration out, every third time."""

    async def start_often(url: str) -> None:
        for _ in range(50):
            with pytest.raises(BusUnavailableError, match="no RabbitMQ at"):
                await RabbitBus(url, name="test").start()

    def hang_up() -> None:
        for _ in range(50):
            server.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as beside:
        server.settimeout(60)
        hanging_up = beside.submit(hang_up)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(start_often(f"amqp://guest:guest@127.0.0.1:{server.getsockname()[1]}/"))
        hanging_up.result()


@pytest.mark.parametrize(
    ("asked", "heartbeat"),
    [
        ("", timedelta(seconds=60)),
        ("?heartbeat=5&name=x", timedelta(seconds=5)),
        ("?heartbeat=0", timedelta.max),
    ],
)
async def test_how_long_the_broker_bears_silence_is_known(asked: str, heartbeat: timedelta):
    assert RabbitBus(f"amqp://127.0.0.1/{asked}", name="test").heartbeat == heartbeat
