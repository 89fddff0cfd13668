"""What Prometheus gets: true, and of a size that does not grow with what is done."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractExchange
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cml_contracts.client import WorkerClient
from cml_contracts.commands import COMMANDS, CreateCMLWorker, StopCMLWorker
from cml_contracts.results import ProblemCode
from cml_embedded.ec2_simulator import DEMO_IMAGES
from cml_workers.domain.policy import Access
from cml_workers.ec2_adapter.errors import EC2Error, OutcomeUnknownError, counted_code, exception_for
from cml_workers.foundation.metrics import REGISTRY, declared
from cml_workers.process.registry import ROLES
from support.running import RunningSystem
from support.service import opened

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

MANY = 1000


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningSystem]:
    system = RunningSystem(tmp_path, CML_HEALTH_PORT="0")
    yield system
    system.kill()


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scraped(health: str) -> Samples:
    def get() -> str:
        with urlopen(f"{health}/metrics", timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            text: str = answer.read().decode()
            return text

    return parsed(await asyncio.to_thread(get))


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def ours(samples: Samples) -> set[str]:
    """The names of our metrics, without a histogram's suffixes."""
    histograms = {each.name for each in declared() if each.kind == "histogram"}
    return {
        next((known for known in histograms if name.startswith(f"{known}_")), name)
        for name, _ in samples
        if name.startswith("cml_")
    }


async def test_what_a_system_does_is_counted(running: RunningSystem) -> None:
    endpoints = running.start()
    before = await scraped(endpoints["health"])
    assert {dict(labels)["command"] for name, labels in before if name == "cml_commands_total"} == set(
        COMMANDS
    )
    assert {dict(labels)["role"] for name, labels in before if name == "cml_role_ready"} >= set(ROLES)
    async with WorkerClient(endpoints["amqp"]) as client:
        create = CreateCMLWorker(
            name="lab", aws_region="us-east-1", ami_id=DEMO_IMAGES["us-east-1"], created_by="ann"
        )
        created = await client.send(create, deadline=60)
        assert created.outcome == "succeeded", created
        unknown = await client.send(StopCMLWorker(worker_id=uuid4()), deadline=60)
        assert unknown.problem is not None
    after = await scraped(endpoints["health"])
    command, stop = CreateCMLWorker.TYPE, StopCMLWorker.TYPE
    assert of(after, "cml_commands_total", command=command, outcome="succeeded") == 1
    assert of(after, "cml_command_seconds_count", command=command, outcome="succeeded") == 1
    assert 0.3 < of(after, "cml_command_seconds_sum", command=command, outcome="succeeded") < 60
    assert of(after, "cml_commands_total", command=stop, outcome="rejected") == 1
    assert of(after, "cml_command_problems_total", command=stop, code=ProblemCode.WORKER_NOT_FOUND) == 1
    assert of(after, "cml_messages_total", queue="cml.lifecycle.commands", verdict="done") == 2
    assert of(after, "cml_message_seconds_count", queue="cml.lifecycle.commands") == 2
    assert of(after, "cml_ec2_calls_total", api="RunInstances", region="us-east-1", code="") == 1
    assert of(after, "cml_role_ready", role="lifecycle") == 1
    assert of(after, "cml_follower_caught_up", role="relay") in (0, 1)
    assert ours(after) == {each.name for each in declared()}


async def _publish(exchange: AbstractExchange, number: int) -> None:
    """A command of its own kind in every way: another worker, id, correlation, reply queue, and now and then another type or body."""
    kind = StopCMLWorker.TYPE if number % 3 else f"cml.worker.unknown{number}.v1"
    body = {"worker_id": str(uuid4())} if number % 5 else {"nonsense": number}
    message = aio_pika.Message(
        json.dumps(body).encode(),
        content_type="application/json",
        type=kind,
        message_id=f"command-{number}",
        correlation_id=f"correlation-{number}",
        reply_to=f"cml.replies.cml-workers.{number}",
        headers={"x-number": number},
    )
    await exchange.publish(message, routing_key=StopCMLWorker.TYPE)


async def _settled(health: str, count: int) -> Samples:
    async with asyncio.timeout(120):
        while True:
            samples = await scraped(health)
            verdicts = ("done", "dead_letter")
            done = [
                of(samples, "cml_messages_total", queue="cml.lifecycle.commands", verdict=v) for v in verdicts
            ]
            if sum(done) >= count:
                return samples
            await asyncio.sleep(0.1)


async def test_no_label_grows_with_commands_workers_and_reply_queues(running: RunningSystem) -> None:
    endpoints = running.start()
    async with await aio_pika.connect(endpoints["amqp"]) as connection:
        exchange = await (await connection.channel()).get_exchange("cml.commands", ensure=False)
        for number in range(50):
            await _publish(exchange, number)
        few = await _settled(endpoints["health"], 50)
        for number in range(50, MANY):
            await _publish(exchange, number)
        many = await _settled(endpoints["health"], MANY)
    assert set(many) == set(few)


async def test_no_label_grows_with_users(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        service.allow(
            Access(enforced=True, users={f"user-{number}": frozenset({"*"}) for number in range(0, MANY, 2)})
        )
        series: list[set[object]] = []
        for number in range(MANY):
            await service.command(StopCMLWorker(worker_id=uuid4()), f"c{number}", user_id=f"user-{number}")
            if number in (9, MANY - 1):
                series.append(set(parsed(generate_latest(REGISTRY).decode())))
    assert series[0] == series[1]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            exception_for("RequestLimitExceeded", "", operation="StopInstances", subject=""),
            "RequestLimitExceeded",
        ),
        (exception_for("ThrottlingException", "", operation="StopInstances", subject=""), "Throttling*"),
        (exception_for("made-up-1", "", operation="StopInstances", subject=""), "other"),
        (exception_for("made-up-1", "", operation="StopInstances", subject="", status=503), "no_answer"),
        (
            exception_for("InternalError", "", operation="StopInstances", subject="", status=500),
            "InternalError",
        ),
        (OutcomeUnknownError("", aws_code="TimeoutError"), "no_answer"),
    ],
)
def test_a_code_of_ec2_is_one_that_we_know(error: EC2Error, code: str) -> None:
    assert counted_code(error) == code
