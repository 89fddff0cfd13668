"""Each role in a process of its own: any may die and come back, in any order."""

import asyncio
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.process.registry import ROLES
from support.buses import emptied
from support.nets import warnings
from support.plain_amqp import PlainAmqp
from support.roles import Roles
from support.running import COMMAND, unconfigured


async def create_lab(client: PlainAmqp) -> dict[str, Any]:
    """The reply to the creation of a worker."""
    return await client.command(
        "create", name="lab", aws_region="us-east-1", ami_id=DEMO_IMAGES["us-east-1"], created_by="ann"
    )


@pytest.fixture
def start_roles(rabbitmq_url: str, tmp_path: Path) -> Iterator[Callable[[float], Roles]]:
    """Starts them on a simulator whose instances take so many seconds to change their state."""
    asyncio.run(emptied(rabbitmq_url))
    with ExitStack() as running:

        def start(transition_seconds: float) -> Roles:
            simulator = running.enter_context(Ec2Simulator(transition_seconds=transition_seconds))
            roles = Roles(
                tmp_path,
                RABBITMQ_URL=rabbitmq_url,
                AWS_ENDPOINT_URL=simulator.url,
                CML_VISIBILITY_GRACE_SECONDS="3",
                CML_AUTHORIZE="false",
                CML_REMINDER_SECONDS="3600",
            )
            running.callback(roles.kill)
            return roles

        yield start


async def test_roles_die_and_come_back_and_nothing_is_lost(
    rabbitmq_url: str, start_roles: Callable[[float], Roles]
):
    roles = start_roles(0.3)
    remembers = ["ec2-adapter"]  # which instances it watches
    reminds = ["projector"]  # of what is in transition, when it starts
    async with PlainAmqp(rabbitmq_url, disturbed=True, inside=True) as client:
        workers: list[str] = []

        async def create() -> None:
            created = await create_lab(client)
            assert created["outcome"] == "succeeded"
            workers.append(created["worker_id"])

        async def one_after_the_other_dies(names: list[str]) -> None:
            for name in names:
                roles.kill_and_start(name)
                await create()
            for worker_id in workers:
                await client.until_status(worker_id, "RUNNING")

        await create()
        await one_after_the_other_dies([name for name in ROLES if name not in remembers + reminds])
        assert client.reminded == []  # so nothing that was lost was made up for
        await one_after_the_other_dies(remembers + reminds)
        for worker_id in workers:
            assert (await client.command("terminate", worker_id=worker_id))["data"] is True
        assert set(client.reminded) <= set(workers[-2:])
        assert client.dead == []
    assert roles.stop() == [0, 0, 0, 0]
    assert warnings(roles.log()) == []


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("lifecycle", {}, "set RABBITMQ_URL"),
        ("lifecycle", {"RABBITMQ_URL": "http://nonsense"}, "must begin with amqp://"),
        ("ec2-adapter", {"RABBITMQ_URL": "amqp://127.0.0.1:1/"}, "CML_AWS=true"),
        ("relay", {"RABBITMQ_URL": "amqp://127.0.0.1:1/", "KURRENTDB_URI": "mysql://x"}, "KURRENTDB_URI"),
        ("projector", {"CML_PREFETCH": "many"}, "CML_PREFETCH"),
        ("lifecycle", {"CML_WORKER_AMI_IDS": "{"}, "CML_WORKER_AMI_IDS: must be JSON"),
        ("lifecycle", {"RABBITMQ_URL": "amqp://127.0.0.1:1/", "CML_AUTHORIZE": "true"}, "CML_COMMAND_USERS"),
        ("lifecycle", {"CML_DELEGATE_USERS": '["portal"]'}, "CML_ACTOR_TOKEN_KEYS"),
        ("lifecycle", {"CML_DEFAULT_TAGS": '{"aws:x": "1"}'}, "reserved"),
    ],
)
def test_a_role_that_cannot_run_says_why_in_a_line(
    tmp_path: Path, name: str, settings: dict[str, str], said: str
):
    done = subprocess.run(
        [COMMAND, "role", name],
        env={**unconfigured(), "CML_DATA_DIR": str(tmp_path), "CML_AUTHORIZE": "false", **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (2, 3), done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


async def test_an_adapter_that_is_ended_hands_over_what_it_watches(
    rabbitmq_url: str, start_roles: Callable[[float], Roles]
):
    """What it watches is in its memory alone; a signal ends it by a cancellation, and nobody else reminds of it."""
    roles = start_roles(600)
    async with PlainAmqp(rabbitmq_url, disturbed=True, inside=True) as client:
        created = await create_lab(client)
        await client.until_status(created["worker_id"], "STARTING")
        await asyncio.sleep(2)  # by now it is watched
        before = list(client.reminded)
        adapter = roles.processes["ec2-adapter"]
        adapter.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(adapter.wait, 60) == 0
        async with asyncio.timeout(30):
            while client.reminded == before:
                await asyncio.sleep(0.05)
        assert client.reminded == [*before, created["worker_id"]]


async def test_a_role_whose_queue_was_deleted_is_started_again_and_works(
    rabbitmq_url: str, start_roles: Callable[[float], Roles]
):
    """It ends, so that whoever supervises it starts another, which declares the queue."""
    roles = start_roles(0.3)
    async with PlainAmqp(rabbitmq_url, disturbed=True, inside=True) as client:
        created = await create_lab(client)
        assert created["outcome"] == "succeeded"
        async with await aio_pika.connect(rabbitmq_url) as connection:
            await (await connection.channel()).queue_delete(LIFECYCLE_COMMANDS.name)
        ended = await asyncio.to_thread(roles.processes["lifecycle"].wait, 90)
        assert ended == 1
        assert f"no consumer on {LIFECYCLE_COMMANDS.name}" in roles.logs["lifecycle"].read_text()
        roles.processes["lifecycle"] = roles.start("lifecycle")
        async with asyncio.timeout(60):
            while not roles.ready("lifecycle"):
                await asyncio.sleep(0.1)
        stopped = await client.command("stop", worker_id=created["worker_id"])
        assert stopped["data"] is True
