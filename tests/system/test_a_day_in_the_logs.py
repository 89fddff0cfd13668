"""What the roles log on a day with refusals, outages and errors: lines of one form that say what they are about."""

import asyncio
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest

from cml_contracts.client import NoResultYetError, WorkerClient
from cml_contracts.commands import (
    CreateCMLWorker,
    ImportCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.results import OperationResult
from cml_contracts.topology import COMMANDS_EXCHANGE
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from cml_tools.definitions import PERMISSIONS, definitions
from cml_workers.bus.topology import DEAD_LETTER_QUEUE
from cml_workers.process.registry import ROLES
from support.children import module
from support.collector import collecting
from support.ec2 import SimulatorAdmin
from support.planted_role import UNEXPECTED
from support.ports import free_port
from support.postgresql import SpawnedPostgreSQL, private_postgresql
from support.rabbitmq import SpawnedRabbitMQ, private_rabbitmq
from support.roles import Roles
from support.tcp_proxy import TcpProxy
from support.waiting import until_probed

Line = dict[str, Any]

PASSWORD = "a-password-of-4711"
NOT_RECORDED = {
    "an import nobody may send",
    "a look at nobody",
    "a look that is refused",
    "an unexpected error",
}
"""Of which no event says what became of them."""
SECRET = "local-secret-4711"
OF_AIORMQ = "Cancelling cause reader exited abnormally"
"""Its warning of a connection that was lost, with a stack trace of its own; only where libraries are asked for all they say."""
UNEXPECTED_IN = {"a handler", "a task", "a thread", "a destructor"}
CREATE = CreateCMLWorker(
    name="lab",
    aws_region="us-east-1",
    ami_id=DEMO_IMAGES["us-east-1"],
    created_by="cml-client",
    worker_id=uuid4(),
)
WORKER = CREATE.worker_id or uuid4()


@dataclass
class Day:
    """``sent``: what each command is, by its id. ``lines``: of each role, when the day is over."""

    sent: dict[str, str] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)
    lines: dict[str, list[Line]] = field(default_factory=dict)
    raw: dict[str, list[str]] = field(default_factory=dict)

    def of(self, what: str, role: str | None = None) -> list[Line]:
        """The lines about this command."""
        [command_id] = (each for each, said in self.sent.items() if said == what)
        return [line for line in self.all(role) if line.get("command_id") == command_id]

    def all(self, role: str | None = None) -> list[Line]:
        return [line for name, lines in self.lines.items() if role in (None, name) for line in lines]


@dataclass
class Parts:
    day: Day
    client: WorkerClient
    admin: SimulatorAdmin
    rabbitmq: SpawnedRabbitMQ
    postgresql: SpawnedPostgreSQL
    store: TcpProxy
    ports: dict[str, int]
    roles: Roles

    async def send(self, what: str, command: WorkerCommand, deadline: float = 90) -> OperationResult:
        command_id = f"{what.replace(' ', '-')}-{uuid4().hex[:8]}"
        self.day.sent[command_id] = what
        self.day.workers[command_id] = str(command.worker(command_id))
        return await self.client.send(command, command_id=command_id, deadline=deadline)

    async def until_stopped(self) -> None:
        async with asyncio.timeout(60):
            while {each["state"] for each in self.admin.instances()} != {"stopped"}:
                await asyncio.sleep(0.1)

    async def until_ready(self) -> None:
        for port in self.ports.values():
            await until_probed(port, "readyz", 200)


pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    """It is lived once, and read by several tests."""
    return asyncio.run(_day(tmp_path_factory.mktemp("day")))


async def _day(folder: Path) -> Day:
    ports = {role: free_port() for role in ROLES}
    store_port = free_port()
    users = json.dumps(definitions(dict.fromkeys(PERMISSIONS, PASSWORD)))
    with (
        private_rabbitmq(folder / "rabbitmq", users) as rabbitmq,
        private_postgresql() as postgresql,
        Ec2Simulator(transition_seconds=0.3) as simulator,
        module("support.kurrentdb_standin", "--port", str(store_port)),
        collecting() as collector,
    ):
        async with TcpProxy(store_port) as store:
            roles = Roles(
                folder,
                each=lambda name: {
                    "CML_HEALTH_PORT": str(ports[name]),
                    "RABBITMQ_URL": _url(rabbitmq, f"cml-{name}"),
                },
                plant="unexpected_errors",
                CML_DECLARE_TOPOLOGY="false",
                KURRENTDB_URI=f"esdb://127.0.0.1:{store.port}?tls=false",
                DATABASE_URL=postgresql.url,
                AWS_ENDPOINT_URL=simulator.url,
                CML_VISIBILITY_GRACE_SECONDS="3",
                CML_AUTHENTICATION_GRACE_SECONDS="1",
                CML_COMMAND_USERS='{"cml-client": ["*"]}',
                CML_LOG_FORMAT="json",
                OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
                CML_LIBRARY_LOG_LEVEL="debug",
                CML_DATABASE_CALL_SECONDS="3",
                PLANTED_SECRET=SECRET,
            )
            day = Day()
            try:
                for port in ports.values():
                    await until_probed(port, "readyz", 200)
                async with WorkerClient(_url(rabbitmq, "cml-client")) as client:
                    admin = SimulatorAdmin(simulator.url)
                    await _lived(Parts(day, client, admin, rabbitmq, postgresql, store, ports, roles))
                roles.stop()
            finally:
                roles.kill()
    if keep := os.environ.get("KEEP_LOGS"):
        for role, log in roles.logs.items():
            (Path(keep) / f"{role}.log").write_bytes(log.read_bytes())
    for role, log in roles.logs.items():
        day.raw[role] = log.read_text().splitlines()
        day.lines[role] = [json.loads(line) for line in day.raw[role] if line.startswith("{")]
    return day


def _url(rabbitmq: SpawnedRabbitMQ, user: str) -> str:
    return f"amqp://{user}:{PASSWORD}@127.0.0.1:{rabbitmq.port}/"


async def _lived(parts: Parts) -> None:
    send, admin = parts.send, parts.admin
    assert (await send("a create", CREATE)).outcome == "succeeded"
    assert (await send("a tag update", UpdateCMLWorkerTags(worker_id=WORKER, tags={"a": "1"}))).data
    # what is expected
    assert (await send("a stop of nobody", StopCMLWorker(worker_id=uuid4()))).problem
    assert (await send("a start of a running one", StartCMLWorker(worker_id=WORKER))).outcome
    await send(
        "an import nobody may send",
        ImportCMLWorker(instance_id="i-00000000000000000", aws_region="us-east-1", created_by="cml-client"),
    )
    assert (await send("a look at nobody", UpdateCMLWorkerStatus(worker_id=uuid4()))).problem
    admin.fault("StopInstances", "RequestLimitExceeded", status=503, times=2)
    assert (await send("a throttled stop", StopCMLWorker(worker_id=WORKER))).outcome == "succeeded"
    await parts.until_stopped()
    admin.fault("StartInstances", "InsufficientInstanceCapacity", status=500, times=1)
    await send("a refused start", StartCMLWorker(worker_id=WORKER))
    admin.fault("DescribeInstances", "UnauthorizedOperation", status=403, times=1)
    await send("a look that is refused", UpdateCMLWorkerStatus(worker_id=WORKER))
    await _broken_message(_url(parts.rabbitmq, "cml-client"))
    # what is not
    with pytest.raises(NoResultYetError):
        await send(
            "an unexpected error",
            UpdateCMLWorkerTags(worker_id=WORKER, tags={"b": "2"}, reason=UNEXPECTED),
            3,
        )
    async with asyncio.timeout(90):  # the unexpected one is given up
        while "HandlerFailed" not in parts.roles.logs["projector"].read_text():
            await asyncio.sleep(0.2)
    # parts away
    async with asyncio.TaskGroup() as together:
        together.create_task(parts.store.outage(5))
        together.create_task(
            send("a tag update without the store", UpdateCMLWorkerTags(worker_id=WORKER, tags={"c": "3"}))
        )
    await asyncio.to_thread(parts.postgresql.restart)
    await asyncio.to_thread(parts.rabbitmq.restart)
    assert (
        await send("a tag update after all", UpdateCMLWorkerTags(worker_id=WORKER, tags={"d": "4"}), 120)
    ).data
    await parts.until_ready()
    assert (await send("a termination", TerminateCMLWorker(worker_id=WORKER))).data


async def _broken_message(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        exchange = await (await connection.channel()).get_exchange(COMMANDS_EXCHANGE.name, ensure=False)
        message = aio_pika.Message(b"{", type=StopCMLWorker.TYPE, message_id="broken", user_id="cml-client")
        await exchange.publish(message, StopCMLWorker.TYPE)


FORM = ("timestamp", "level", "event", "logger")
LEVELS = ("debug", "info", "warning", "error", "critical")


def test_every_line_is_json_of_one_form(day: Day):
    for role, lines in day.lines.items():
        assert len(lines) == len(day.raw[role]), [each for each in day.raw[role] if not each.startswith("{")]
        for line in lines:
            assert [name for name in FORM if not line.get(name)] == [], line
            assert line["level"] in LEVELS
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])
            assert "\n" not in line["event"]
            assert line.get("role") == role or "thread" in line
    assert {"sqlalchemy", "aio_pika", "aiormq", "asyncio", "py", "grpc", "somebodys"} <= {
        line["logger"].partition(".")[0] for line in day.all()
    }


def test_every_line_about_an_operation_carries_its_ids(day: Day):
    """An id that is anywhere in a line is also where it can be looked for."""
    seen = set()
    for line in day.all():
        text = json.dumps(line)
        for command_id in day.sent:
            if command_id in text:
                assert line.get("command_id") == command_id, line
                seen.add(command_id)
                in_archive = line.get("queue") == DEAD_LETTER_QUEUE.name  # which is not read there
                assert line.get("worker_id") == day.workers[command_id] or in_archive, line
        if str(WORKER) in text:
            assert line.get("worker_id") == str(WORKER), line
    assert seen == {*day.sent}
    for what in day.sent.values():
        if what not in NOT_RECORDED:
            recorded = [each for each in day.of(what, "lifecycle") if each["event"] == "recorded"]
            assert recorded, what
            assert all(isinstance(each["revision"], int) for each in recorded)


def test_every_line_about_an_operation_is_of_its_trace(day: Day):
    for command_id, what in day.sent.items():
        lines = [line for line in day.all() if line.get("command_id") == command_id]
        assert len({line.get("trace_id") for line in lines}) == 1, (what, lines)
        assert re.fullmatch("[0-9a-f]{32}", lines[0]["trace_id"]), what
    traces = {lines[0]["trace_id"] for what in day.sent.values() if (lines := day.of(what))}
    assert len(traces) == len(day.sent)
    # Nor is there one in the trace that has lost its ids.
    of_them = [line for line in day.all() if line.get("trace_id") in traces]
    assert [line for line in of_them if not line.get("command_id") and not line.get("worker_id")] == []


def test_what_is_expected_is_one_line_each(day: Day):
    def ours(what: str, role: str) -> list[str]:
        lines = [line for line in day.of(what, role) if line["logger"].startswith("cml_")]
        return [f"{line['level']}: {line['event']}" for line in lines]

    assert ours("a stop of nobody", "lifecycle") == ["info: recorded"]
    assert ours("a start of a running one", "lifecycle") == ["info: recorded"]
    assert ours("an import nobody may send", "lifecycle") == ["warning: dead letter"]
    assert ours("an import nobody may send", "projector") == ["warning: dead letter archived"]
    assert ours("a look at nobody", "lifecycle") == ["info: command answered"]
    assert ours("a throttled stop", "ec2-adapter") == ["warning: EC2 refused, trying again"] * 2
    assert ours("a refused start", "ec2-adapter") == ["warning: EC2 refused for good"]
    assert ours("a look that is refused", "ec2-adapter") == ["warning: EC2 cannot be asked"]
    assert ours("a look that is refused", "lifecycle") == ["info: command answered"]
    for role in ("lifecycle", "relay", "projector"):
        said = [
            line["event"].partition(":")[0] for line in day.all(role) if line.get("part") == "event store"
        ]
        assert said == ["outage begins", "outage ends"], role
    for role in ROLES:
        said = [line["event"] for line in day.all(role) if line["event"].startswith("connection to RabbitMQ")]
        assert said == [
            "connection to RabbitMQ lost: it will be restored",
            "connection to RabbitMQ restored: work goes on",
        ], role


def test_only_what_is_unexpected_has_a_stack_trace_and_no_value_is_in_it(day: Day):
    planted = set()
    for line in day.all():
        of_aiormq = line["logger"].startswith("aiormq") and (
            line["level"] in ("debug", "info") or line["event"] == OF_AIORMQ
        )
        if "exception" in line and not of_aiormq:
            found = re.search(r"RuntimeError: planted in (.*) that knows", line["exception"])
            assert found, line
            assert "Traceback (most recent call last):" in line["exception"]
            assert line["level"] == "error"
            planted.add(found[1])
    assert planted == UNEXPECTED_IN
    assert all(
        "exception" in line
        for line in day.all()
        if line["logger"].startswith("cml_") and line["level"] == "error"
    )
    for role, raw in day.raw.items():
        assert not any(SECRET in line or PASSWORD in line for line in raw), role
