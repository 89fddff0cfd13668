"""How many messages wait, and how many consumers a queue has: as the broker says, and nothing while it cannot be asked."""

import asyncio

import aio_pika
import pytest
from prometheus_client import Gauge
from yarl import URL

from cml_workers.bus.port import Message, Verdict
from cml_workers.bus.rabbit import RabbitBus, declare_topology, depths
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.bus.usage import Usage
from cml_workers.foundation.metrics import QUEUE_CONSUMERS, QUEUE_MESSAGES
from support.recorder import Recorder, outgoing
from support.tcp_proxy import TcpProxy
from support.waiting import until


def shown(gauge: Gauge) -> float | None:
    (family,) = gauge.collect()
    return next(
        (each.value for each in family.samples if each.labels["queue"] == LIFECYCLE_COMMANDS.name), None
    )


async def test_messages_and_consumers(empty: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(depths, "LOOKS_EVERY", 0.05)
    release = asyncio.Event()

    async def held(message: Message) -> Verdict:
        await release.wait()
        return await recorder.done(message)

    recorder.answer = held
    bus = RabbitBus(empty, name="test")
    bus.consume(LIFECYCLE_COMMANDS, recorder, prefetch=1)
    async with bus:
        for _ in range(4):
            await bus.publish(outgoing())
        await until(lambda: (shown(QUEUE_MESSAGES), shown(QUEUE_CONSUMERS)) == (3, 1))
        other = RabbitBus(empty, name="other")
        other.consume(LIFECYCLE_COMMANDS, recorder, prefetch=1)
        async with other:
            await until(lambda: (shown(QUEUE_MESSAGES), shown(QUEUE_CONSUMERS)) == (2, 2))
            release.set()
            await until(lambda: shown(QUEUE_MESSAGES) == 0)


async def test_what_cannot_be_asked_is_not_shown(
    empty: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(depths, "LOOKS_EVERY", 0.05)
    async with TcpProxy(URL(empty).port or 5672) as network:
        bus = RabbitBus(network.through(empty), name="test")
        bus.consume(LIFECYCLE_COMMANDS, recorder, prefetch=1)
        async with bus:
            await until(lambda: shown(QUEUE_CONSUMERS) == 1)
            outage = asyncio.create_task(network.outage(2))
            await until(lambda: shown(QUEUE_CONSUMERS) is None)
            await outage
            await until(lambda: shown(QUEUE_CONSUMERS) is not None)


async def test_a_look_that_the_library_cancels_is_one_that_failed(monkeypatch: pytest.MonkeyPatch):
    """As it does with a connection that it closes."""
    monkeypatch.setattr(depths, "LOOKS_EVERY", 0.01)
    looked = 0

    def connected() -> None:
        nonlocal looked
        looked += 1
        raise asyncio.CancelledError

    QUEUE_CONSUMERS.labels(LIFECYCLE_COMMANDS.name).set(1)
    measuring = asyncio.create_task(depths.keep_measured(connected, lambda: [LIFECYCLE_COMMANDS]))
    await until(lambda: looked > 2)
    assert shown(QUEUE_CONSUMERS) is None
    measuring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await measuring


async def test_senders_own_queues_are_shown_with_the_one_of_all(
    empty: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(depths, "LOOKS_EVERY", 0.05)
    uses = Usage((LIFECYCLE_COMMANDS,)).with_own(("ann", "ben"))
    await declare_topology(empty, uses)
    release = asyncio.Event()

    async def held(message: Message) -> Verdict:
        await release.wait()
        return await recorder.done(message)

    recorder.answer = held
    bus = RabbitBus(empty, name="test", uses=uses)
    bus.consume(LIFECYCLE_COMMANDS, recorder, prefetch=1)
    async with bus, await aio_pika.connect(empty) as connection:
        channel = await connection.channel()
        for each in uses.consumes:
            exchange = await channel.get_exchange(each.bindings[0].exchange.name)
            for _ in range(3):
                await exchange.publish(aio_pika.Message(b"{}"), "cml.worker.start.v1")
        await until(lambda: (shown(QUEUE_MESSAGES), shown(QUEUE_CONSUMERS)) == (6, 1))
        (family,) = QUEUE_MESSAGES.collect()
        shown_by_name = {each.labels["queue"] for each in family.samples}
        assert not {name for name in shown_by_name if name.startswith(f"{LIFECYCLE_COMMANDS.name}.")}
        release.set()
        await until(lambda: shown(QUEUE_MESSAGES) == 0)
        for each in uses.consumes:
            if each.shared:
                await channel.queue_delete(each.name)
                await channel.exchange_delete(each.bindings[0].exchange.name)
