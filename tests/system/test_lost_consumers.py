"""What a subscriber had not acknowledged when a node of the cluster died: RabbitMQ 4.3 sends it behind later events, and marks it.

Of a connection that is lost alone: tests/bus/test_sent_again.py.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest

from cml_contracts.envelope import EventEnvelope
from cml_contracts.topology import EVENTS_EXCHANGE
from cml_tools.definitions import PERMISSIONS, definitions
from cml_workers.runtime.role import background
from support.missing import missing
from support.queues import QUORUM
from support.rabbitmq import NoRabbitMQError, installed
from support.rabbitmq_cluster import SIZE, RabbitMQCluster, rabbitmq_cluster, server_version
from support.secret_parts import everything_to
from system.cluster.parts import JUDGE
from system.cluster.subscribers import Came, by_client

QUEUE = "cml.test.lost-consumers"
HELD = 5_000
"""Milliseconds that RabbitMQ 4.3 holds what the consumer of a lost node had; 200 as shipped, in which it is a matter of luck."""
Publishes = Callable[[], Coroutine[Any, Any, None]]
TIMEOUT = 300
"""Seconds for a cluster that starts, and a node that is lost, on a busy machine."""


@pytest.fixture(scope="module")
def version() -> tuple[int, ...]:
    script = installed()
    if script is None:
        missing(NoRabbitMQError("no RabbitMQ to spawn"))
    found = server_version(script)
    if found < (4, 0):
        pytest.skip("needs RabbitMQ 4: make test-rabbitmq")
    return found


@pytest.fixture
async def cluster(version: tuple[int, ...], tmp_path: Path) -> AsyncIterator[RabbitMQCluster]:
    """With the shipped settings, and a queue of subscribers that holds for longer."""
    imported = everything_to(JUDGE, json.dumps(definitions({user: user for user in PERMISSIONS})))
    async with rabbitmq_cluster(tmp_path, imported) as cluster:
        if version >= (4, 3):
            held = json.dumps({"consumer-disconnected-timeout": HELD})
            await cluster.control("rabbitmqctl", "set_policy", "held", f"^{QUEUE}$", held)
        yield cluster


@asynccontextmanager
async def published(cluster: RabbitMQCluster, number: int) -> AsyncIterator[Publishes]:
    """What publishes the next event of one worker, its revisions from 0 on, from a node; it returns when that is confirmed."""
    worker_id, revisions = uuid4(), count()
    async with await aio_pika.connect(cluster.url(JUDGE, number)) as connection:
        exchange = await (await connection.channel()).get_exchange(EVENTS_EXCHANGE.name, ensure=False)

        async def publish() -> None:
            event = EventEnvelope(
                id=uuid4(),
                source="test",
                type="cml.worker.start_requested.v1",
                worker_id=worker_id,
                revision=next(revisions),
                time=datetime(2026, 1, 2, tzinfo=UTC),
                data={"operation_id": "start"},
            )
            body = json.dumps(event.to_cloudevent()).encode()
            await exchange.publish(aio_pika.Message(body, delivery_mode=2), event.type)

        yield publish


async def goes_on(publish: Publishes) -> None:
    """None waits for the confirm of another: a queue that lost its leader may keep a message back until the next one comes."""
    async with asyncio.TaskGroup() as publishing:
        while True:
            publishing.create_task(publish())
            await asyncio.sleep(0.05)


async def declared(cluster: RabbitMQCluster) -> list[int]:
    """The node that leads the subscribers' queue, and the others."""
    async with await aio_pika.connect(cluster.url(JUDGE, 0)) as connection:
        await (await connection.channel()).declare_queue(QUEUE, durable=True, arguments=dict(QUORUM))
    leader = await cluster.leader_of(QUEUE)
    return [leader, *(number for number in range(SIZE) if number != leader)]


@pytest.mark.timeout(TIMEOUT)
async def test_with_its_node_it_loses_what_it_had_which_comes_marked_and_with_rabbitmq_4_3_behind_later_events(
    cluster: RabbitMQCluster, version: tuple[int, ...]
):
    """WorkerClient goes on at another node; the first event it held, the other two were on their way to it."""
    *places, publisher = await declared(cluster)
    had = {0, 1, 2}
    came: list[tuple[int, bool]] = []
    async with (
        published(cluster, publisher) as publish,
        by_client(cluster.url(JUDGE, *places), QUEUE) as events,
    ):
        for _ in had:
            await publish()
        assert await numbered(events) == (0, False)
        node = await cluster.consumer_of(QUEUE)
        async with background(partial(goes_on, publish), "publishes"):
            await cluster.kill(node)
            await asyncio.sleep(1)  # the client notices, and drops what it had fetched
            while not had <= (revisions := {revision for revision, _ in came}) or gaps(revisions):
                came.append(await numbered(events))
    assert [revision for revision, marked in came if revision in had and marked] == sorted(had)
    first_sent = [revision for revision, marked in came if not marked]
    assert first_sent == sorted(first_sent)
    if version >= (
        4,
        3,
    ):  # before, it is a matter of luck whether the queue knows of the loss before there is another consumer
        assert came[0] == (min(first_sent), False), came


@pytest.mark.timeout(TIMEOUT)
async def test_with_the_leader_of_its_queue_alone_it_loses_nothing_and_the_order_stays(
    cluster: RabbitMQCluster,
):
    leader, *others = await declared(cluster)
    came: list[tuple[int, bool]] = []
    async with (
        published(cluster, others[0]) as publish,
        by_client(cluster.url(JUDGE, *others), QUEUE) as events,
        background(partial(goes_on, publish), "publishes"),
    ):
        came += [await numbered(events) for _ in range(10)]
        await cluster.kill(leader)
        came += [await numbered(events) for _ in range(100)]
    assert came == [(revision, False) for revision in range(110)]


def gaps(revisions: set[int]) -> set[int]:
    """Those that are still to come before the latest of them."""
    return set(range(max(revisions))) - revisions


async def numbered(events: Came) -> tuple[int, bool]:
    """The next one: its revision, and whether it is marked."""
    event, marked = await anext(events)
    return event.revision, marked
