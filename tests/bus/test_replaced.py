"""A queue of an earlier version gives what waits there to the one that took its place, on both brokers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity
from structlog.testing import capture_logs

from cml_contracts.topology import QUERIES_EXCHANGE
from cml_workers.bus.rabbit import RabbitBus, declare_topology
from cml_workers.bus.topology import PROJECTOR_QUERIES
from cml_workers.bus.usage import Usage
from support.recorder import Recorder, outgoing

EARLIER = "cml.projector.queries"
ARGUMENTS: dict[str, Any] = {"x-message-ttl": 60_000}
CONSUMES = Usage(consumes=(PROJECTOR_QUERIES,), publishes=(QUERIES_EXCHANGE,))


@pytest.fixture
async def channel(empty: str) -> AsyncIterator[AbstractChannel]:
    """With the earlier queue as the version before had it, and without the later one."""
    async with await aio_pika.connect(empty) as connection:
        channel = await connection.channel()
        await channel.queue_delete(PROJECTOR_QUERIES.name)
        earlier = await channel.declare_queue(EARLIER, durable=True, arguments=ARGUMENTS)
        await earlier.bind(QUERIES_EXCHANGE.name, "#")
        yield channel
        await (await connection.channel()).queue_delete(EARLIER)
    await declare_topology(empty)


async def exists(url: str) -> bool:
    async with await aio_pika.connect(url) as connection:
        try:
            await (await connection.channel()).declare_queue(EARLIER, passive=True)
        except ChannelNotFoundEntity:
            return False
        return True


async def test_what_waited_in_it_is_handled_in_its_senders_name_and_it_is_gone(
    empty: str, channel: AbstractChannel, recorder: Recorder
):
    forged: Any = {"x-cml-user-id": "somebody-else", "mark": "x"}
    message = aio_pika.Message(
        b"{}",
        message_id="m-1",
        correlation_id="c-1",
        reply_to="caller",
        type="t",
        user_id="guest",
        headers=forged,
    )
    await channel.default_exchange.publish(message, EARLIER)
    bus = RabbitBus(empty, name="test", uses=CONSUMES)
    bus.consume(PROJECTOR_QUERIES, recorder, prefetch=5)
    async with bus:
        (moved,) = await recorder.until(1)
        assert (moved.message_id, moved.correlation_id, moved.reply_to) == ("m-1", "c-1", "caller")
        assert (moved.type, moved.user_id, dict(moved.headers)) == ("t", "guest", {"mark": "x"})
        assert not await exists(empty)
        await bus.publish(outgoing("m-2", exchange=QUERIES_EXCHANGE))
        seen = await recorder.until(2)
    assert [each.message_id for each in seen] == ["m-1", "m-2"]


async def test_one_that_an_earlier_version_still_consumes_is_left_without_its_bindings(
    empty: str, channel: AbstractChannel, recorder: Recorder
):
    earlier = await channel.get_queue(EARLIER)
    still: asyncio.Queue[Any] = asyncio.Queue()
    await earlier.consume(still.put, no_ack=True)
    bus = RabbitBus(empty, name="test", uses=CONSUMES)
    bus.consume(PROJECTOR_QUERIES, recorder, prefetch=5)
    with capture_logs() as logs:
        async with bus:
            await bus.publish(outgoing("m-1", exchange=QUERIES_EXCHANGE))
            assert [each.message_id for each in await recorder.until(1)] == ["m-1"]
    assert await exists(empty)
    assert still.empty()
    assert [log["queue"] for log in logs if log["log_level"] == "warning"] == [EARLIER]


async def test_its_end_is_not_waited_for(
    empty: str, channel: AbstractChannel, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
):
    """The node that has it may be down: RabbitMQ says nothing of it for a minute."""

    async def silent(*_: object) -> int:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("cml_workers.bus.rabbit.replaced._move", silent)
    monkeypatch.setattr("cml_workers.bus.rabbit.replaced.TIMEOUT", 0.1)
    with capture_logs() as logs:
        await declare_topology(empty, CONSUMES)
    assert [log["queue"] for log in logs if log["log_level"] == "warning"] == [EARLIER]
