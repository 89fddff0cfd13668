"""What Prometheus gets: true, and of a size that does not grow with what is done."""

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractExchange
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cml_contracts.client import WorkerClient
from cml_contracts.commands import COMMANDS, CreateCMLWorker, StopCMLWorker, UpdateCMLWorkerStatus
from cml_contracts.results import ProblemCode
from cml_embedded.ec2_simulator import DEMO_IMAGES
from cml_workers.bus.port import Ack
from cml_workers.domain.messages import OperationSucceeded
from cml_workers.domain.policy import Access
from cml_workers.ec2_adapter.errors import EC2Error, OutcomeUnknownError, counted_code, exception_for
from cml_workers.foundation.metrics import FIGURES, REGISTRY, Figures, declared
from cml_workers.process.registry import ROLES
from cml_workers.readmodels.workers.counting import Survey
from support.given import instance
from support.projecting import Projected, a_database
from support.running import RunningSystem
from support.service import opened

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

MANY = 1000
CREATE = CreateCMLWorker(
    name="lab", aws_region="us-east-1", ami_id=DEMO_IMAGES["us-east-1"], created_by="ann"
)


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
        created = await client.send(CREATE, deadline=60)
        assert created.outcome == "succeeded", created
        unknown = await client.send(StopCMLWorker(worker_id=uuid4()), deadline=60)
        assert unknown.problem is not None
        assert created.worker_id
        seen = await client.send(UpdateCMLWorkerStatus(worker_id=created.worker_id), deadline=60)
        assert seen.outcome == "succeeded", seen
    after = await scraped(endpoints["health"])
    command, stop = CreateCMLWorker.TYPE, StopCMLWorker.TYPE
    assert of(after, "cml_commands_total", command=command, outcome="succeeded") == 1
    assert of(after, "cml_command_seconds_count", command=command, outcome="succeeded") == 1
    assert 0.3 < of(after, "cml_command_seconds_sum", command=command, outcome="succeeded") < 60
    assert of(after, "cml_commands_total", command=stop, outcome="rejected") == 1
    assert of(after, "cml_commands_total", command=UpdateCMLWorkerStatus.TYPE, outcome="succeeded") == 1
    assert of(after, "cml_command_problems_total", command=stop, code=ProblemCode.WORKER_NOT_FOUND) == 1
    assert of(after, "cml_messages_total", queue="cml.lifecycle.commands", verdict="done") == 3
    assert of(after, "cml_message_seconds_count", queue="cml.lifecycle.commands") == 3
    assert of(after, "cml_ec2_calls_total", api="RunInstances", region="us-east-1", code="") == 1
    assert of(after, "cml_ec2_problems_total", region="us-east-1", problem=ProblemCode.EC2_THROTTLED) == 0
    assert of(after, "cml_role_ready", role="lifecycle") == 1
    assert of(after, "cml_part_works", part="database") == 1
    assert of(after, "cml_queue_consumers", queue="cml.lifecycle.commands") == 1
    assert of(after, "cml_workers_looked_up_total", result="miss") > 0
    assert of(after, "cml_follower_caught_up", role="relay") in (0, 1)
    async with asyncio.timeout(60):  # some of it is counted now and then
        while ours(await scraped(endpoints["health"])) != {each.name for each in declared()}:
            await asyncio.sleep(0.5)


async def test_what_there_is_is_counted_now_and_then(running: RunningSystem) -> None:
    endpoints = running.start()
    async with WorkerClient(endpoints["amqp"]) as client:
        await client.send(CREATE, deadline=60)
    async with asyncio.timeout(60):
        while not of(shown := await scraped(endpoints["health"]), "cml_workers", status="RUNNING"):
            await asyncio.sleep(0.5)
    assert of(shown, "cml_workers", status="FAILED") == 0
    assert of(shown, "cml_operations_open", role="projector") == 0
    assert of(shown, "cml_operations_overdue", role="projector") == 0
    assert of(shown, "cml_read_model_events", read_model="workers", state="active") > 2
    assert of(shown, "cml_read_model_events", read_model="workers", state="building") == 0


def test_nothing_is_exposed_that_is_not_declared() -> None:
    """So all of it is in the reference, which is generated from what is declared."""
    known = {name.removesuffix("_total") for name in (each.name for each in declared())}
    registered = {each.name for each in REGISTRY.collect()}
    figures = {each.name for each in FIGURES}
    assert {name for name in registered if not name.startswith(("process_", "python_"))} == known - figures


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


async def test_no_label_grows_with_users_and_workers_that_exist(tmp_path: Path) -> None:
    """A user, a worker with a tag of its own, a command and a reply for each, and every second user is denied; and what the read model then counts."""
    access = Access(
        enforced=True, users={f"user-{number}": frozenset({"*"}) for number in range(0, 2 * MANY, 2)}
    )
    series: list[set[object]] = []
    async with opened(tmp_path) as service, a_database("memory", tmp_path) as database:
        service.allow(access)
        projected = Projected(service.store, database)
        survey = Survey(
            database, dead_letters=no_letters, now=lambda: service.now, deadline=timedelta(minutes=15)
        )
        for number in range(2 * MANY):
            user, command_id, worker_id = f"user-{number}", f"command-{number}", uuid4()
            body = CREATE.model_copy(update={"worker_id": worker_id, "name": user, "created_by": user})
            await service.command(body, command_id, user_id=user, reply_to=user)
            if user in access.users:
                found = instance(tags={user: "x"})
                done = OperationSucceeded(worker_id=worker_id, operation_id=command_id, instance=found)
                assert await service.report(done) == Ack()
            if number in (9, 2 * MANY - 1):
                await projected.catch_up()
                await survey.look(usable=True)
                assert shown("cml_workers", status="RUNNING") == (number + 1) // 2
                series.append(set(parsed(generate_latest(REGISTRY).decode())))
    assert len({each.routing_key for each in service.outbox.sent if each.exchange is None}) == 2 * MANY
    assert series[0] == series[1]


def test_a_figure_that_is_not_declared_is_an_error() -> None:
    with pytest.raises(KeyError, match="cml_made_up"):
        Figures().put("made_up", "relay", 1)


async def no_letters() -> int:
    return 0


def shown(name: str, **labels: str) -> float:
    return of(parsed(generate_latest(REGISTRY).decode()), name, **labels)


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
