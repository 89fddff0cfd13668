"""What subscribers that do not take their events cost everybody else: creates beside each kind, and without any.

    PYTHONPATH=tests .venv/bin/python -m bench.bench_subscribers [--rounds 5] [--creates 20]

A RabbitMQ of its own, each role in a process of its own, and the EC2 simulator over HTTP. In each round every kind of subscriber is there for
a while, one after the other, and none before and after it; what is compared are the medians. For a queue on a dead node stands a classic one for which RabbitMQ
does not confirm either, as it has no room at all. About five minutes; exits with 1 if a ratio is above 1.2, or if readiness does not say which queues take nothing.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue

from bench.medians import say, within_goal
from cml_contracts.client import WorkerClient
from cml_contracts.commands import CreateCMLWorker
from support.children import module
from support.ec2 import SimulatorAdmin
from support.ports import free_port
from support.queues import Consumer, a_queue
from support.rabbitmq import private_rabbitmq
from support.roles import Roles

REGION = "us-east-1"
SETTLE = 3.0
"""Seconds that a subscriber is there before something is measured."""

Subscriber = Callable[[AbstractChannel], AbstractAsyncContextManager[None]]


async def _bound(queue: AbstractQueue, times: int = 1) -> None:
    for number in range(times):
        await queue.bind("cml.events", "#", arguments={"number": number})


@asynccontextmanager
async def full(channel: AbstractChannel) -> AsyncIterator[None]:
    async with a_queue(channel, x_queue_type="quorum", x_max_length=1, x_overflow="reject-publish") as queue:
        await _bound(queue)
        yield


@asynccontextmanager
async def dead(channel: AbstractChannel) -> AsyncIterator[None]:
    """As one on a dead node: classic, and nothing is ever confirmed."""
    async with a_queue(channel, x_max_length=0, x_overflow="reject-publish") as queue:
        await _bound(queue)
        yield


@asynccontextmanager
async def unread(channel: AbstractChannel) -> AsyncIterator[None]:
    async with a_queue(channel, x_queue_type="quorum") as queue:
        await _bound(queue)
        await queue.consume(Consumer())
        yield


@asynccontextmanager
async def bound_often(channel: AbstractChannel) -> AsyncIterator[None]:
    async with a_queue(channel, x_queue_type="quorum") as queue:
        await _bound(queue, 100)
        yield


KINDS: Mapping[str, Subscriber] = {
    "full": full,
    "on a dead node": dead,
    "never acknowledges": unread,
    "bound 100 times": bound_often,
}
TAKE_NOTHING = ("full", "on a dead node")


class Bench:
    """Creates, and how long they took."""

    def __init__(self, client: WorkerClient, channel: AbstractChannel, image: str, health: str) -> None:
        self._client = client
        self._channel = channel
        self._image = image
        self._health = health
        self.beside: dict[str, list[float]] = defaultdict(list)
        """Seconds of the creates beside each kind of subscriber."""
        self.without: dict[str, list[float]] = defaultdict(list)
        """Of those just before and after."""
        self.unsaid: set[str] = set()
        """Kinds that take nothing, and that readiness did not say so of."""

    async def round(self, creates: int) -> None:
        """Half of those without before, and half after, as creates become slower with the workers that there are."""
        for name, subscriber in KINDS.items():
            before = await self._given_up()
            self.without[name] += await self._create(creates // 2)
            async with subscriber(self._channel):
                await self._create(1)
                await asyncio.sleep(SETTLE)
                self.beside[name] += await self._create(creates)
                await asyncio.sleep(SETTLE)
            await self._create(1)
            await asyncio.sleep(SETTLE)
            self.without[name] += await self._create(creates - creates // 2)
            if name in TAKE_NOTHING and await self._given_up() <= before:
                self.unsaid.add(name)

    async def _create(self, number: int) -> list[float]:
        took = []
        for _ in range(number):
            began = time.perf_counter()
            result = await self._client.send(
                CreateCMLWorker(
                    name=f"bench-{uuid4()}",
                    aws_region=REGION,
                    ami_id=self._image,
                    instance_type="t3.micro",
                    created_by="bench",
                )
            )
            took.append(time.perf_counter() - began)
            assert result.outcome == "succeeded", result
        return took

    async def _given_up(self) -> int:
        def ask() -> dict[str, Any]:
            with urlopen(f"{self._health}/readyz", timeout=10) as answer:
                content: dict[str, Any] = json.load(answer)
                return content

        return int((await asyncio.to_thread(ask))["events_given_up"])


async def run(folder: Path, *, rounds: int, creates: int) -> bool:
    """Whether all is as it should be."""
    with ExitStack() as stack:
        amqp_url = stack.enter_context(private_rabbitmq(folder / "rabbitmq")).url
        simulator = stack.enter_context(module("cml_embedded.ec2_simulator", "--transition-seconds", "0.2"))
        assert simulator.stdout is not None
        ec2 = simulator.stdout.readline().strip()
        port = free_port()
        roles = Roles(
            folder,
            each=lambda name: {"CML_HEALTH_PORT": str(port)} if name == "relay" else {},
            RABBITMQ_URL=amqp_url,
            AWS_ENDPOINT_URL=ec2,
            CML_AUTHORIZE="false",
            CML_LOG_LEVEL="error",
        )
        stack.callback(roles.kill)
        while not all(roles.ready(name) for name in roles.processes):
            await asyncio.sleep(0.2)
        image = SimulatorAdmin(ec2).add_image(REGION, "bench")
        async with WorkerClient(amqp_url) as client, await aio_pika.connect(amqp_url) as connection:
            bench = Bench(client, await connection.channel(), image, f"http://127.0.0.1:{port}")
            await bench._create(5 * creates)  # the first of everything is slower
            for number in range(rounds):
                await bench.round(creates)
                say(f"round {number + 1} of {rounds}")
            return report(bench) and not bench.unsaid


def report(bench: Bench) -> bool:
    """A line for each kind; whether the goal is met."""
    met = [within_goal(kind, bench.without[kind], bench.beside[kind]) for kind in KINDS]
    return all(met)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--creates", type=int, default=20, help="beside each kind, in each round")
    chosen = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "simulator", "AWS_SECRET_ACCESS_KEY": "simulator"}
    with tempfile.TemporaryDirectory(prefix="cml-bench-subscribers-") as folder:
        sys.exit(not asyncio.run(run(Path(folder), rounds=chosen.rounds, creates=chosen.creates)))


if __name__ == "__main__":
    main()
