"""A connection to both brokers: publishing, prefetch, stopping, and what is reported when it cannot be opened."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import uvloop
from aiormq import Channel

from cml_workers.bus.port import (
    Ack,
    BusUnavailableError,
    Message,
    UnroutableError,
    Verdict,
)
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.topology import (
    LIFECYCLE_COMMANDS,
)
from support.recorder import Recorder, outgoing


async def test_an_unroutable_message_raises_if_it_is_mandatory(bus: RabbitBus, recorder: Recorder):
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


async def test_a_broker_that_is_not_there_is_said_so_without_the_password():
    with pytest.raises(BusUnavailableError) as error:
        await RabbitBus("amqp://ann:secret@127.0.0.1:1/", name="test").start()
    assert "127.0.0.1:1" in str(error.value)
    assert "secret" not in str(error.value)


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
        ("", timedelta(seconds=10)),
        ("?heartbeat=5&name=x", timedelta(seconds=5)),
        ("?heartbeat=0", timedelta.max),
    ],
)
async def test_how_long_the_broker_tolerates_silence_is_known(asked: str, heartbeat: timedelta):
    assert RabbitBus(f"amqp://127.0.0.1/{asked}", name="test").heartbeat == heartbeat


async def test_a_cancellation_of_the_librarys_own_is_an_outage(
    bus: RabbitBus, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
):
    async def given_up(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "_on_confirm_frame", given_up)  # which ends its channel
        with pytest.raises(BusUnavailableError):
            await bus.publish(outgoing())
    await recorder.until(1)  # it was on its way all the same
