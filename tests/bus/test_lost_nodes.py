"""Nodes that die, hang or come back late: callers and roles go on at the next one, under names of their own."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aiormq.exceptions import ChannelLockedResource, ChannelNotFoundEntity
from yarl import URL

from cml_contracts import amqp, session
from cml_contracts.client import NotSentError, WorkerClient
from cml_contracts.commands import StopCMLWorker
from cml_contracts.envelope import EventEnvelope
from cml_contracts.queries import ListCMLWorkers
from cml_contracts.results import OperationResult
from cml_contracts.topology import EVENTS_EXCHANGE, subscriber_queue
from cml_workers.bus.codec import reply, reply_address
from cml_workers.bus.port import Ack, BusUnavailableError, Message, Outgoing, Verdict
from cml_workers.bus.rabbit import RabbitBus, connection, restored_connection, serving
from cml_workers.bus.topology import LIFECYCLE_COMMANDS, LIFECYCLE_REPORTS, PROJECTOR_QUERIES
from support.buses import emptied
from support.recorder import Recorder
from support.tcp_proxy import TcpProxy, Trap

STOP = StopCMLWorker(worker_id=uuid4())
ENVELOPE = EventEnvelope.model_validate_json(
    (Path(__file__).parents[2] / "contracts" / "examples" / "cml.event_envelope.v1.json").read_text()
)


def event(message_id: str) -> Outgoing:
    body = json.dumps(ENVELOPE.to_cloudevent()).encode()
    return Outgoing(EVENTS_EXCHANGE, ENVELOPE.type, body, ENVELOPE.type, message_id, mandatory=False)


class Service:
    """Answers every message once it may, and keeps what it was asked."""

    def __init__(self, url: str) -> None:
        self.bus = RabbitBus(url, name="service")
        self.bus.consume(LIFECYCLE_COMMANDS, self.answer, prefetch=10)
        self.bus.consume(PROJECTOR_QUERIES, self.answer, prefetch=10)
        self.answers = asyncio.Event()
        self.asked: list[Message] = []

    async def answer(self, message: Message) -> Verdict:
        self.asked.append(message)
        await self.answers.wait()
        address = reply_address(message, own=False)
        if address:
            await self.bus.publish(
                reply(OperationResult(command_id=message.message_id, outcome="succeeded"), address)
            )
        return Ack()

    async def until_asked(self, times: int) -> None:
        async with asyncio.timeout(60):
            while len(self.asked) < times:
                await asyncio.sleep(0.02)


@pytest.fixture
async def network(rabbitmq_url: str) -> AsyncIterator[TcpProxy]:
    await emptied(rabbitmq_url)
    async with TcpProxy(URL(rabbitmq_url).port or 5672) as network:
        yield network


@pytest.fixture
async def service(rabbitmq_url: str, network: TcpProxy) -> AsyncIterator[Service]:
    service = Service(rabbitmq_url)
    async with service.bus:
        yield service


def through(network: TcpProxy, *others: int, heartbeat: int = 10) -> str:
    hosts = ",".join(f"127.0.0.1:{port}" for port in (network.port, *others))
    return f"amqp://guest:guest@{hosts}/?heartbeat={heartbeat}"


async def test_a_caller_whose_queues_are_locked_goes_on_with_others(
    rabbitmq_url: str, network: TcpProxy, service: Service, monkeypatch: pytest.MonkeyPatch
):
    """As where the node of an exclusive queue is dead: RabbitMQ 4.2 and later keep its name locked until it is back."""
    declared: list[str] = []
    declare_queue = aio_pika.Channel.declare_queue

    async def noted(channel: Any, name: str, **options: Any) -> Any:
        declared.append(name)
        return await declare_queue(channel, name, **options)

    async with AsyncExitStack() as stack:
        monkeypatch.setattr(aio_pika.Channel, "declare_queue", noted)
        client = await stack.enter_async_context(WorkerClient(through(network), deadline=60))
        events = await stack.enter_async_context(client.events("cml.worker.#"))
        monkeypatch.setattr(aio_pika.Channel, "declare_queue", declare_queue)
        sent = asyncio.create_task(client.send(STOP, command_id="c-1"))
        await service.until_asked(1)

        network.closed = True
        network.cut()
        dead = await stack.enter_async_context(await aio_pika.connect(rabbitmq_url))
        assert len(declared) == 2
        for name in declared:
            await lock(dead, name)
        network.heal()

        await service.until_asked(2)
        service.answers.set()
        assert (await sent).outcome == "succeeded"
        first, second = (message.reply_to for message in service.asked)
        assert first in declared
        assert second not in declared
        assert (await client.query(ListCMLWorkers())).outcome == "succeeded"
        following = asyncio.ensure_future(anext(events))
        for number in range(600):
            await service.bus.publish(event(str(number)))
            if (await asyncio.wait((following,), timeout=0.1))[0]:
                break
        assert following.result() == ENVELOPE


async def lock(connection: aio_pika.abc.AbstractConnection, name: str) -> None:
    """Have the queue's name for oneself, as soon as the broker notices that its owner is gone."""
    async with asyncio.timeout(60):
        while True:
            channel = await connection.channel()
            try:
                await channel.declare_queue(name, exclusive=True)
            except ChannelLockedResource:
                await asyncio.sleep(0.05)
            else:
                return


async def test_events_of_a_durable_queue_are_kept_while_the_connection_is_lost(
    network: TcpProxy, service: Service, rabbitmq_url: str
):
    queue = f"subscriber.{uuid4()}"
    async with WorkerClient(through(network)) as client, client.events("cml.worker.#", queue=queue) as events:
        await service.bus.publish(event("one"))
        assert await anext(events) == ENVELOPE
        network.closed = True
        network.cut()
        await service.bus.publish(event("two"))
        network.heal()
        async with asyncio.timeout(60):
            assert [await anext(events), await anext(events)] == [ENVELOPE] * 2, "the first comes again"
    async with await aio_pika.connect(rabbitmq_url) as direct:
        await (await direct.channel()).queue_delete(subscriber_queue("guest", queue))


async def test_a_silent_network_cancels_nobody(network: TcpProxy, service: Service):
    """aiormq raises CancelledError in whatever waits for a connection whose heartbeats fail; nobody cancelled these tasks."""
    service.answers.set()
    bus = RabbitBus(through(network, heartbeat=1), name="silenced")
    async with bus, WorkerClient(through(network, heartbeat=1)) as client, client.events() as events:

        async def subscribe() -> EventEnvelope:
            async with client.events() as more:
                return await anext(more)

        network.pause()
        published = asyncio.ensure_future(bus.publish(event("lost")))
        calls: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(call)
            for call in (
                client.send(STOP),
                client.post(STOP),
                client.query(ListCMLWorkers()),
                anext(events),
                subscribe(),
            )
        ]
        with pytest.raises(BusUnavailableError):
            await published
        network.heal()
        async with asyncio.timeout(60):
            while not calls[-1].done():
                await service.bus.publish(event("again"))
                await asyncio.sleep(0.1)
            await asyncio.gather(*calls)
        assert bus.problem() is None
        assert client._sessions.trouble == ""


def restoring() -> list[asyncio.Task[Any]]:
    """The tasks of aio-pika that restore connections: cancelled alone, they go on."""
    return [each for each in asyncio.all_tasks() if "connection_factory" in str(each.get_coro())]


async def until_disconnected(network: TcpProxy) -> None:
    async with asyncio.timeout(30):
        while network.connected:
            await asyncio.sleep(0.05)


async def test_a_bus_that_was_stopped_while_its_broker_hung_is_not_restored(
    network: TcpProxy, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
):
    """It would take messages, and nobody would handle them."""
    monkeypatch.setattr(amqp, "CLOSE_SECONDS", 0.2)
    bus = RabbitBus(through(network), name="test")

    bus.consume(LIFECYCLE_COMMANDS, Recorder(), prefetch=1)
    others = restoring()
    await bus.start()
    assert len(restoring()) == len(others) + 1
    network.pause()
    await bus.stop()
    assert restoring() == others
    network.heal()
    await until_disconnected(network)


async def test_a_bus_that_cannot_consume_when_it_starts_is_not_restored(
    network: TcpProxy, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
):
    """The node of a queue may be down: others of its queues are consumed already then."""
    monkeypatch.setattr(connection, "START_TIMEOUT", 1.0)
    monkeypatch.setattr(amqp, "CLOSE_SECONDS", 0.2)
    bus = RabbitBus(through(network), name="test")

    for queue in (LIFECYCLE_COMMANDS, LIFECYCLE_REPORTS):
        bus.consume(queue, Recorder(), prefetch=1)
    others = restoring()
    network.arm(Trap(b"ctag3.", "server", "silence", 3.0))
    with pytest.raises(BusUnavailableError, match="does not let 'guest' consume"):
        await bus.start()
    assert restoring() == others
    await until_disconnected(network)


async def test_a_role_goes_on_where_a_node_answers_when_the_next_one_hangs(
    network: TcpProxy, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(restored_connection, "CONNECT_SECONDS", 1.0)
    recorder = Recorder()
    async with TcpProxy(URL(rabbitmq_url).port or 5672) as another, asyncio.timeout(100):
        bus = RabbitBus(through(network, another.port), name="test")
        bus.consume(LIFECYCLE_COMMANDS, recorder, prefetch=1)
        async with bus, RabbitBus(rabbitmq_url, name="sender") as sender:
            here, there = (network, another) if network.connected else (another, network)
            there.pause()
            here.cut()
            await sender.publish(Outgoing(None, LIFECYCLE_COMMANDS.name, b"{}", STOP.TYPE, "one"))
            assert [each.message_id for each in await recorder.until(1)] == ["one"]
            assert (here.connected, bus.problem()) == (1, None)


@pytest.mark.parametrize("what", ["its channel", "the connection"])
async def test_a_watched_consumer_is_known_to_be_lost_and_back(
    network: TcpProxy, rabbitmq_url: str, what: str
):
    """Another process may be the active consumer meanwhile."""
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def take(message: Message) -> Verdict:
        seen.put_nowait(str(message.message_id))
        return Ack()

    bus = RabbitBus(through(network), name="test")
    bus.consume(LIFECYCLE_COMMANDS, take, prefetch=1)
    bus.watch_consumer(
        LIFECYCLE_COMMANDS, lost=lambda: seen.put_nowait("lost"), back=lambda: seen.put_nowait("back")
    )
    async with asyncio.timeout(60), bus, RabbitBus(rabbitmq_url, name="sender") as sender:
        assert seen.empty()
        if what == "its channel":
            with contextlib.suppress(ChannelNotFoundEntity):
                await bus._channel_of(LIFECYCLE_COMMANDS).get_queue("cml.no-such-queue")
        else:
            network.cut()
        said = [await seen.get()]
        while said[-1] == "lost":
            said.append(await seen.get())
        assert (set(said[:-1]), said[-1]) == ({"lost"}, "back")
        await sender.publish(Outgoing(None, LIFECYCLE_COMMANDS.name, b"{}", STOP.TYPE, "one"))
        assert await seen.get() == "one"
        assert (seen.qsize(), bus.problem()) == (0, None)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roles and callers."""
    monkeypatch.setattr(serving, "SILENT", 0.5)
    monkeypatch.setattr(connection, "LOOKS_EVERY", 0.2)
    monkeypatch.setattr(session, "CONFIRM_SECONDS", 0.5)
    monkeypatch.setattr(session, "LEAST_CONFIRM_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
async def test_a_role_leaves_a_node_that_serves_nobody_for_one_that_does(
    network: TcpProxy, rabbitmq_url: str
):
    """A node that is separated from the others lets its clients connect, and answers their heartbeats."""
    recorder = Recorder()
    async with TcpProxy(URL(rabbitmq_url).port or 5672) as another, asyncio.timeout(60):
        bus = RabbitBus(through(network, another.port), name="test")
        bus.consume(LIFECYCLE_COMMANDS, recorder, prefetch=1)
        async with bus, RabbitBus(rabbitmq_url, name="sender") as sender:
            here, there = (network, another) if network.connected else (another, network)
            silence = here.arm(Trap(b"cml.probe", "server", "silence", 3600.0))
            await silence.fired.wait()
            while not there.connected or bus.problem():
                await asyncio.sleep(0.05)
            here.cut()  # or the broker, which is one here, would go on delivering there
            await sender.publish(Outgoing(None, LIFECYCLE_COMMANDS.name, b"{}", STOP.TYPE, "one"))
            assert [each.message_id for each in await recorder.until(1)] == ["one"]


@pytest.mark.usefixtures("impatient")
async def test_a_role_stays_at_a_node_that_serves_it_or_while_none_does(network: TcpProxy, rabbitmq_url: str):
    async with (
        asyncio.timeout(60),
        TcpProxy(URL(rabbitmq_url).port or 5672) as another,
        RabbitBus(through(network, another.port), name="test") as bus,
    ):
        here, there = (network, another) if network.connected else (another, network)
        probed = here.arm(Trap(b"cml.probe", "server", "silence", 0.2))
        await probed.fired.wait()
        there.pause()
        await here.arm(Trap(b"cml.probe", "server", "silence", 2.0)).fired.wait()
        while not there.connected:  # it is asked
            await asyncio.sleep(0.05)
        await asyncio.sleep(2)
        assert (here.connected, bus.problem()) == (1, None)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("deadline", [60.0, 0.3])
async def test_a_caller_leaves_a_node_that_confirms_nothing(
    network: TcpProxy, rabbitmq_url: str, service: Service, deadline: float
):
    """Whatever the deadline of one call is."""
    service.answers.set()
    async with (
        asyncio.timeout(60),
        TcpProxy(URL(rabbitmq_url).port or 5672) as another,
        WorkerClient(through(network, another.port, heartbeat=0), deadline=deadline) as client,
    ):
        here, there = (network, another) if network.connected else (another, network)
        here.arm(Trap(b"cml.commands", "server", "silence", 3600.0))
        while True:
            with contextlib.suppress(NotSentError):
                assert (await client.send(STOP)).outcome == "succeeded"
                break
        assert there.connected == 1


def keep_back(monkeypatch: pytest.MonkeyPatch, kind: str, times: int, *, taken: bool) -> list[Any]:
    """The first messages of this type, which are confirmed to nobody; ``taken``: by the broker all the same."""
    publish = aio_pika.Exchange.publish
    kept_back: list[Any] = []

    async def keep(self: Any, message: Any, routing_key: str, **options: Any) -> Any:
        keeps = message.type == kind and len(kept_back) < times
        if keeps:
            kept_back.append(message)
        confirmation = await publish(self, message, routing_key, **options) if taken or not keeps else None
        return await asyncio.Event().wait() if keeps else confirmation

    monkeypatch.setattr(aio_pika.Exchange, "publish", keep)
    return kept_back


@pytest.mark.usefixtures("impatient")
async def test_a_caller_whose_one_message_is_not_confirmed_stays_where_others_are(
    network: TcpProxy, service: Service, monkeypatch: pytest.MonkeyPatch
):
    service.answers.set()
    kept_back = keep_back(monkeypatch, STOP.TYPE, 1, taken=True)
    async with asyncio.timeout(60), WorkerClient(through(network)) as client:
        sent = asyncio.create_task(client.send(STOP, command_id="c-1"))
        await service.until_asked(1)
        while not sent.done():
            assert (await client.query(ListCMLWorkers())).outcome == "succeeded"
        assert (await sent).outcome == "succeeded"
        assert len(kept_back) == 1
        addresses = {message.reply_to for message in service.asked}
        assert len(addresses) == 1


async def test_a_message_that_a_queue_keeps_back_is_published_again_on_the_same_connection(
    network: TcpProxy, service: Service, monkeypatch: pytest.MonkeyPatch
):
    """As a quorum queue may that loses its leader: until the next one comes, which here is the third."""
    monkeypatch.setattr(session, "CONFIRM_SECONDS", 3600.0)
    monkeypatch.setattr(session, "AGAIN_SECONDS", 0.2)
    service.answers.set()
    kept_back = keep_back(monkeypatch, ListCMLWorkers.TYPE, 2, taken=False)
    async with asyncio.timeout(60), WorkerClient(through(network), deadline=3600.0) as client:
        assert (await client.query(ListCMLWorkers())).outcome == "succeeded"
    addresses = {message.reply_to for message in (*kept_back, *service.asked)}
    assert (len(kept_back), len(service.asked), len(addresses)) == (2, 1, 1)


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Queues that the broker does not know any more though they are consumed, as after a separation of its nodes."""
    monkeypatch.setattr(session, "LOOKS_EVERY", 0.1)
    declare = aio_pika.Channel.declare_queue
    names: list[str] = []

    async def declared(self: Any, name: Any = None, **options: Any) -> Any:
        if options.get("passive") and name in names:
            await self.close()
            raise ChannelNotFoundEntity(f"no queue '{name}' in vhost '/'")
        return await declare(self, name, **options)

    monkeypatch.setattr(aio_pika.Channel, "declare_queue", declared)
    return names


async def test_a_caller_whose_queue_is_forgotten_sends_again_with_another_one(
    network: TcpProxy, service: Service, forgotten: list[str]
):
    async with asyncio.timeout(60), WorkerClient(through(network), deadline=3600.0) as client:
        sent = asyncio.create_task(client.send(STOP, command_id="c-1"))
        await service.until_asked(1)
        forgotten.append(str(service.asked[0].reply_to))
        await service.until_asked(2)
        service.answers.set()
        assert (await sent).outcome == "succeeded"
    assert len({message.reply_to for message in service.asked}) == 2


async def test_a_subscriber_whose_queue_is_forgotten_has_another_one(
    network: TcpProxy, service: Service, forgotten: list[str], monkeypatch: pytest.MonkeyPatch
):
    consumed: asyncio.Queue[str] = asyncio.Queue()
    consume = aio_pika.Queue.consume

    async def noted(self: Any, *how: Any, **options: Any) -> Any:
        consumer = await consume(self, *how, **options)
        if self.name.startswith("cml.subscribers."):
            consumed.put_nowait(self.name)
        return consumer

    monkeypatch.setattr(aio_pika.Queue, "consume", noted)
    async with asyncio.timeout(60), WorkerClient(through(network)) as client, client.events() as events:
        forgotten.append(await consumed.get())
        assert await consumed.get() not in forgotten
        await service.bus.publish(event("1"))
        assert await anext(events) == ENVELOPE


async def test_a_connection_that_is_closed_while_it_is_opened_is_not_tried_again(
    network: TcpProxy, service: Service, monkeypatch: pytest.MonkeyPatch
):
    """As by a node that stops or starts. The library takes it for connected then, and no moment of it can be met from outside."""
    service.answers.set()
    opened = aio_pika.Connection._on_connected

    async def closed_meanwhile(connection: aio_pika.Connection) -> None:
        if "closed" not in happened:
            happened.append("closed")
            network.cut()
            assert connection.transport is not None
            await asyncio.wait((connection.transport.connection.closing,))
            await asyncio.sleep(0.1)
        await opened(connection)

    happened: list[str] = []
    async with asyncio.timeout(60), WorkerClient(through(network)) as client:
        monkeypatch.setattr(aio_pika.Connection, "_on_connected", closed_meanwhile)
        network.cut()
        while not happened:
            await asyncio.sleep(0.01)
        assert (await client.send(STOP)).outcome == "succeeded"
