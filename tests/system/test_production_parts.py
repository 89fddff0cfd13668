"""The roles as processes on the parts of production: RabbitMQ, the KurrentDB adapter, PostgreSQL, an EC2 API."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import pytest

from cml_contracts.client import WorkerClient
from cml_embedded.ec2_simulator import Ec2Simulator
from cml_workers.bus.rabbit import declare_topology
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from support.callers import Callers
from support.ec2 import SimulatorAdmin
from support.invariants import violations
from support.kurrentdb import GIVEN, relay_may_begin
from support.load import Load
from support.observed import observe, stored_workers
from support.postgresql import emptied
from support.rabbitmq import SpawnedRabbitMQ, private_rabbitmq
from support.roles import Roles
from support.servers import GivenServer, own_kurrentdb
from support.tcp_proxy import TcpProxy

COMMANDS = 500
PATIENCE = 240.0
"""Seconds in which all is sent, and as many again in which all must be answered."""


@pytest.fixture
def rabbitmq(tmp_path: Path) -> Iterator[SpawnedRabbitMQ]:
    with private_rabbitmq(tmp_path / "rabbitmq") as server:
        yield server


@pytest.fixture
def simulator() -> Iterator[Ec2Simulator]:
    with Ec2Simulator(transition_seconds=0.5) as simulator:
        yield simulator


@dataclass
class Store:
    """``outage``: nobody reaches it for a second or so."""

    uri: str
    outage: Callable[[], Awaitable[object]]
    workers: frozenset[UUID] = frozenset()
    """That were there before."""


@pytest.fixture
async def kurrentdb(tmp_path: Path) -> AsyncIterator[Store]:
    """The one that was given; or the stand-in as a process of its own, behind a network that can be cut."""
    if given := os.environ.get(GIVEN):
        server = GivenServer("KURRENTDB")

        async def restart() -> None:
            if "killed" in server.harms:
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)

        store = KurrentDbEventStore(given)
        await relay_may_begin(store)
        yield Store(given, restart, await stored_workers(store))
        await store.close()
    else:
        with own_kurrentdb(tmp_path / "store") as (uri, _):
            async with TcpProxy(urlsplit(uri).port or 0) as proxy:
                yield Store(f"esdb://127.0.0.1:{proxy.port}?tls=false", lambda: proxy.outage(1.0))


@pytest.mark.timeout(700)
async def test_500_mixed_commands_while_the_broker_restarts_and_the_store_is_cut_off(
    rabbitmq: SpawnedRabbitMQ,
    kurrentdb: Store,
    postgresql_url: str,
    simulator: Ec2Simulator,
    tmp_path: Path,
):
    await declare_topology(rabbitmq.url)
    roles = Roles(
        tmp_path,
        RABBITMQ_URL=rabbitmq.url,
        KURRENTDB_URI=kurrentdb.uri,
        DATABASE_URL=await emptied(postgresql_url),
        AWS_ENDPOINT_URL=simulator.url,
        CML_VISIBILITY_GRACE_SECONDS="3",
        CML_AUTHORIZE="false",
    )
    try:
        async with (
            Callers(rabbitmq.url, "cml.replies.callers.some") as callers,
            WorkerClient(rabbitmq.url) as client,
        ):
            load = Load(callers, client, total=COMMANDS, fleet=60)
            running = asyncio.create_task(load.run())
            for number, fault in enumerate(("store", "broker", "store", "broker", "store"), 1):
                async with asyncio.timeout(120):
                    while load.answered < number * COMMANDS // 8 and not running.done():
                        await asyncio.sleep(0.05)
                if fault == "broker":
                    await asyncio.to_thread(rabbitmq.restart)
                else:
                    await kurrentdb.outage()
            async with asyncio.timeout(PATIENCE):
                await running
            await callers.all_answers(PATIENCE)
        assert len(load.sent) == COMMANDS
        store = KurrentDbEventStore(kurrentdb.uri)
        admin = SimulatorAdmin(simulator.url)

        for _ in range(60):
            seen = await observe(
                store,
                admin,
                postgresql_url,
                {**callers.replies, **load.of_client},
                load.sent,
                awaited=callers.awaited,
                answered=callers.answered,
                status_updates=load.status_updates,
                others=kurrentdb.workers,
            )
            if not (broken := violations(seen)):
                break
            await asyncio.sleep(1)
        await store.close()
        assert broken == []
        print(
            f"{load.answered} of {COMMANDS} commands answered, {load.repeated} repetitions; how they were sent: "
            f"{dict(load.manners)}; {callers.unconfirmed} published again as they were not confirmed; "
            f"{len(seen.events)} events, {len(seen.instances)} instances launched for 60 workers"
        )
        assert load.answered == COMMANDS - load.manners["post"]
        assert len(seen.instances) == len(seen.rows or ()) == 60
        assert all(process.poll() is None for process in roles.processes.values()), roles.log()
    finally:
        roles.kill()
    assert "Traceback" not in roles.log()
