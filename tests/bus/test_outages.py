"""A consumer whose handler needs a part that is unavailable keeps what it has, and blames no message."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aio_pika
import pytest
from structlog.testing import capture_logs
from yarl import URL

from cml_workers.bus.port import Ack, Message, Verdict
from cml_workers.bus.rabbit import RabbitBus, keeping
from cml_workers.bus.topology import LIFECYCLE_COMMANDS, PROJECTOR_QUERIES, Queue
from support.buses import left_behind
from support.recorder import Recorder, outgoing
from support.tcp_proxy import TcpProxy
from support.unreliable import GoneError, Unreliable

PREFETCH = 10


class Service:
    """A recorder that uses a part; ``poisoned``: the id of a message whose own stream cannot be read."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.part = Unreliable()
        self.recorder = Recorder()
        self.recorder.answer = self.answer
        self.done: list[Message] = []
        self.poisoned: str | None = None

    async def answer(self, message: Message) -> Verdict:
        self.part.use()
        if message.message_id == self.poisoned:
            raise GoneError("of one stream")
        self.done.append(message)
        return Ack()

    @asynccontextmanager
    async def running(
        self, *, queue: Queue = LIFECYCLE_COMMANDS, url: str | None = None
    ) -> AsyncIterator[RabbitBus]:
        bus = RabbitBus(url or self.url, name="test")
        bus.consume(queue, self.recorder, prefetch=PREFETCH, outages=self.part.outages)
        async with bus:
            yield bus

    async def until_waiting(self) -> None:
        async with asyncio.timeout(60):
            while self.part.dependency.problem() is None:
                await asyncio.sleep(0.01)

    async def until_done(self, count: int) -> Sequence[Message]:
        async with asyncio.timeout(60):
            while len(self.done) < count:
                await asyncio.sleep(0.01)
        return self.done


@pytest.fixture
async def service(empty: str) -> AsyncIterator[Service]:
    service = Service(empty)
    yield service
    await service.part.dependency.close()


async def ready(url: str, queue: Queue) -> int:
    """Messages in the queue that no consumer has."""
    async with await aio_pika.connect(url) as connection:
        declared = await (await connection.channel()).declare_queue(queue.name, passive=True)
        return declared.declaration_result.message_count or 0


async def test_it_takes_no_more_than_its_prefetch_and_goes_on_when_the_part_answers(service: Service):
    service.part.works = False
    with capture_logs() as logs:
        async with service.running() as bus:
            await asyncio.gather(*(bus.publish(outgoing(str(number))) for number in range(50)))
            await service.until_waiting()
            async with asyncio.timeout(60):
                while await ready(service.url, LIFECYCLE_COMMANDS) != 50 - PREFETCH:
                    await asyncio.sleep(0.05)
            tried = len(service.recorder.seen)
            await asyncio.sleep(1)
            assert await left_behind(service.url) == {LIFECYCLE_COMMANDS.name: 50 - PREFETCH}
            assert len(service.recorder.seen) == tried <= PREFETCH
            service.part.works = True
            done = await service.until_done(50)
    assert {each.message_id for each in done} == {str(number) for number in range(50)}
    assert {(each.redelivered, each.deliveries, each.attempt) for each in done} == {(False, 1, 0)}
    assert [each["event"].partition(":")[0] for each in logs] == ["outage begins", "outage ends"]


async def test_one_message_whose_stream_cannot_be_read_stops_nobody(service: Service):
    service.poisoned = "poisoned"
    async with service.running() as bus:
        await bus.publish(outgoing("poisoned"))
        for number in range(5):
            await bus.publish(outgoing(str(number)))
        await service.until_done(5)
        assert service.part.dependency.problem() is None
        service.poisoned = None
        assert (await service.until_done(6))[-1].attempt > 0


async def test_when_it_is_stopped_what_waits_goes_back_at_once(service: Service):
    service.part.works = False
    async with service.running() as bus:
        for number in range(3):
            await bus.publish(outgoing(str(number)))
        await service.until_waiting()
        async with asyncio.timeout(60):
            while await ready(service.url, LIFECYCLE_COMMANDS):
                await asyncio.sleep(0.05)
        began = time.monotonic()
        with capture_logs() as logs:
            await bus.stop(grace=30)
        assert time.monotonic() - began < 15  # seconds less than it may take
        assert logs == []
    assert await left_behind(service.url) == {LIFECYCLE_COMMANDS.name: 3}
    service.part.works = True
    async with service.running():
        assert {each.message_id for each in await service.until_done(3)} == {"0", "1", "2"}


async def test_what_its_queue_would_have_dropped_by_then_is_dropped(service: Service):
    """A request that nobody awaits any more has no effect, and takes the place of none that somebody does."""
    service.part.works = False
    async with service.running(queue=PROJECTOR_QUERIES):
        async with await aio_pika.connect(service.url) as connection:
            channel = await connection.channel()
            for number in range(PREFETCH):
                message = aio_pika.Message(b"{}", message_id=f"old {number}", expiration=1)
                await channel.default_exchange.publish(message, PROJECTOR_QUERIES.name)
            new = [
                f"new {number}" for number in range(PREFETCH)
            ]  # as many: all are taken when no old one is left
            for name in new:
                await channel.default_exchange.publish(
                    aio_pika.Message(b"{}", message_id=name), PROJECTOR_QUERIES.name
                )
        await service.until_waiting()
        async with asyncio.timeout(60):
            while await ready(service.url, PROJECTOR_QUERIES):
                await asyncio.sleep(0.05)
        service.part.works = True
        await service.until_done(len(new))
    assert {each.message_id for each in service.done} == set(new)
    assert len(service.done) == len(new)


async def test_what_waits_for_longer_than_a_broker_allows_is_exchanged_for_a_new_message(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(keeping, "KEEPS", 0.5)
    service.part.works = False
    async with service.running() as bus:
        for number in range(2 * PREFETCH):
            await bus.publish(outgoing(str(number)))
        await service.until_waiting()
        await asyncio.sleep(2)
        assert set(await left_behind(service.url)) <= {LIFECYCLE_COMMANDS.name}
        service.part.works = True
        done = await service.until_done(2 * PREFETCH)
    assert {each.message_id for each in done} == {str(number) for number in range(2 * PREFETCH)}
    assert {(each.redelivered, each.deliveries, each.attempt) for each in done} == {(False, 1, 0)}


async def test_what_was_delivered_by_a_connection_that_is_lost_is_left_to_the_next_delivery(service: Service):
    """Whoever handles what another process may have by now would take itself for the leader."""
    service.part.works = False
    url = URL(service.url)
    async with TcpProxy(url.port or 5672) as network:
        through = str(url.with_host("127.0.0.1").with_port(network.port))
        async with service.running(url=through) as bus:
            for number in range(3):
                await bus.publish(outgoing(str(number)))
            await service.until_waiting()
            async with asyncio.timeout(60):
                while await ready(service.url, LIFECYCLE_COMMANDS):
                    await asyncio.sleep(0.05)
            tried = len(service.recorder.seen)
            with capture_logs() as logs:
                network.cut()
                async with asyncio.timeout(60):
                    while bus.problem() is not None or await ready(service.url, LIFECYCLE_COMMANDS):
                        await asyncio.sleep(0.05)
                service.part.works = True
                done = await service.until_done(3)
                await asyncio.sleep(0.5)
    assert len(service.recorder.seen) == tried + 3
    assert all(each.redelivered for each in done)
    assert [each["event"] for each in logs if each["event"] == "message not settled"] == []
