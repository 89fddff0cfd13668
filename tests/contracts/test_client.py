"""The client: deadlines, many in flight, and what it does when the broker goes away."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity

from cml_contracts.client import ClientClosedError, NoResultYetError, NotSentError, WorkerClient
from cml_contracts.commands import StartCMLWorker
from cml_contracts.envelope import EventEnvelope
from cml_contracts.queries import ListCMLWorkers
from cml_contracts.results import OperationResult
from cml_contracts.topology import EVENTS_EXCHANGE
from cml_contracts.unreadable import Unreadable
from cml_embedded.amqp_broker import AmqpBroker
from cml_workers.bus.codec import reply, reply_address
from cml_workers.bus.port import Ack, Message, Outgoing, Verdict
from cml_workers.bus.rabbit import RabbitBus, declare_topology
from cml_workers.bus.topology import LIFECYCLE_COMMANDS

START = StartCMLWorker(worker_id=uuid4())


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[AmqpBroker]:
    async with AmqpBroker(data_dir=tmp_path) as broker:
        await declare_topology(broker.url)
        yield broker


class Service:
    """Answers every command with its own id, as often as it is asked."""

    def __init__(self, url: str) -> None:
        self.bus = RabbitBus(url, name="service")
        self.bus.consume(LIFECYCLE_COMMANDS, self.answer, prefetch=100)
        self.handled: list[str] = []

    async def answer(self, message: Message) -> Verdict:
        self.handled.append(message.message_id or "")
        address = reply_address(message, own=False)
        result = OperationResult(command_id=message.message_id, outcome="succeeded", data=message.message_id)
        if address:
            await self.bus.publish(reply(result, address))
        return Ack()


async def test_many_in_flight_each_get_their_own(broker: AmqpBroker):
    service = Service(broker.url)
    async with service.bus, WorkerClient(broker.url) as client:
        ids = [str(uuid4()) for _ in range(200)]
        results = await asyncio.gather(*(client.send(START, command_id=each) for each in ids))
    assert [result.data for result in results] == ids


async def test_the_same_id_may_be_in_flight_more_than_once(broker: AmqpBroker):
    service = Service(broker.url)
    async with service.bus, WorkerClient(broker.url) as client:
        results = await asyncio.gather(*(client.send(START, command_id="same") for _ in range(5)))
    assert [result.data for result in results] == ["same"] * 5


async def test_a_deadline_that_passes_names_the_command(broker: AmqpBroker):
    async with WorkerClient(broker.url) as client:
        with pytest.raises(NoResultYetError, match="c-1") as raised:
            await client.send(START, command_id="c-1", deadline=0.2)
        assert raised.value.command_id == "c-1"


@pytest.mark.parametrize("command_id", ["", "two words", "x" * 201, "中" * 86])
async def test_an_id_that_cannot_be_one_is_refused_before_it_is_sent(broker: AmqpBroker, command_id: str):
    async with WorkerClient(broker.url) as client:
        for send in (client.send, client.post):
            with pytest.raises(ValueError, match="a command id has"):
                await send(START, command_id=command_id)


async def test_posting_does_not_wait(broker: AmqpBroker):
    service = Service(broker.url)
    async with WorkerClient(broker.url) as client:
        command_id = await client.post(START)
        async with service.bus, asyncio.timeout(60):
            while service.handled != [command_id]:
                await asyncio.sleep(0.02)


async def test_without_a_broker_or_a_system_it_says_so(tmp_path: Path):
    with pytest.raises(NotSentError, match="cannot connect"):
        async with WorkerClient("amqp://127.0.0.1:1/"):
            pass
    async with AmqpBroker(data_dir=tmp_path) as bare, WorkerClient(bare.url) as client:
        for _ in range(2):
            with pytest.raises(NotSentError):
                await client.send(START, deadline=5)
            with pytest.raises(NotSentError):
                await client.query(ListCMLWorkers(), deadline=5)


@pytest.mark.parametrize("kept", [True, False], ids=["as it was", "without the command"])
async def test_a_broker_that_comes_back_finds_every_command_sent_again(tmp_path: Path, kept: bool):
    """Also where the first one was lost with the broker's queue, so that only the second can be answered."""
    first_folder, second_folder = tmp_path / "first", tmp_path / ("first" if kept else "second")
    async with AmqpBroker(data_dir=second_folder) as before:
        await declare_topology(before.url)
    async with AmqpBroker(data_dir=first_folder) as first:
        await declare_topology(first.url)
        port = int(first.url.rstrip("/").rpartition(":")[2])
        client = WorkerClient(first.url, deadline=30)
        await client.__aenter__()
        waiting = asyncio.create_task(client.send(START, command_id="c-1"))
        await asyncio.sleep(0.2)
    async with AmqpBroker(port=port, data_dir=second_folder) as second:
        service = Service(second.url)
        async with service.bus:
            assert (await waiting).data == "c-1"
            async with asyncio.timeout(30):
                while len(service.handled) < 1 + kept:
                    await asyncio.sleep(0.02)
        await client.__aexit__(None, None, None)
    assert service.handled == ["c-1"] * (1 + kept)


ENVELOPE = EventEnvelope.model_validate_json(
    (Path(__file__).parents[2] / "contracts" / "examples" / "cml.event_envelope.v1.json").read_text()
)


def event(message_id: str) -> Outgoing:
    body = json.dumps(ENVELOPE.to_cloudevent()).encode()
    return Outgoing(EVENTS_EXCHANGE, ENVELOPE.type, body, ENVELOPE.type, message_id)


async def test_events_are_followed(broker: AmqpBroker):
    bus = RabbitBus(broker.url, name="service")
    async with bus, WorkerClient(broker.url) as client, client.events("cml.worker.#") as events:
        for message_id in ("one", "two"):
            await bus.publish(event(message_id))
        assert [await anext(events), await anext(events)] == [ENVELOPE, ENVELOPE]


@pytest.mark.parametrize("before", [None, "quorum", "classic"])
async def test_a_subscription_that_is_kept_is_a_quorum_queue_unless_there_is_another_one(
    amqp_url: str, before: str | None, caplog: pytest.LogCaptureFixture
):
    name = f"cml.subscribers.guest.{uuid4()}"
    await declare_topology(amqp_url)
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(EVENTS_EXCHANGE.name)
        kind: dict[str, Any] = {"x-queue-type": before or "quorum"}
        if before:
            await channel.declare_queue(name, durable=True, arguments=kind)
        body = json.dumps(ENVELOPE.to_cloudevent()).encode()
        async with WorkerClient(amqp_url) as client:
            for _ in range(2):
                async with client.events("cml.worker.#", queue=name) as events:
                    await exchange.publish(aio_pika.Message(body), ENVELOPE.type)
                    async with asyncio.timeout(30):
                        assert await anext(events) == ENVELOPE
        await channel.declare_queue(name, durable=True, arguments=kind)  # or it fails, as it has others
        await channel.queue_delete(name)
    assert ("is used as it is" in caplog.text) is (before == "classic")


CREATED = json.loads(
    (Path(__file__).parents[2] / "contracts" / "examples" / "cml.worker.created.v1.json").read_text()
)
FORGED = ENVELOPE.to_cloudevent() | {"type": "cml.worker.created.v1", "data": {"name": CREATED["name"]}}
UNREADABLE = {
    b"\xff": "it is no JSON",
    b"[" * 100_000: "it is nested too deeply",
    b"[]": "it is no JSON object",
    OperationResult(command_id="c-1", outcome="succeeded")
    .model_dump_json()
    .encode(): "source: Field required",
    json.dumps(ENVELOPE.to_cloudevent() | {"streamrevision": "secret"}).encode(): "revision",
    json.dumps(FORGED).encode(): "aws_region: Field required",
}


@pytest.mark.parametrize("kept", [True, False], ids=["durable", "exclusive"])
async def test_a_subscriber_steps_over_what_it_cannot_read(amqp_url: str, kept: bool):
    """Each of these ended the subscription, and the next one, as it came again."""
    await declare_topology(amqp_url)
    seen: list[Unreadable] = []
    body = json.dumps(ENVELOPE.to_cloudevent()).encode()
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(EVENTS_EXCHANGE.name)
        name = str(uuid4()) if kept else None
        async with WorkerClient(amqp_url, on_unreadable=seen.append) as client:
            async with client.events("cml.worker.#", queue=name) as events:
                for each in (*UNREADABLE, body):
                    await exchange.publish(aio_pika.Message(each, type="secret"), ENVELOPE.type)
                async with asyncio.timeout(30):
                    assert await anext(events) == ENVELOPE
            assert client.unreadable == len(UNREADABLE)
            assert [each.body for each in seen] == list(UNREADABLE)
            for one, why in zip(seen, UNREADABLE.values(), strict=True):
                assert why in one.why
                assert "secret" not in one.why
                assert one.type == "secret"
                assert one.queue.startswith(f"cml.subscribers.guest.{name or ''}")
            if name:
                async with client.events("cml.worker.#", queue=name) as events:
                    await exchange.publish(aio_pika.Message(body), ENVELOPE.type)
                    async with asyncio.timeout(30):
                        assert await anext(events) == ENVELOPE
                await channel.queue_delete(f"cml.subscribers.guest.{name}")
    assert len(seen) == len(UNREADABLE)


async def test_a_function_that_fails_with_what_cannot_be_read_is_called_once(amqp_url: str):
    await declare_topology(amqp_url)
    name = str(uuid4())

    def fail(_: Unreadable) -> None:
        raise LookupError("of the application")

    async with (
        WorkerClient(amqp_url, on_unreadable=fail) as client,
        await aio_pika.connect(amqp_url) as connection,
    ):
        channel = await connection.channel()
        exchange = await channel.get_exchange(EVENTS_EXCHANGE.name)
        async with client.events("cml.worker.#", queue=name) as events:
            await exchange.publish(aio_pika.Message(b"{}"), ENVELOPE.type)
            await exchange.publish(
                aio_pika.Message(json.dumps(ENVELOPE.to_cloudevent()).encode()), ENVELOPE.type
            )
            with pytest.raises(LookupError):
                await anext(events)
            async with asyncio.timeout(30):
                assert await anext(events) == ENVELOPE
        await channel.queue_delete(f"cml.subscribers.guest.{name}")


async def test_a_reply_that_cannot_be_read_is_stepped_over_and_the_next_one_counts(broker: AmqpBroker):
    seen: list[Unreadable] = []
    bus = RabbitBus(broker.url, name="service")

    async def answer(message: Message) -> Verdict:
        assert message.reply_to
        assert message.reply_to.startswith("cml.replies.guest.")
        result = OperationResult(command_id=message.message_id, outcome="succeeded", data=1)
        address = reply_address(message, own=False)
        assert address
        good = reply(result, address)
        await bus.publish(replace(good, body=b"{"))
        await bus.publish(good)
        return Ack()

    bus.consume(LIFECYCLE_COMMANDS, answer, prefetch=1)
    async with bus, WorkerClient(broker.url, on_unreadable=seen.append) as client:
        assert (await client.send(START, deadline=20)).data == 1
        assert client.unreadable == 1
    assert [each.body for each in seen] == [b"{"]


@pytest.mark.parametrize("name", ["billing", "cml.subscribers.billing", "cml.subscribers.guest.billing"])
async def test_a_queue_that_there_was_keeps_its_name(
    amqp_url: str, name: str, caplog: pytest.LogCaptureFixture
):
    await declare_topology(amqp_url)
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
        body = json.dumps(ENVELOPE.to_cloudevent()).encode()
        await channel.default_exchange.publish(aio_pika.Message(body), name)
        async with (
            WorkerClient(amqp_url) as client,
            client.events(queue=name) as events,
            asyncio.timeout(30),
        ):
            assert await anext(events) == ENVELOPE
        await queue.delete(if_unused=False, if_empty=False)
    assert ("keeps its name" in caplog.text) is ("guest" not in name)


async def test_a_subscription_that_is_not_let_in_says_so(tmp_path: Path):
    async with AmqpBroker(data_dir=tmp_path) as bare, WorkerClient(bare.url) as client:
        with pytest.raises(ChannelNotFoundEntity):
            async with client.events():
                pass


async def test_a_client_that_is_closed_leaves_nobody_waiting(broker: AmqpBroker):
    async with WorkerClient(broker.url) as client:
        waiting = asyncio.create_task(client.send(START, command_id="c-1"))
        events = await AsyncExitStack().enter_async_context(client.events())
        following = asyncio.create_task(anext(events, None))
        await confirmed(client)
    with pytest.raises(ClientClosedError, match="the client was closed before the result of c-1"):
        await waiting
    assert await following is None
    with pytest.raises(NotSentError, match="the client is closed"):
        await client.send(START)


async def confirmed(client: WorkerClient) -> None:
    async with asyncio.timeout(30):
        while not any(waiting.confirmed for waiting in client._waiting.values()):
            await asyncio.sleep(0.02)
