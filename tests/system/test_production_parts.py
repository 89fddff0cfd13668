"""The roles as processes on the parts of production: RabbitMQ, the KurrentDB adapter, PostgreSQL, an EC2 API."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from cml_contracts.client import WorkerClient
from cml_contracts.queries import OperationView, WorkerView
from cml_workers.bus.rabbit import declare_topology
from cml_workers.database import open_database, transaction
from cml_workers.embedded.ec2_simulator import Ec2Simulator
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.projector.read_model import OPERATIONS, WORKERS
from support.ec2 import SimulatorAdmin
from support.invariants import Observed, simulated_instances, stored_events, violations
from support.load import Load
from support.postgresql import SpawnedPostgreSQL, private_postgresql
from support.rabbitmq import SpawnedRabbitMQ, free_port, private_rabbitmq
from support.roles import Roles
from support.tcp_proxy import TcpProxy

COMMANDS = 500


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
    server = subprocess.Popen(
        [sys.executable, "-m", "support.kurrentdb_standin", "--port", str(port)],
        cwd=Path(__file__).parents[1],
    )
    async with TcpProxy(port) as proxy:
        yield proxy
    server.terminate()
    server.wait(timeout=10)


async def read_model(url: str) -> tuple[list[WorkerView], list[OperationView]]:
    engine = open_database(url)
    async with transaction(engine) as connection:
        workers = (await connection.execute(sa.select(WORKERS.c.view))).scalars().all()
        operations = (await connection.execute(sa.select(OPERATIONS.c.view))).scalars().all()
    await engine.dispose()
    return (
        [WorkerView.model_validate_json(view) for view in workers],
        [OperationView.model_validate_json(view) for view in operations],
    )


@pytest.mark.timeout(400)
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
        async with WorkerClient(rabbitmq.url) as client:
            load = Load(client, total=COMMANDS, fleet=60)
            running = asyncio.create_task(load.run())
            for number, fault in enumerate(("store", "broker", "store", "broker", "store"), 1):
                async with asyncio.timeout(120):
                    while load.answered < number * COMMANDS // 6 and not running.done():
                        await asyncio.sleep(0.05)
                if fault == "broker":
                    await asyncio.to_thread(rabbitmq.restart)
                else:
                    await kurrentdb.outage(1.0)
            await running
        assert load.answered == COMMANDS
        store = KurrentDbEventStore(roles.environment["KURRENTDB_URI"])
        admin = SimulatorAdmin(simulator.url)

        async def observed() -> Observed:
            rows, operations = await read_model(postgresql.url)
            instances = simulated_instances(await asyncio.to_thread(admin.instances))
            return Observed(
                await stored_events(store), instances, load.replies, frozenset(load.sent), rows, operations
            )

        for _ in range(60):
            seen = await observed()
            if not (broken := violations(seen)):
                break
            await asyncio.sleep(1)
        await store.close()
        assert broken == []
        print(
            f"{load.answered} of {COMMANDS} commands answered, {load.repeated} of them repeated, "
            f"{len(seen.events)} events, {len(seen.instances)} instances launched for 60 workers"
        )
        assert kurrentdb.cuts == 3
        assert len(seen.instances) == len(seen.rows or ()) == 60
        assert all(process.poll() is None for process in roles.processes.values()), roles.log.read_text()
    finally:
        roles.kill()
    assert "Traceback" not in roles.log.read_text()
