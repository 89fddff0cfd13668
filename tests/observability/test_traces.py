"""One trace of each command, from its caller's span to its reply, through all processes, as a collector gets it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest

from cml_contracts.client import WorkerClient
from cml_contracts.commands import (
    CreateCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.instance import WorkerStatus
from cml_embedded.ec2_simulator import DEMO_IMAGES
from cml_workers.runtime.settings import load_settings
from support.collector import Seen, orphans, roots
from support.given import create
from support.running import CONFIGURING, unconfigured
from support.traced_parts import TracedParts, traced_parts

pytestmark = pytest.mark.timeout(400)

SECRETS = ("lab-of-ann", "because of week 3", "ann@example.org", "no JSON of ann")
"""What senders write freely."""
NAME, REASON, TAG, BODY = SECRETS

ATTRIBUTES = {
    "operation": {"cml.outcome", "cml.status", "cml.worker_id", "cml.command", "cml.command_id"},
    "append": {"cml.worker_id", "cml.events"},
    "attempt": {"cml.attempt", "cml.worker_id", "cml.command_id", "aws.region", "cml.status"},
    "EC2": {"rpc.method", "aws.region", "cml.worker_id", "cml.command_id"},
    "wait": {"cml.attempt", "cml.worker_id", "cml.command_id"},
    "send reply": {"cml.worker_id", "cml.message_type"},
}
"""What spans have at least, by their name or its first word."""
CHANGES = ("RunInstances", "StartInstances", "StopInstances", "TerminateInstances", "CreateTags")
for _api in CHANGES:
    ATTRIBUTES[f"EC2 {_api}"] = ATTRIBUTES["EC2"] | {"cml.attempt"}

ASKED = ("process cml.lifecycle.commands", "send reply")
DONE_BY_EC2 = (*ASKED, "append", "send cml.triggers", "process cml.ec2.wakes", "attempt", "operation")
REPORTED = ("send cml.internal", "process cml.lifecycle.reports")
LOOKED_UP = (*REPORTED, "process cml.ec2.lookups", "EC2 DescribeInstances")


@pytest.fixture(scope="module")
def parts(rabbitmq_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedParts]:
    with traced_parts(tmp_path_factory.mktemp("traced"), rabbitmq_url) as parts:
        yield parts


def a_create() -> CreateCMLWorker:
    tags = {"owner": TAG}
    return create(ami_id=DEMO_IMAGES["us-east-1"], worker_id=uuid4(), name=NAME, reason=REASON, tags=tags)


def check(spans: list[Seen]) -> None:
    """One root, no orphan, and each span has its attributes."""
    assert roots(spans) == ["caller"]
    assert orphans(spans) == []
    for each in spans:
        wanted = ATTRIBUTES.get(each.name, ATTRIBUTES.get(each.name.partition(" ")[0], set()))
        assert wanted <= each.attributes.keys(), each


def named(spans: list[Seen], name: str) -> list[Seen]:
    return [each for each in spans if each.name == name]


async def running(parts: TracedParts, command: CreateCMLWorker) -> None:
    """Create a worker, and wait until it runs."""
    result, _ = await parts.asked(command)
    assert result.outcome == "succeeded", result
    await until(parts, command, WorkerStatus.RUNNING)


async def until(parts: TracedParts, command: CreateCMLWorker, status: WorkerStatus) -> None:
    assert command.worker_id
    async with WorkerClient(parts.amqp) as client, asyncio.timeout(60):
        while (view := await client.worker(command.worker_id)) is None or view.status is not status:
            await asyncio.sleep(0.1)


async def test_a_create_is_one_trace_from_the_callers_span_to_its_reply(parts: TracedParts) -> None:
    command = a_create()
    created, trace = await parts.asked(command, "create-1")
    assert created.outcome == "succeeded"
    spans = await parts.seen(trace, *DONE_BY_EC2, *REPORTED, "send cml.events", "EC2 RunInstances")
    check(spans)
    assert {each.service for each in spans} == {"caller", "cml-lifecycle", "cml-relay", "cml-ec2-adapter"}
    recorded = [each.attributes["cml.events"] for each in named(spans, "append")]
    assert "cml.worker.created.v1 cml.worker.launch_requested.v1" in recorded
    assert "cml.worker.instance_launched.v1" in recorded
    (operation,) = named(spans, "operation")
    assert operation.attributes["cml.outcome"] == "succeeded"
    assert operation.attributes["cml.worker_id"] == str(command.worker_id)
    assert operation.attributes["cml.instance_id"].startswith("i-")
    (call,) = named(spans, "EC2 RunInstances")
    (reply,) = named(spans, "send reply")
    assert operation.start < call.start < call.end < operation.end < reply.end


async def test_each_kind_of_command_is_a_trace(parts: TracedParts) -> None:
    command = a_create()
    await running(parts, command)
    worker = command.worker_id
    assert worker
    nobody = uuid4()
    sent: list[tuple[WorkerCommand, str, str | None, tuple[str, ...]]] = [
        (
            UpdateCMLWorkerTags(worker_id=worker, tags={"a": TAG}, reason=REASON),
            "succeeded",
            None,
            (*DONE_BY_EC2, *REPORTED, "EC2 CreateTags"),
        ),
        (UpdateCMLWorkerStatus(worker_id=worker), "succeeded", None, (*ASKED, *LOOKED_UP, "operation")),
        (UpdateCMLWorkerStatus(worker_id=nobody), "rejected", "WorkerNotFound", (*ASKED, "operation")),
        (StartCMLWorker(worker_id=worker), "succeeded", None, (*ASKED, *LOOKED_UP, "append", "operation")),
        (StopCMLWorker(worker_id=nobody), "rejected", "WorkerNotFound", (*ASKED, "append", "operation")),
        (
            StopCMLWorker(worker_id=worker, reason=REASON),
            "succeeded",
            None,
            (*DONE_BY_EC2, *REPORTED, "EC2 StopInstances"),
        ),
        (
            StartCMLWorker(worker_id=worker),
            "succeeded",
            None,
            (*DONE_BY_EC2, *REPORTED, "EC2 StartInstances"),
        ),
        (
            TerminateCMLWorker(worker_id=worker),
            "succeeded",
            None,
            (*DONE_BY_EC2, *REPORTED, "EC2 TerminateInstances", "wait"),
        ),
    ]
    for each, outcome, code, names in sent:
        result, trace = await parts.asked(each)
        assert result.outcome == outcome, result
        spans = await parts.seen(trace, *names)
        check(spans)
        found = [
            (operation.attributes["cml.outcome"], operation.attributes.get("cml.problem_code"))
            for operation in named(spans, "operation")
        ]
        assert found == [(outcome, code)], each.TYPE
        if isinstance(each, StopCMLWorker) and each.worker_id == worker:
            await until(parts, command, WorkerStatus.STOPPED)
    broken = await parts.broken(StopCMLWorker.TYPE, f'{{"reason": "{BODY}"'.encode())
    spans = await parts.seen(broken, "send cml.dead-letters", "process cml.dead-letters", "operation")
    assert (roots(spans), orphans(spans)) == (["caller"], [])
    (handled,) = named(spans, "process cml.lifecycle.commands")
    assert handled.attributes["cml.verdict"] == "dead_letter"
    assert handled.attributes["cml.problem_code"] == "ValidationFailed"
    exported = b"".join(parts.collector.bodies)
    assert [each for each in SECRETS if each.encode() in exported] == []


async def test_a_create_that_is_throttled_and_retried_after_a_crash_is_one_trace(parts: TracedParts) -> None:
    command = a_create()
    parts.admin.fault("RunInstances", "RequestLimitExceeded", status=503, times=1)
    parts.admin.fault("RunInstances", "", delay_seconds=600, effect="slow", times=1)
    with parts.calling() as trace:
        async with WorkerClient(parts.amqp) as client:
            asking = asyncio.create_task(client.send(command, command_id="crash-1", deadline=200))
            # What a process has not exported when it is killed is lost: by then the first attempt is, and the wait for the second.
            before = {"EC2 RunInstances", "wait"}
            await asyncio.to_thread(
                parts.collector.until,
                lambda: before <= {each.name for each in parts.collector.traced(trace)},
                150,
            )
            parts.roles.kill_and_start("ec2-adapter")
            parts.admin.clear()
            created = await asking
    assert created.outcome == "succeeded"
    spans = await parts.seen(trace, *DONE_BY_EC2, *REPORTED, "wait", "caller")
    check(spans)
    calls = named(spans, "EC2 RunInstances")
    assert [each.attributes.get("aws.error_code") for each in calls] == ["RequestLimitExceeded", None]
    assert calls[0].is_error
    attempts = [each.attributes["cml.attempt"] for each in calls]
    assert attempts[0] == 1
    assert attempts[1] > 1
    (operation,) = named(spans, "operation")
    assert operation.start < calls[0].start < calls[1].end < operation.end
    waits = named(spans, "wait")
    assert any(calls[0].end <= each.start + 0.1 and each.end <= calls[1].start + 0.1 for each in waits)


def test_nothing_is_traced_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.startswith((*CONFIGURING, "OTEL_"))]:
        monkeypatch.delenv(name)
    assert load_settings().traces is False
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert load_settings().traces is True


def test_a_process_that_does_not_trace_imports_no_sdk() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, cml_workers.process.system; print(*sys.modules)"],
        env=unconfigured(),
        capture_output=True,
        text=True,
        check=True,
    )
    ours = ("opentelemetry.sdk", "cml_workers.tracing")
    assert [each for each in done.stdout.split() if each.startswith(ours)] == []
