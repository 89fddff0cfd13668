"""A day with faults, seen by a real Prometheus: every panel and alert has its values, and each alert fires in its fault."""

import asyncio
import json
import math
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import aio_pika
import pytest

from cml_contracts.client import NoResultYetError, WorkerClient
from cml_contracts.commands import (
    CreateCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerTags,
)
from cml_contracts.events import TagsUpdated, TagsUpdateRequested
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from cml_tools.alerts import ALERTS
from cml_tools.dashboard import panels
from cml_workers.eventstore.names import stream_of
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import append, load
from cml_workers.process.registry import ROLES
from support.broken import append_raw, binary
from support.buses import emptied
from support.ec2 import SimulatorAdmin
from support.given import recorded
from support.missing import missing
from support.ports import free_port
from support.postgresql import NoPostgreSQLError, SpawnedPostgreSQL, private_postgresql
from support.prometheus import NoPrometheusError, Prometheus, prometheus
from support.roles import Roles

OVERDUE, BEHIND = 15, 32
"""Seconds: the deadline of an operation; for how long the projector is frozen."""


class Site:
    """The roles on parts of their own, and what watches them."""

    def __init__(self, folder: Path, rabbitmq: str, postgresql: SpawnedPostgreSQL, ec2: str) -> None:
        self.ports = {role: free_port() for role in ROLES}
        self.url, self.postgresql, self.admin = rabbitmq, postgresql, SimulatorAdmin(ec2)
        self.own: dict[str, dict[str, str]] = {role: {} for role in ROLES}
        self.data = folder / "data"
        self.roles = Roles(
            folder,
            each=lambda role: {"CML_HEALTH_PORT": str(self.ports[role]), **self.own[role]},
            plant="slow_projector",  # or it would catch up between two looks
            RABBITMQ_URL=rabbitmq,
            DATABASE_URL=postgresql.url,
            AWS_ENDPOINT_URL=ec2,
            CML_AUTHORIZE="false",
            CML_VISIBILITY_GRACE_SECONDS="3",
            CML_REMINDER_SECONDS="3600",
            CML_OPERATION_DEADLINE_SECONDS=str(OVERDUE),
        )
        self.fired: set[str] = set()
        self.prometheus: Prometheus

    @contextmanager
    def watched(self, folder: Path) -> Iterator[None]:
        with prometheus(folder, self.ports) as self.prometheus:
            yield

    async def until_ready(self) -> None:
        async with asyncio.timeout(120):
            while not all(self.roles.ready(name) for name in self.roles.processes):
                await asyncio.sleep(0.2)

    async def until_fires(self, *names: str) -> None:
        """At the same time or one after the other."""
        waited_for = set(names)
        try:
            async with asyncio.timeout(120):
                while waited_for:
                    firing = await asyncio.to_thread(self.prometheus.firing)
                    self.fired |= firing
                    waited_for -= firing
                    await asyncio.sleep(0.3)
        except TimeoutError:
            raise AssertionError(f"{waited_for} did not fire; {self.roles.log()[-8000:]}") from None


@pytest.fixture
async def site(tmp_path: Path, rabbitmq_url: str) -> AsyncIterator[Site]:
    await emptied(rabbitmq_url)
    try:
        with private_postgresql() as postgresql, Ec2Simulator(transition_seconds=0.3) as simulator:
            site = Site(tmp_path, rabbitmq_url, postgresql, simulator.url)
            try:
                await site.until_ready()
                with site.watched(tmp_path / "prometheus"):
                    yield site
            finally:
                site.roles.kill()
    except (NoPostgreSQLError, NoPrometheusError) as error:
        missing(error)


def create(region: str = "us-east-1") -> CreateCMLWorker:
    return CreateCMLWorker(name="lab", aws_region=region, ami_id=DEMO_IMAGES[region], created_by="ann")


async def quiet_day(client: WorkerClient) -> UUID:
    """A worker after its life so far; another one is terminated, and what was asked of none is rejected."""
    one, other = [(await client.send(create(), deadline=60)).worker_id for _ in range(2)]
    assert one is not None
    assert other is not None
    rejected = await client.send(StopCMLWorker(worker_id=uuid4()), deadline=60)
    assert rejected.outcome == "rejected"
    for command in (
        UpdateCMLWorkerTags(worker_id=one, tags={"course": "ccna"}),
        StopCMLWorker(worker_id=one),
        StartCMLWorker(worker_id=one),
        TerminateCMLWorker(worker_id=other),
    ):
        async with asyncio.timeout(60):
            while (await client.send(command, deadline=60)).outcome == "rejected":
                await asyncio.sleep(0.3)  # it is on its way from one state to another
    return one


async def nonsense(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        exchange = await (await connection.channel()).get_exchange("cml.commands", ensure=False)
        message = aio_pika.Message(
            json.dumps({"no": "command"}).encode(), type="cml.worker.start.v1", message_id="x"
        )
        await exchange.publish(message, routing_key="cml.worker.start.v1")


async def many_events(store: SqliteEventStore, worker_id: UUID) -> None:
    """So many that whoever is behind shows it."""
    for _ in range(20):
        worker = await load(store, worker_id)
        events = [
            event
            for number in range(100)
            for event in (
                TagsUpdateRequested(operation_id=f"tag-{worker.revision}-{number}", tags={"n": str(number)}),
                TagsUpdated(operation_id=f"tag-{worker.revision}-{number}", tags={"n": str(number)}),
            )
        ]
        now = datetime.now(UTC)
        metadata = [
            recorded(worker, event, now, "many").metadata.model_copy(
                update={"event_id": uuid4(), "reply": None}
            )
            for event in events
        ]
        await append(store, worker, list(zip(events, metadata, strict=True)))


async def sampled(site: Site, wanted: set[str]) -> None:
    """Take from ``wanted`` what has had a value; until all have."""
    while wanted:
        for query in tuple(wanted):
            filled = query.replace("$__rate_interval", "1m")
            found = await asyncio.to_thread(site.prometheus.values, filled)
            if any(not math.isnan(value) for value in found.values()):
                wanted.discard(query)
        await asyncio.sleep(1)


@pytest.mark.timeout(900)
async def test_a_day_with_faults(site: Site) -> None:
    clock = asyncio.get_running_loop().time
    wanted = {query for panel in panels() for query, _ in panel.queries} | {each.shows for each in ALERTS}
    sampling = asyncio.create_task(sampled(site, wanted))
    async with WorkerClient(site.url) as client, asyncio.timeout(800):
        await client.send(create(), deadline=120)  # a client of EC2 takes its time to start
        while await asyncio.to_thread(site.prometheus.values, "sum(up)") != {(): len(ROLES)}:
            await asyncio.sleep(0.5)
        await asyncio.sleep(5)
        while await asyncio.to_thread(site.prometheus.firing):
            await asyncio.sleep(0.5)
        began = clock()
        worker_id = await quiet_day(client)
        await asyncio.sleep(12)  # what is counted now and then has been, too
        history = f'count_over_time(ALERTS{{alertstate="firing"}}[{int(clock() - began)}s])'
        assert await asyncio.to_thread(site.prometheus.values, history) == {}

        await nonsense(site.url)
        await site.until_fires("CMLDeadLettersGrow")

        for region, code, status in (
            ("us-west-2", "RequestLimitExceeded", 503),
            ("eu-west-1", "AuthFailure", 401),
        ):
            site.admin.fault("*", code, region=region, status=status, times=None)
            with pytest.raises(NoResultYetError):
                await client.send(create(region), deadline=1)
        await site.until_fires("CMLThrottled", "CMLCredentialsRefused", "CMLOperationsOverdue")

        store = SqliteEventStore(site.data / "events.sqlite3")
        projector = site.roles.processes["projector"].pid
        os.kill(projector, signal.SIGSTOP)
        await many_events(store, worker_id)
        await site.until_fires("CMLProcessDown")
        await asyncio.sleep(BEHIND)
        os.kill(projector, signal.SIGCONT)
        await site.until_fires("CMLFollowerBehind")

        await append_raw(store, stream_of(worker_id), binary())
        await site.until_fires("CMLQuarantine")
        await store.close()

        async with asyncio.timeout(60):
            await sampling
        # From here on parts are gone, and what they would say.
        site.own["projector"]["CML_DATA_DIR"] = str(site.data.parent / "empty")
        site.roles.kill_and_start("projector")
        await site.until_fires("CMLCheckpointUnusable", "CMLRoleNotReady")

        await asyncio.to_thread(site.postgresql.crash)
        await site.until_fires("CMLPartUnavailable")

        site.roles.processes["lifecycle"].kill()
        await site.until_fires("CMLQueueWithoutConsumer")
    assert wanted == set()
    assert site.fired == {each.name for each in ALERTS}
