"""One trace of a command, from its caller's span to its reply, through all processes, as a collector gets it."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Tracer

from cml_contracts.client import WorkerClient
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from support.buses import emptied
from support.collector import Collector, Seen, collecting, orphans, roots
from support.given import create
from support.roles import Roles
from support.running import unconfigured

CREATE = create(ami_id=DEMO_IMAGES["us-east-1"])


class Parts:
    """Each role in a process of its own, which exports to one collector, and a caller that does, too."""

    def __init__(self, stack: ExitStack, folder: Path, rabbitmq_url: str) -> None:
        self.amqp = rabbitmq_url
        self.collector: Collector = stack.enter_context(collecting())
        self.simulator = stack.enter_context(Ec2Simulator(transition_seconds=0.3))
        self.roles = Roles(
            folder,
            RABBITMQ_URL=rabbitmq_url,
            AWS_ENDPOINT_URL=self.simulator.url,
            CML_VISIBILITY_GRACE_SECONDS="3",
            CML_AUTHORIZE="false",
            CML_REMINDER_SECONDS="3600",
            OTEL_EXPORTER_OTLP_ENDPOINT=self.collector.url,
            OTEL_BSP_SCHEDULE_DELAY="200",
        )
        stack.callback(self.roles.kill)
        provider = TracerProvider(resource=Resource({"service.name": "caller"}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{self.collector.url}/v1/traces")))
        stack.callback(provider.shutdown)
        self.caller: Tracer = provider.get_tracer("caller")


@pytest.fixture
def parts(rabbitmq_url: str, tmp_path: Path) -> Iterator[Parts]:
    asyncio.run(emptied(rabbitmq_url))
    with ExitStack() as stack:
        yield Parts(stack, tmp_path, rabbitmq_url)


ATTRIBUTES = {
    "operation": {
        "cml.outcome",
        "cml.status",
        "cml.worker_id",
        "cml.instance_id",
        "aws.region",
        "cml.command_id",
    },
    "append": {"cml.worker_id", "cml.events"},
    "attempt": {"cml.attempt", "cml.worker_id", "cml.command_id", "aws.region", "cml.status"},
    "EC2 RunInstances": {"cml.attempt", "cml.worker_id", "cml.command_id", "aws.region"},
    "send reply": {"cml.worker_id", "cml.message_type"},
}
"""What spans of a create have at least."""


def named(spans: list[Seen], name: str, service: str) -> list[Seen]:
    return [each for each in spans if (each.name, each.service) == (name, service)]


async def test_a_create_is_one_trace_from_the_callers_span_to_its_reply(parts: Parts) -> None:
    async with WorkerClient(parts.amqp) as client:
        with parts.caller.start_as_current_span("caller") as span:
            trace = f"{span.get_span_context().trace_id:032x}"
            created = await client.send(CREATE, command_id="create-1", deadline=100)
    assert created.outcome == "succeeded"
    assert parts.roles.stop() == [0, 0, 0, 0]
    spans = parts.collector.traced(trace)
    assert roots(spans) == ["caller"]
    assert orphans(spans) == []
    for name, service in (
        ("process cml.lifecycle.commands", "cml-lifecycle"),
        ("append", "cml-lifecycle"),
        ("send cml.triggers", "cml-relay"),
        ("send cml.events", "cml-relay"),
        ("process cml.ec2.wakes", "cml-ec2-adapter"),
        ("attempt", "cml-ec2-adapter"),
        ("EC2 RunInstances", "cml-ec2-adapter"),
        ("send cml.internal", "cml-ec2-adapter"),
        ("process cml.lifecycle.reports", "cml-lifecycle"),
        ("operation", "cml-lifecycle"),
        ("send reply", "cml-lifecycle"),
    ):
        found = named(spans, name, service)
        assert found, name
        for each in found:
            assert ATTRIBUTES.get(name, set()) <= each.attributes.keys(), name
            assert each.attributes.get("cml.worker_id", str(created.worker_id)) == str(created.worker_id)
    recorded = [each.attributes["cml.events"] for each in named(spans, "append", "cml-lifecycle")]
    assert "cml.worker.created.v1 cml.worker.launch_requested.v1" in recorded
    assert "cml.worker.instance_launched.v1" in recorded
    (operation,) = named(spans, "operation", "cml-lifecycle")
    assert operation.attributes["cml.outcome"] == "succeeded"
    (call,) = named(spans, "EC2 RunInstances", "cml-ec2-adapter")
    assert operation.start < call.start < call.end < operation.end
    (reply,) = named(spans, "send reply", "cml-lifecycle")
    assert operation.end < reply.end


def test_a_process_that_does_not_trace_imports_no_sdk() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, cml_workers.process.system; print(*sys.modules)"],
        env=unconfigured(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [
        each for each in done.stdout.split() if each.startswith(("opentelemetry.sdk", "cml_workers.tracing"))
    ] == []
