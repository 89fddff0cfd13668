"""Subscribers whose queues are full, never acknowledged, or bound a hundred times: nobody else notices, and readiness says it."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import aio_pika
import pytest

from cml_embedded.ec2_simulator import DEMO_IMAGES
from support.plain_amqp import PlainAmqp
from support.queues import QUORUM, Consumer, a_queue
from support.running import RunningSystem

FULL = {"x_queue_type": "quorum", "x_max_length": 1, "x_overflow": "reject-publish"}
CREATE = {
    "name": "lab",
    "aws_region": "us-east-1",
    "instance_type": "m5.large",
    "ami_id": DEMO_IMAGES["us-east-1"],
    "created_by": "ann",
}


@pytest.fixture
def running(tmp_path: Path, rabbitmq_url: str) -> Iterator[RunningSystem]:
    running = RunningSystem(tmp_path / "data", RABBITMQ_URL=rabbitmq_url, CML_HEALTH_PORT="0")
    yield running
    running.kill()


def readiness(health: str) -> dict[str, Any]:
    with urlopen(f"{health}/readyz", timeout=10) as answer:
        content: dict[str, Any] = json.load(answer)
        return content


async def test_whatever_subscribers_do_everybody_else_has_all_events_and_what_one_lacks_is_replayed(
    running: RunningSystem, rabbitmq_url: str
):
    health = running.start()["health"]
    async with await aio_pika.connect(rabbitmq_url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        async with (
            a_queue(channel, **FULL) as full,
            a_queue(channel, x_queue_type="quorum") as unread,
            a_queue(channel) as often,
            PlainAmqp(rabbitmq_url, disturbed=True) as client,  # what is tried again comes again
        ):
            await full.bind("cml.events", "#")
            await unread.bind("cml.events", "#")
            await unread.consume(Consumer())
            for number in range(100):
                await often.bind("cml.events", "#", arguments={"number": number})
            created = await client.command("create", **CREATE)
            assert created["outcome"] == "succeeded", created
            worker_id = created["worker_id"]
            await client.until_status(worker_id, "RUNNING")
            await client.until_event(
                worker_id, "cml.worker.instance_state_observed.v1", instance_state="running"
            )

            async with asyncio.timeout(60):
                while not (said := await asyncio.to_thread(readiness, health))["warnings"]:
                    await asyncio.sleep(0.1)
            assert said["ready"]
            assert said["events_given_up"] >= 1
            (warning,) = said["warnings"]["relay"]
            assert worker_id in warning

            history = await asyncio.to_thread(running.cli, "history", worker_id, "--json")
            expected = [json.loads(line)["id"] for line in history.stdout.splitlines()]
            lacking = await channel.declare_queue(f"t.{uuid4()}", durable=True, arguments=QUORUM)
            done = await asyncio.to_thread(
                running.cli, "replay", lacking.name, "--since", "1h", "--worker", worker_id
            )
            assert done.returncode == 0, done.stderr
            replayed = [json.loads((await lacking.get(no_ack=True)).body)["id"] for _ in expected]
            assert replayed == expected
            assert await lacking.get(fail=False) is None
            await channel.queue_delete(lacking.name)
            done = await asyncio.to_thread(running.cli, "replay", lacking.name)
            assert done.returncode == 1
            assert "there is no queue" in done.stderr


async def test_a_caller_whose_queue_takes_no_reply_asks_for_the_result(
    running: RunningSystem, rabbitmq_url: str
):
    running.start()
    async with await aio_pika.connect(rabbitmq_url) as connection:
        channel = await connection.channel()
        async with (
            a_queue(channel, x_max_length=0, x_overflow="reject-publish") as full,
            PlainAmqp(rabbitmq_url, inside=True) as client,
        ):
            command_id = str(uuid4())
            body = json.dumps(CREATE).encode()
            await client.publish(
                "cml.commands", "cml.worker.create.v1", body, message_id=command_id, reply_to=full.name
            )
            async with asyncio.timeout(60):
                while not (
                    (operation := (await client.query("operation.get", command_id=command_id))["data"])
                    and operation["result"]
                ):
                    await asyncio.sleep(0.1)
            assert operation["result"]["outcome"] == "succeeded"
