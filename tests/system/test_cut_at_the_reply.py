"""A stop is pending, its worker's termination supersedes it, and the reply to the stop is lost on its way: nobody sends
anything again, and the caller is answered all the same.

Real processes; a network that breaks at just that message, or a store whose answer to just that append comes too late.
With the fault that was here put back into the process, the caller stays without an answer: these tests see it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import aio_pika
import pytest

from cml_contracts.commands import StopCMLWorker, TerminateCMLWorker
from cml_contracts.events import StopRequested, TerminationRequested
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from cml_workers.bus.rabbit import declare_topology
from cml_workers.bus.topology import LIFECYCLE_COMMANDS, RETRY_DELAYS
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.kurrentdb.calls import LEEWAY_SECONDS
from cml_workers.eventstore.kurrentdb.store import READ_BACK_SECONDS
from support.callers import Callers
from support.children import module
from support.given import create
from support.observed import stored_events
from support.ports import free_port
from support.rabbitmq import SpawnedRabbitMQ, private_rabbitmq
from support.roles import Roles
from support.tcp_proxy import Armed, TcpProxy, Trap

BOUND = 120.0
"""Seconds for what happens within a few."""
HEARTBEAT = 2
DEADLINE = 2
"""Seconds of a call to the store."""
SUPERSEDED = b"superseded by the termination"
PLANT = "forgotten_reply"


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpawnedRabbitMQ]:
    with private_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@dataclass
class Parts:
    """A lifecycle with networks of its own, the EC2 adapter, and a caller."""

    lifecycle_to_bus: TcpProxy
    lifecycle_to_store: TcpProxy
    store: KurrentDbEventStore
    roles: Roles
    callers: Callers

    async def pending_stop(self) -> TerminateCMLWorker:
        """A worker whose stop nobody carries out; the command that supersedes it."""
        worker_id = uuid4()
        command = create(ami_id=DEMO_IMAGES["us-east-1"], worker_id=worker_id)
        await self.callers.send(command, str(uuid4()), "create")
        assert await self.callers.answer("create", BOUND), self.roles.log()
        adapter = self.roles.processes["ec2-adapter"]
        adapter.kill()
        adapter.wait()
        await self.callers.send(StopCMLWorker(worker_id=worker_id), "the-stop", "stop")
        async with asyncio.timeout(BOUND):
            while StopRequested.TYPE not in [each.type for each in await stored_events(self.store)]:
                await asyncio.sleep(0.1)
        return TerminateCMLWorker(worker_id=worker_id)

    async def terminate(self, command: TerminateCMLWorker, armed: Armed) -> None:
        await self.callers.send(command, "the-termination", "terminate")
        await asyncio.wait_for(armed.fired.wait(), BOUND)

    async def carried_out(self) -> None:
        """The EC2 adapter is there again, and the termination comes to its end."""
        self.roles.processes["ec2-adapter"] = self.roles.start("ec2-adapter")
        assert await self.callers.answer("terminate", BOUND), self.roles.log()
        assert [each.outcome for each in self.callers.replies["the-termination"]] == ["succeeded"]

    async def hold_the_answer_back(self, append: Armed) -> None:
        """While the append is held: it is committed, and nothing of that comes back before its caller has given up looking."""
        await asyncio.wait_for(append.fired.wait(), BOUND)
        self.lifecycle_to_store.pause()
        await asyncio.sleep(DEADLINE + LEEWAY_SECONDS + READ_BACK_SECONDS + 2)
        self.lifecycle_to_store.heal()


@pytest.fixture(params=[None, PLANT], ids=["shipped", "planted"])
def plant(request: pytest.FixtureRequest) -> str | None:
    plant: str | None = request.param
    return plant


@pytest.fixture
async def parts(plant: str | None, rabbitmq: SpawnedRabbitMQ, tmp_path: Path) -> AsyncIterator[Parts]:
    await declare_topology(rabbitmq.url)
    port = free_port()
    with module("support.kurrentdb_standin", "--port", str(port)), Ec2Simulator() as ec2:
        async with (
            TcpProxy(rabbitmq.port) as bus,
            TcpProxy(port) as store,
            Callers(rabbitmq.url, f"cml.replies.callers.{uuid4()}") as callers,
        ):

            def each(process: str) -> dict[str, str]:
                behind = process == "lifecycle"
                return {
                    "RABBITMQ_URL": f"amqp://127.0.0.1:{bus.port if behind else rabbitmq.port}/?heartbeat={HEARTBEAT}",
                    "KURRENTDB_URI": f"esdb://127.0.0.1:{store.port if behind else port}"
                    f"?tls=false&DefaultDeadline={DEADLINE}",
                }

            roles = Roles(
                tmp_path,
                processes=("lifecycle", "relay", "ec2-adapter"),
                each=each,
                plant=plant,
                AWS_ENDPOINT_URL=ec2.url,
                CML_AUTHORIZE="false",
            )
            looking = KurrentDbEventStore(f"esdb://127.0.0.1:{port}?tls=false")
            try:
                yield Parts(bus, store, looking, roles, callers)
                assert callers.unconfirmed == 0  # nobody sent anything twice
            finally:
                await looking.close()
                roles.kill()
    if plant is None:
        assert "Traceback" not in roles.log()


async def seen(plant: str | None, parts: Parts, url: str) -> None:
    """The caller of the stop is answered; with the fault planted it is not, whatever follows."""
    if plant is None:
        assert await parts.callers.answer("stop", BOUND), parts.roles.log()
        await parts.carried_out()
        assert parts.callers.unanswered == set()
        [problem] = {each.problem for each in parts.callers.replies["the-stop"]}
        assert SUPERSEDED.decode() in problem.detail
    else:
        await until_no_command_is_left(parts, url)
        await parts.carried_out()
        assert not await parts.callers.answer("stop", 5)
        assert parts.callers.unanswered == {"stop"}


async def until_no_command_is_left(parts: Parts, url: str) -> None:
    """The planted fault has done its work, and no delivery of the termination is still to come."""
    names = [LIFECYCLE_COMMANDS.name, *map(LIFECYCLE_COMMANDS.retry_queue, RETRY_DELAYS)]
    quiet = 0
    async with asyncio.timeout(BOUND), await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        while quiet < 12:
            await asyncio.sleep(0.25)
            waiting = [await channel.declare_queue(name, passive=True) for name in names]
            empty = not any(queue.declaration_result.message_count for queue in waiting)
            quiet = quiet + 1 if empty and "planted: the-termination" in parts.roles.log() else 0


@pytest.mark.timeout(300)
async def test_the_connection_is_cut_at_the_reply(plant: str | None, parts: Parts, rabbitmq: SpawnedRabbitMQ):
    terminate = await parts.pending_stop()
    armed = parts.lifecycle_to_bus.arm(Trap(SUPERSEDED, "server", "cut before"))
    await parts.terminate(terminate, armed)
    await seen(plant, parts, rabbitmq.url)


@pytest.mark.timeout(300)
async def test_the_store_commits_what_its_caller_has_given_up(
    plant: str | None, parts: Parts, rabbitmq: SpawnedRabbitMQ
):
    terminate = await parts.pending_stop()
    armed = parts.lifecycle_to_store.arm(
        Trap(TerminationRequested.TYPE.encode(), "server", "silence", seconds=1.0)
    )
    held = asyncio.create_task(parts.hold_the_answer_back(armed))
    await parts.terminate(terminate, armed)
    await held
    await seen(plant, parts, rabbitmq.url)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("plant", [None])  # the client asks the store itself whether its append is there
async def test_the_answer_to_the_append_is_lost(plant: str | None, parts: Parts, rabbitmq: SpawnedRabbitMQ):
    terminate = await parts.pending_stop()
    armed = parts.lifecycle_to_store.arm(Trap(TerminationRequested.TYPE.encode(), "server", "cut the answer"))
    await parts.terminate(terminate, armed)
    await seen(plant, parts, rabbitmq.url)
