"""What subscribers that do not take their events cost everybody else: creates beside each kind, and without any.

    PYTHONPATH=tests .venv/bin/python -m bench.bench_subscribers [--rounds 3] [--creates 30]

A cluster of three RabbitMQ nodes of its own, of the version that TEST_RABBITMQ_SERVER names, or of 4.3, which it makes once; each role in a process of its own,
connected to two of the nodes, and the EC2 simulator over HTTP. In each round every kind of subscriber is there for a while, one after the other, and none before and
after it; what is compared are the medians. Beside a queue on a dead node, the third, and before and after it that node is dead: what is measured is the
queue. About ten minutes; exits with 1 if a ratio is above 1.2, or if readiness does not say which queues take nothing.
"""

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue

from bench.medians import say, within_goal
from cml_contracts.client import WorkerClient
from cml_contracts.commands import CreateCMLWorker
from cml_tools.definitions import definitions
from cml_workers.bus.users import broker_user, hashed
from support.children import module
from support.ec2 import SimulatorAdmin
from support.ports import free_port
from support.queues import Consumer, a_queue
from support.rabbitmq_cluster import RabbitMQCluster, rabbitmq_cluster
from support.roles import Roles
from support.secret_parts import everything_to

REGION = "us-east-1"
USER = "bench"
MAKE_RABBITMQ = Path(__file__).parents[1] / "support" / "debian-rabbitmq"
WHOLE_AGAIN = 120.0
"""Seconds within which a node that was started has a member of each queue."""
SETTLE = 3.0
"""Seconds that a subscriber is there before something is measured."""

LAST = 2
"""The node to which no role is connected."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where subscribers are: a channel at a node that lives, and the cluster."""

    channel: AbstractChannel
    cluster: RabbitMQCluster


Subscriber = Callable[[Place], AbstractAsyncContextManager[None]]


async def _bound(queue: AbstractQueue, times: int = 1) -> None:
    for number in range(times):
        await queue.bind("cml.events", "#", arguments={"number": number})


@asynccontextmanager
async def full(place: Place) -> AsyncIterator[None]:
    async with a_queue(
        place.channel, x_queue_type="quorum", x_max_length=1, x_overflow="reject-publish"
    ) as queue:
        await _bound(queue)
        yield


@asynccontextmanager
async def dead(place: Place) -> AsyncIterator[None]:
    """A durable classic queue at a node that dies."""
    name = f"cml.replies.t.{uuid4()}"
    async with await aio_pika.connect(place.cluster.url(USER, LAST)) as connection:
        await _bound(await (await connection.channel()).declare_queue(name, durable=True))
        async with without_last(place):
            yield
    await place.channel.queue_delete(name)


@asynccontextmanager
async def without_last(place: Place) -> AsyncIterator[None]:
    """While the last node is dead."""
    await place.cluster.kill(LAST)
    try:
        yield
    finally:
        await place.cluster.start(LAST)
        await place.cluster.until_complete(WHOLE_AGAIN)


@asynccontextmanager
async def whole(_: Place) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def unread(place: Place) -> AsyncIterator[None]:
    async with a_queue(place.channel, x_queue_type="quorum") as queue:
        await _bound(queue)
        await queue.consume(Consumer())
        yield


@asynccontextmanager
async def bound_often(place: Place) -> AsyncIterator[None]:
    async with a_queue(place.channel, x_queue_type="quorum") as queue:
        await _bound(queue, 100)
        yield


KINDS: Mapping[str, tuple[Subscriber, Subscriber]] = {
    "full": (full, whole),
    "on a dead node": (dead, without_last),
    "never acknowledges": (unread, whole),
    "bound 100 times": (bound_often, whole),
}
"""The subscriber, and what there is without it."""
TAKE_NOTHING = ("full", "on a dead node")


class Bench:
    """Creates, and how long they took."""

    def __init__(self, client: WorkerClient, place: Place, image: str, health: str) -> None:
        self._client = client
        self._place = place
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
        for name, (subscriber, otherwise) in KINDS.items():
            before = await self._given_up()
            for there, number, took in (
                (otherwise, creates // 2, self.without),
                (subscriber, creates, self.beside),
                (otherwise, creates - creates // 2, self.without),
            ):
                async with there(self._place):
                    await self._create(1)
                    await asyncio.sleep(SETTLE)
                    took[name] += await self._create(number)
                    await asyncio.sleep(SETTLE)
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
    imported = definitions({})
    imported["users"].append(broker_user(USER, hashed(USER, os.urandom(4)), "", {}))
    async with (
        rabbitmq_cluster(folder / "rabbitmq", everything_to(USER, json.dumps(imported))) as cluster,
        AsyncExitStack() as stack,
    ):
        living = [number for number in range(len(cluster.nodes)) if number != LAST]
        amqp_url = cluster.url(USER, *living)
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
        async with (
            WorkerClient(amqp_url) as client,
            await aio_pika.connect(cluster.url(USER, 0)) as connection,
        ):
            place = Place(await connection.channel(), cluster)
            bench = Bench(client, place, image, f"http://127.0.0.1:{port}")
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--creates", type=int, default=30, help="beside each kind, in each round")
    chosen = parser.parse_args()
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if "TEST_RABBITMQ_SERVER" not in os.environ:
        made = subprocess.run([MAKE_RABBITMQ, "4.3"], check=True, stdout=subprocess.PIPE, text=True)
        os.environ["TEST_RABBITMQ_SERVER"] = f"{made.stdout.strip()}/rabbitmq-server"
    os.environ |= {"AWS_ACCESS_KEY_ID": "simulator", "AWS_SECRET_ACCESS_KEY": "simulator"}
    with tempfile.TemporaryDirectory(prefix="cml-bench-subscribers-") as folder:
        sys.exit(not asyncio.run(run(Path(folder), rounds=chosen.rounds, creates=chosen.creates)))


if __name__ == "__main__":
    main()
