"""Store or database away for ten seconds under load: who needs it waits, says so twice, and goes on soon after the return."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import aio_pika
import pytest

from cml_contracts.client import WorkerClient
from cml_contracts.commands import CreateCMLWorker, StopCMLWorker
from cml_contracts.deadletters import DeadLetterPage, ListDeadLetters
from cml_contracts.queries import ListCMLWorkers, WorkerPage
from cml_contracts.results import ProblemCode
from cml_contracts.topology import COMMANDS_EXCHANGE
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from cml_workers.bus.topology import PROBES
from cml_workers.process.registry import ROLES
from support.buses import emptied, left_behind
from support.children import module
from support.ports import free_port
from support.postgresql import SpawnedPostgreSQL, private_postgresql
from support.roles import Roles
from support.tcp_proxy import TcpProxy
from support.waiting import RetryQueues, trouble, until_probed

AWAY = 10.0
SOON = 10.0
"""Seconds from the return to the last answer that a busy machine is allowed; an idle one needs less than two."""
OF_THE_STORE, OF_THE_DATABASE = (
    [f"outage begins of the {part}", f"outage ends of the {part}"] for part in ("event store", "database")
)


@dataclass
class System:
    roles: Roles
    kurrentdb: TcpProxy
    postgresql: SpawnedPostgreSQL
    client: WorkerClient
    rabbitmq_url: str
    ports: dict[str, int]

    async def create(self) -> UUID:
        """The worker, when its creation was answered."""
        create = CreateCMLWorker(
            name="lab", aws_region="us-east-1", ami_id=DEMO_IMAGES["us-east-1"], created_by="ann"
        )
        result = await self.client.send(create, deadline=120)
        assert result.outcome == "succeeded", result
        assert result.worker_id is not None
        return result.worker_id

    async def stop_unknown(self) -> UUID:
        """A worker that there is not, when the command to stop it was answered: a read, and a reply."""
        worker_id = uuid4()
        result = await self.client.send(StopCMLWorker(worker_id=worker_id), deadline=120)
        assert result.problem is not None
        assert result.problem.code == ProblemCode.WORKER_NOT_FOUND
        return worker_id

    async def until_ready(self) -> None:
        for port in self.ports.values():
            await until_probed(port, "readyz", 200)

    async def listed(self) -> int:
        answer = await self.client.query(ListCMLWorkers(limit=200), deadline=60)
        return len(WorkerPage.model_validate(answer.data).workers)


@pytest.fixture
def postgresql() -> Iterator[SpawnedPostgreSQL]:
    with private_postgresql() as server:
        yield server


@pytest.fixture
async def running(rabbitmq_url: str, postgresql: SpawnedPostgreSQL, tmp_path: Path) -> AsyncIterator[System]:
    await emptied(rabbitmq_url)
    store_port = free_port()
    ports = {role: free_port() for role in ROLES}
    with (
        Ec2Simulator(transition_seconds=0.2) as simulator,
        module("support.kurrentdb_standin", "--port", str(store_port)),
    ):
        async with TcpProxy(store_port) as kurrentdb, WorkerClient(rabbitmq_url) as client:
            roles = Roles(
                tmp_path,
                each=lambda name: {"CML_HEALTH_PORT": str(ports[name])},
                RABBITMQ_URL=rabbitmq_url,
                KURRENTDB_URI=f"esdb://127.0.0.1:{kurrentdb.port}?tls=false",
                DATABASE_URL=postgresql.url,
                AWS_ENDPOINT_URL=simulator.url,
                CML_VISIBILITY_GRACE_SECONDS="3",
                CML_AUTHORIZE="false",
                CML_REMINDER_SECONDS="3600",
                CML_DATABASE_CALL_SECONDS="3",
                CML_LOG_FORMAT="json",
            )
            try:
                system = System(roles, kurrentdb, postgresql, client, rabbitmq_url, ports)
                await system.until_ready()
                yield system
                assert set(await left_behind(rabbitmq_url)) <= {PROBES.name}  # where they expire
            finally:
                roles.kill()


async def answered_after(back: float, answers: list[asyncio.Task[UUID]]) -> float:
    """Seconds from the return to the last of the answers."""
    async with asyncio.timeout(120):
        await asyncio.gather(*answers)
    return time.monotonic() - back


async def spread(
    work: Callable[[], Awaitable[UUID]], number: int, seconds: float
) -> list[asyncio.Task[UUID]]:
    """Begin so many, over so many seconds."""
    begun = []
    for _ in range(number):
        begun.append(asyncio.ensure_future(work()))
        await asyncio.sleep(seconds / number)
    return begun


@pytest.mark.timeout(400)
async def test_without_the_store_commands_wait_in_their_queue_and_are_answered_at_its_return(running: System):
    await running.create()
    async with RetryQueues(running.rabbitmq_url) as retry_queues:
        answers = await spread(running.create, 5, 1)  # some are under way at every step
        cut = asyncio.create_task(running.kurrentdb.outage(AWAY))
        answers += await spread(running.create, 5, 1)
        answers += await spread(running.stop_unknown, 150, AWAY - 4)
        for role in ROLES:
            await until_probed(running.ports[role], "readyz", 503, within="event-store")
            await until_probed(running.ports[role], "livez", 200)
        await cut
        took = await answered_after(time.monotonic(), answers)
        print(f"store: the last of {len(answers)} answers {took:.1f} s after the return")
        assert took < SOON
        await running.until_ready()
        assert retry_queues.most == {}
    async with asyncio.timeout(60):
        while await running.listed() != 11:
            await asyncio.sleep(0.1)
    for role in ("lifecycle", "relay", "projector"):
        assert trouble(running.roles.logs[role]) == OF_THE_STORE, role
    assert trouble(running.roles.logs["ec2-adapter"]) in (
        [],
        OF_THE_STORE,
    )  # where nothing came to it, it learned of nothing


@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", ["stopped", "frozen"])
async def test_without_the_database_queries_and_dead_letters_wait_and_commands_do_not(
    running: System, how: str
):
    await running.create()
    server = running.postgresql
    async with RetryQueues(running.rabbitmq_url) as retry_queues:
        if how == "stopped":
            await asyncio.to_thread(server.stop)
        else:
            server.signal(signal.SIGSTOP)
        gone = time.monotonic()
        queries = [asyncio.create_task(running.listed()) for _ in range(100)]
        async with await aio_pika.connect(running.rabbitmq_url) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(COMMANDS_EXCHANGE.name, ensure=False)
            for _ in range(30):
                broken = aio_pika.Message(b"no JSON", message_id=str(uuid4()), type="cml.worker.stop.v1")
                await exchange.publish(broken, "cml.worker.stop.v1")
        await running.create()
        await until_probed(running.ports["projector"], "readyz", 503, within="work waits for it since")
        for role in ("lifecycle", "relay", "ec2-adapter"):
            await until_probed(running.ports[role], "readyz", 200)
        await asyncio.sleep(max(AWAY - (time.monotonic() - gone), 0))
        assert not any(each.done() for each in queries)
        if how == "stopped":
            await asyncio.to_thread(server.start)
        else:
            server.signal(signal.SIGCONT)
        back = time.monotonic()
        async with asyncio.timeout(60):
            await asyncio.gather(*queries)
        took = time.monotonic() - back
        print(f"database {how}: the last of {len(queries)} answers {took:.1f} s after the return")
        assert took < SOON
        async with asyncio.timeout(60):
            while True:
                answer = await running.client.operate(ListDeadLetters(), deadline=60)
                if len(DeadLetterPage.model_validate(answer.data).dead_letters) == 30:
                    break
                await asyncio.sleep(0.1)
        await running.until_ready()
        assert retry_queues.most == {}
    archived = ["dead letter archived"] * 30
    said = trouble(running.roles.logs["projector"], of_libraries=how == "stopped")
    assert sorted(said) == sorted([*archived, *OF_THE_DATABASE])


@pytest.mark.timeout(400)
async def test_a_role_that_waits_ends_at_once_and_gives_back_what_it_holds(running: System):
    """Nothing counts against a message: another process has it as if it had never been tried."""
    await asyncio.to_thread(running.postgresql.stop)
    queries = [asyncio.create_task(running.listed()) for _ in range(5)]
    await until_probed(running.ports["projector"], "readyz", 503, within="work waits for it since")
    began = time.monotonic()
    projector = running.roles.processes["projector"]
    projector.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(projector.wait, 60) == 0
    print(f"ended {time.monotonic() - began:.1f} s after SIGTERM")
    running.roles.processes["projector"] = running.roles.start("projector")
    await until_probed(running.ports["projector"], "livez", 200)
    await asyncio.to_thread(running.postgresql.start)
    assert await asyncio.gather(*queries) == [0] * 5
    assert set(trouble(running.roles.logs["projector"])) == set(OF_THE_DATABASE)
