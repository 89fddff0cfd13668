"""The roles as processes on the parts of production: RabbitMQ, the KurrentDB adapter, PostgreSQL, an EC2 API."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cml_contracts.client import WorkerClient
from cml_embedded.ec2_simulator import Ec2Simulator
from cml_workers.bus.rabbit import declare_topology
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from support.callers import Callers
from support.children import module
from support.ec2 import SimulatorAdmin
from support.invariants import violations
from support.load import Load
from support.observed import observe
from support.postgresql import SpawnedPostgreSQL, private_postgresql
from support.rabbitmq import SpawnedRabbitMQ, free_port, private_rabbitmq
from support.roles import Roles
from support.tcp_proxy import TcpProxy

COMMANDS = 500
PATIENCE = 240.0
"""Seconds in which all is sent, and as many again in which all must be answered."""


@pytest.fixture
def rabbitmq(tmp_path: Path) -> Iterator[SpawnedRabbitMQ]:
    with private_rabbitmq(tmp_path / "rabbitmq") as server:
        yield server


@pytest.fixture
def postgresql() -> Iterator[SpawnedPostgreSQL]:
    with private_postgresql() as server:
        yield server


@pytest.fixture
def simulator() -> Iterator[Ec2Simulator]:
    with Ec2Simulator(transition_seconds=0.5) as simulator:
        yield simulator


@pytest.fixture
async def kurrentdb() -> AsyncIterator[TcpProxy]:
    """The stand-in as a process of its own, behind a network that can be cut."""
    port = free_port()
    with module("support.kurrentdb_standin", "--port", str(port)):
        async with TcpProxy(port) as proxy:
            yield proxy


@pytest.mark.timeout(700)
async def test_500_mixed_commands_while_the_broker_restarts_and_the_store_is_cut_off(
    rabbitmq: SpawnedRabbitMQ,
    kurrentdb: TcpProxy,
    postgresql: SpawnedPostgreSQL,
    simulator: Ec2Simulator,
    tmp_path: Path,
):
    await declare_topology(rabbitmq.url)
    roles = Roles(
        tmp_path,
        RABBITMQ_URL=rabbitmq.url,
        KURRENTDB_URI=f"esdb://127.0.0.1:{kurrentdb.port}?tls=false",
        DATABASE_URL=postgresql.url,
        AWS_ENDPOINT_URL=simulator.url,
        CML_VISIBILITY_GRACE_SECONDS="3",
        CML_AUTHORIZE="false",
    )
    try:
        async with Callers(rabbitmq.url, "callers") as callers, WorkerClient(rabbitmq.url) as client:
            load = Load(callers, client, total=COMMANDS, fleet=60)
            running = asyncio.create_task(load.run())
            for number, fault in enumerate(("store", "broker", "store", "broker", "store"), 1):
                async with asyncio.timeout(120):
                    while load.answered < number * COMMANDS // 8 and not running.done():
                        await asyncio.sleep(0.05)
                if fault == "broker":
                    await asyncio.to_thread(rabbitmq.restart)
                else:
                    await kurrentdb.outage(1.0)
            async with asyncio.timeout(PATIENCE):
                await running
            await callers.all_answers(PATIENCE)
        assert len(load.sent) == COMMANDS
        store = KurrentDbEventStore(roles.environment["KURRENTDB_URI"])
        admin = SimulatorAdmin(simulator.url)

        for _ in range(60):
            seen = await observe(
                store,
                admin,
                postgresql.url,
                {**callers.replies, **load.of_client},
                load.sent,
                awaited=callers.awaited,
                answered=callers.answered,
                status_updates=load.status_updates,
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
        assert kurrentdb.cuts == 3
        assert load.answered == COMMANDS - load.manners["post"]
        assert len(seen.instances) == len(seen.rows or ()) == 60
        assert all(process.poll() is None for process in roles.processes.values()), roles.log()
    finally:
        roles.kill()
    assert "Traceback" not in roles.log()
