"""Each role in a process of its own that exports its spans to one collector, and a caller that does, too."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aio_pika
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Tracer, get_current_span

from cml_contracts.client import WorkerClient
from cml_contracts.commands import WorkerCommand
from cml_contracts.results import OperationResult
from cml_embedded.ec2_simulator import Ec2Simulator
from cml_workers.foundation.tracing import TRACEPARENT
from cml_workers.tracing.tracer import written
from support.buses import emptied
from support.collector import Seen, collecting, orphans
from support.ec2 import SimulatorAdmin
from support.roles import Roles


class TracedParts:
    def __init__(self, stack: ExitStack, folder: Path, rabbitmq_url: str) -> None:
        self.amqp = rabbitmq_url
        self.collector = stack.enter_context(collecting())
        simulator = stack.enter_context(Ec2Simulator(transition_seconds=0.3))
        self.admin = SimulatorAdmin(simulator.url)
        self.roles = Roles(
            folder,
            RABBITMQ_URL=rabbitmq_url,
            AWS_ENDPOINT_URL=simulator.url,
            CML_VISIBILITY_GRACE_SECONDS="3",
            CML_AUTHORIZE="false",
            CML_REMINDER_SECONDS="3600",
            OTEL_EXPORTER_OTLP_ENDPOINT=self.collector.url,
            OTEL_BSP_SCHEDULE_DELAY="100",
        )
        stack.callback(self.roles.kill)
        provider = TracerProvider(resource=Resource({"service.name": "caller"}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{self.collector.url}/v1/traces")))
        stack.callback(provider.shutdown)
        self._caller: Tracer = provider.get_tracer("caller")

    @contextmanager
    def calling(self) -> Iterator[str]:
        """Within a span of a caller; its trace."""
        with self._caller.start_as_current_span("caller") as span:
            yield f"{span.get_span_context().trace_id:032x}"

    async def asked(
        self, command: WorkerCommand, command_id: str | None = None
    ) -> tuple[OperationResult, str]:
        """The result of a caller's command, and its trace."""
        async with WorkerClient(self.amqp) as client:
            with self.calling() as trace:
                return await client.send(command, command_id=command_id, deadline=150), trace

    async def broken(self, message_type: str, body: bytes) -> str:
        """Send a command that is none, in a trace, which it returns."""
        async with await aio_pika.connect(self.amqp) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange("cml.commands", ensure=False)
            with self.calling() as trace:
                message = aio_pika.Message(body, type=message_type, message_id=f"broken-{trace[:8]}")
                message.headers[TRACEPARENT] = written(get_current_span())
                await exchange.publish(message, message_type)
        return trace

    async def seen(self, trace: str, *names: str) -> list[Seen]:
        """The spans of a trace, as soon as it has these, and none whose parent is not exported yet."""

        def whole() -> bool:
            spans = self.collector.traced(trace)
            return {*names} <= {each.name for each in spans} and orphans(spans) == []

        await asyncio.to_thread(self.collector.until, whole, 120.0)
        return self.collector.traced(trace)


@contextmanager
def traced_parts(folder: Path, rabbitmq_url: str) -> Iterator[TracedParts]:
    """Start all."""
    asyncio.run(emptied(rabbitmq_url))
    with ExitStack() as stack:
        yield TracedParts(stack, folder, rabbitmq_url)
