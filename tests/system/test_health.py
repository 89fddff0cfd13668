"""The probes: ready means that every consumer and follower works, not only that a connection is open."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import aio_pika
import pytest

from support.running import RunningSystem


@pytest.fixture
def running(tmp_path: Path, rabbitmq_url: str) -> Iterator[RunningSystem]:
    running = RunningSystem(tmp_path / "data", RABBITMQ_URL=rabbitmq_url, CML_HEALTH_PORT="0")
    yield running
    running.kill()


def ask(url: str) -> tuple[int, Any]:
    try:
        with urlopen(url, timeout=10) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


async def test_a_dead_consumer_makes_the_process_unready(running: RunningSystem, rabbitmq_url: str):
    health = running.start()["health"]
    async with asyncio.timeout(60):
        while (await asyncio.to_thread(ask, f"{health}/readyz"))[0] != 200:
            await asyncio.sleep(0.1)
    status, content = await asyncio.to_thread(ask, f"{health}/readyz")
    assert (status, content["problems"]) == (200, {})
    assert set(content["followers"]) == {"relay", "projector"}
    assert "dead_letters_waiting" in content
    assert await asyncio.to_thread(ask, f"{health}/livez") == (200, {"alive": True})
    assert (await asyncio.to_thread(ask, f"{health}/nothing"))[0] == 404
    port = health.rpartition(":")[2]
    done = await asyncio.to_thread(running.cli, "health", CML_HEALTH_PORT=port)
    assert done.returncode == 0, done.stderr

    async with await aio_pika.connect(rabbitmq_url) as connection:
        await (await connection.channel()).queue_delete("cml.projector.queries.v2")
    # RabbitMQ 4.3 may end the connection of who consumes a queue while that is deleted: then it is not connected for a moment.
    passing = [{}, {"projector": ["not connected to RabbitMQ"]}]
    async with asyncio.timeout(60):
        while (answer := await asyncio.to_thread(ask, f"{health}/readyz"))[1]["problems"] in passing:
            await asyncio.sleep(0.1)
    assert answer == (
        503,
        {**answer[1], "problems": {"projector": ["no consumer on cml.projector.queries.v2"]}},
    )
    done = await asyncio.to_thread(running.cli, "health", CML_HEALTH_PORT=port)
    assert done.returncode == 1
    assert "no consumer" in done.stderr
    assert running.process
    assert await asyncio.to_thread(running.process.wait, 60) == 1  # whoever supervises it starts it again
    assert "no consumer on cml.projector.queries.v2" in running.log().splitlines()[-1]
