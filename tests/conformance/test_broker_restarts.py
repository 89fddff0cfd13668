"""The embedded broker and RabbitMQ, seen through aio-pika: what was confirmed survives."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import aio_pika
import pytest

from support.ports import free_port
from support.queues import QUORUM, bodies, put, take
from support.rabbitmq import installed, private_rabbitmq, speaks_amqp


class Restartable(Protocol):
    """A broker of the test's own."""

    @property
    def url(self) -> str: ...
    def crash_and_start(self) -> None: ...


class EmbeddedProcess:
    """The embedded broker in a process, killed with -9 and started on the same port and folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}/"
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "cml_embedded.amqp_broker",
                "--port",
                str(self._port),
                "--data-dir",
                self._folder,
            ],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        assert speaks_amqp("127.0.0.1", self._port)

    def close(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def crash_and_start(self) -> None:
        self.close()
        self.start()


class CrashingRabbitMQ:
    """RabbitMQ, likewise."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url = server.url

    def crash_and_start(self) -> None:
        self._server.kill()
        self._server.start()


@contextmanager
def restartable(kind: str, folder: Path) -> Iterator[Restartable]:
    if kind == "embedded":
        process = EmbeddedProcess(folder)
        try:
            yield process
        finally:
            process.close()
    else:
        with private_rabbitmq(folder) as server:
            yield CrashingRabbitMQ(server)


@pytest.mark.parametrize("kind", ["embedded", "rabbitmq"])
async def test_what_was_confirmed_survives_a_crash(request: pytest.FixtureRequest, tmp_path: Path, kind: str):
    if kind == "rabbitmq" and not installed():
        request.getfixturevalue("rabbitmq_url")  # says why there is none
        pytest.skip("a RabbitMQ that may be killed needs an installed server")
    with restartable(kind, tmp_path / "broker") as broker:
        async with await aio_pika.connect(broker.url) as connection:
            channel = await connection.channel()
            exchange = await channel.declare_exchange("kept", "topic", durable=True)
            queue = await channel.declare_queue("work", durable=True, arguments=QUORUM)
            await queue.bind(exchange, "k.#")
            back: dict[str, Any] = {
                "x-message-ttl": 500,
                "x-dead-letter-exchange": "kept",
                "x-dead-letter-routing-key": "k.back",
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
            await channel.declare_queue("waiting", durable=True, arguments={**QUORUM, **back})
            await asyncio.sleep(
                1
            )  # a RabbitMQ that is killed within half a second forgets a new quorum queue
            for body in ("a", "b", "c"):
                await exchange.publish(aio_pika.Message(body.encode(), delivery_mode=2), "k.x")
            assert await bodies(queue, 1) == ["a"]
            held = await take(queue)
            assert held.body == b"b"
            await put(channel, await channel.get_queue("waiting"), "later")
            await asyncio.sleep(0.3)
            await asyncio.to_thread(broker.crash_and_start)
        async with await aio_pika.connect(broker.url) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue("work")
            seen = [await take(queue, 20) for _ in range(3)]
            assert await queue.get(fail=False) is None
            assert sorted(message.body for message in seen) == [b"b", b"c", b"later"]
            assert {m.body: m.redelivered for m in seen}[b"b"]
            exchange = await channel.declare_exchange("kept", "topic", durable=True)
            await exchange.publish(aio_pika.Message(b"d", delivery_mode=2), "k.y")
            assert (await take(queue)).body == b"d"
