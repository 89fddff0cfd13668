"""aiormq ends a call under way by a plain Exception, or a CancelledError, when it closes the connection: an outage."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aiormq import Channel
from faststream.rabbit import RabbitBroker

from cml_contracts.client import WorkerClient
from cml_contracts.commands import StopCMLWorker
from cml_workers.bus.port import BusUnavailableError, Outgoing
from cml_workers.bus.rabbit import RabbitBus, declare_topology

REPLY = Outgoing(
    exchange=None, routing_key="callers", body=b"{}", type="reply", message_id="1", mandatory=False
)


async def lost(*_: object, **__: object) -> None:
    raise Exception  # noqa: TRY002 - as the library does


async def test_a_role_that_starts_cannot_reach_the_broker(rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RabbitBroker, "start", lost)
    with pytest.raises(BusUnavailableError):
        await RabbitBus(rabbitmq_url, name="test").start()


async def test_a_message_is_not_confirmed(rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch):
    async with RabbitBus(rabbitmq_url, name="test") as bus:
        with monkeypatch.context() as patch:
            patch.setattr(Channel, "_on_confirm_frame", lost)  # which ends its channel
            with pytest.raises(BusUnavailableError):
                await bus.publish(REPLY)


async def cancelled(*_: object, **__: object) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("ended", [lost, cancelled])
async def test_a_command_is_sent_on_another_channel(
    ended: Callable[[], Awaitable[None]], rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
):
    await declare_topology(rabbitmq_url)
    get_exchange, calls = aio_pika.Channel.get_exchange, 0

    async def lost_once(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            await ended()
        return await get_exchange(*given, **named)

    async with WorkerClient(rabbitmq_url) as client:
        monkeypatch.setattr(aio_pika.Channel, "get_exchange", lost_once)
        await client.post(StopCMLWorker(worker_id=uuid4()))
    assert calls == 2
