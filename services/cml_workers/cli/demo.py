"""``cml-workers demo``: an embedded system, driven over AMQP like by any other service, and checked."""

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from rich.console import Console
from rich.rule import Rule

from cml_contracts.client import WorkerClient
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
from cml_contracts.envelope import EventEnvelope
from cml_contracts.instance import CONSENT_TAG, InstanceState, LaunchParameters, WorkerStatus
from cml_contracts.results import OperationResult
from cml_workers.cli.show import WIDE, event_line, worker_panel, worker_table
from cml_workers.ec2_adapter.aws import AwsEc2Client
from cml_workers.eventstore.names import stream_of
from cml_workers.eventstore.opening import open_event_store
from cml_workers.foundation.secrets import redacted
from cml_workers.process.system import system
from cml_workers.runtime.endpoints import event_store_uri
from cml_workers.runtime.logs import configure_logging
from cml_workers.runtime.settings import Settings

LONGEST_WAIT = 60.0
"""Seconds to wait for anything before it counts as missing."""
ACTOR = "demo"


def rule(out: Console, title: str = "") -> None:
    """A line across what people see, also where ``out`` has no end."""
    out.print(Rule(title, align="left"), width=min(out.width, WIDE))


class _Demo:
    """What the demo prints and checks."""

    def __init__(self, out: Console, client: WorkerClient) -> None:
        self._out = out
        self._client = client
        self.passed = True

    @contextmanager
    def section(self, title: str) -> Iterator[None]:
        rule(self._out, f"[bold]{title}")
        yield

    def check(self, statement: str, holds: bool) -> None:
        self.passed = self.passed and holds
        self._out.print(f"  {'[green]✓' if holds else '[red]✗'} {statement}", highlight=False)

    async def send(
        self, command: WorkerCommand, expected: str = "succeeded", command_id: str | None = None
    ) -> OperationResult:
        result = await self._client.send(command, command_id=command_id, deadline=LONGEST_WAIT)
        answer = f"{result.problem.code}: {result.problem.detail}" if result.problem else _short(result.data)
        self._out.print(f"[bold]{command.TYPE}[/bold] → {result.outcome} {answer}", highlight=False)
        if result.outcome != expected:
            self.check(f"{command.TYPE} ends as {expected}", False)
        return result

    async def reaches(self, worker_id: UUID, status: WorkerStatus) -> None:
        async def there() -> bool:
            view = await self._client.worker(worker_id)
            return view is not None and view.status is status

        self.check(f"the read model shows {status}", await _soon(there))


async def run_demo(out: Console) -> bool:
    """Run the demo; True if every check passed."""
    with tempfile.TemporaryDirectory(prefix="cml-workers-demo-") as folder:
        settings = Settings(
            data_dir=Path(folder),
            rabbitmq_url=None,
            kurrentdb_uri=None,
            database_url=None,
            aws_endpoint_url=None,
            aws=False,
            authorize=False,
            amqp_port=0,
            ec2_port=0,
            ec2_transition_seconds=1.0,
            visibility_grace_seconds=5,
            log_level="error",
        )
        configure_logging(settings)
        out.print("Starting the embedded system (AMQP broker, event store, read model, EC2 simulator) ...")
        async with system(settings) as (endpoints, _):
            for name, url in endpoints.items():
                out.print(f"  {name:12} {redacted(url)}", soft_wrap=True, highlight=False)
            async with WorkerClient(endpoints["amqp"]) as client, client.events("cml.#") as incoming:
                received: list[EventEnvelope] = []

                async def subscribe() -> None:
                    async for envelope in incoming:
                        received.append(envelope)  # noqa: PERF401 - it is read while it grows

                subscriber = asyncio.create_task(subscribe())
                try:
                    demo = _Demo(out, client)
                    await _play(out, demo, client, settings, endpoints["ec2"], received)
                finally:
                    subscriber.cancel()
    rule(out)
    out.print("[bold green]All checks passed." if demo.passed else "[bold red]Some checks failed.")
    return demo.passed


async def _play(
    out: Console,
    demo: _Demo,
    client: WorkerClient,
    settings: Settings,
    ec2_endpoint: str,
    received: list[EventEnvelope],
) -> None:
    with demo.section("Six commands for one worker"):
        command_id, create = (
            str(uuid4()),
            CreateCMLWorker(
                name="lab-1",
                aws_region="us-east-1",
                instance_type="m5.large",
                cml_version="2.8.1",
                tags={"course": "ccna"},
                created_by=ACTOR,
            ),
        )
        created = await demo.send(create, command_id=command_id)
        assert created.worker_id is not None  # noqa: S101 - every result of a command names its worker
        worker_id = created.worker_id
        again = await asyncio.gather(
            *(client.send(create, command_id=command_id, deadline=LONGEST_WAIT) for _ in range(4))
        )
        demo.check(
            "the same message four times more: four equal replies", all(each == created for each in again)
        )
        await demo.reaches(worker_id, WorkerStatus.RUNNING)
        tagged = await demo.send(
            UpdateCMLWorkerTags(worker_id=worker_id, tags={"lab": "ospf"}, updated_by=ACTOR)
        )
        tags = tagged.data or {}
        demo.check("tags are added, none is dropped", {"course", "lab", "Name"} <= set(tags))
        observed = await demo.send(UpdateCMLWorkerStatus(worker_id=worker_id))
        demo.check("EC2 says running", (observed.data or {}).get("instance_state") == "running")
        await demo.send(StopCMLWorker(worker_id=worker_id, stopped_by=ACTOR))
        await demo.reaches(worker_id, WorkerStatus.STOPPED)
        await demo.send(StartCMLWorker(worker_id=worker_id, started_by=ACTOR))
        await demo.reaches(worker_id, WorkerStatus.RUNNING)
        await demo.send(TerminateCMLWorker(worker_id=worker_id, terminated_by=ACTOR, reason="end of demo"))
        await demo.reaches(worker_id, WorkerStatus.TERMINATED)

    async with AwsEc2Client(endpoint_url=ec2_endpoint) as ec2:
        with demo.section("An instance launched elsewhere is imported"):
            image = await ec2.find_image("eu-west-1", settings_image())
            outside = await ec2.launch(
                LaunchParameters(
                    aws_region="eu-west-1",
                    ami_id=image or "",
                    instance_type="m5.large",
                    tags={"Name": "found", CONSENT_TAG: settings.deployment},
                    generation=1,
                    client_token=uuid4().hex,
                )
            )
            adopt = ImportCMLWorker(aws_region="eu-west-1", instance_id=outside.instance_id, created_by=ACTOR)
            imported = await demo.send(adopt)
            twice = await demo.send(adopt)
            demo.check("imported twice it is one worker", imported.worker_id == twice.worker_id)

        with demo.section("Commands that are rejected or fail"):
            unknown = await demo.send(StartCMLWorker(worker_id=uuid4(), started_by=ACTOR), "rejected")
            demo.check("an unknown worker: WorkerNotFound", _code(unknown) == "WorkerNotFound")
            nowhere = await demo.send(
                CreateCMLWorker(name="lab-2", aws_region="ap-south-2", created_by=ACTOR), "rejected"
            )
            demo.check("no image for the region: ValidationFailed", _code(nowhere) == "ValidationFailed")

        with demo.section("The read model"):
            page = await client.workers()
            out.print(worker_table(page.workers, out.width))
            for view in page.workers:
                if view.id == worker_id:
                    out.print(worker_panel(view))
            first = await ec2.describe_many("us-east-1", [str((created.data or {}).get("aws_instance_id"))])
            demo.check(
                "the first instance is terminated in EC2",
                all(each.state is InstanceState.TERMINATED for each in first.values()),
            )
            launched = await ec2.list_instances(
                "us-east-1", {"client-token": [await _token(settings, worker_id)]}
            )
            demo.check("exactly one instance was launched for it", len(launched) == 1)
            demo.check("the read model has both workers and no other", len(page.workers) == 2)

    with demo.section(f"The stream of worker {worker_id}, and what a subscriber received"):
        stored = await _stream(settings, worker_id)

        async def all_arrived() -> bool:
            return _of(received, worker_id) == stored

        arrived = await _soon(all_arrived)
        for envelope in received:
            if envelope.worker_id == worker_id:
                out.print(event_line(envelope), soft_wrap=True)
        demo.check("the subscriber received every event of the stream, once and in order", arrived)
        demo.check(
            "the stream ends with the termination", bool(stored) and stored[-1][1].endswith("terminated.v1")
        )


def settings_image() -> str:
    from cml_embedded.ec2_simulator import DEMO_IMAGE_NAME  # noqa: PLC0415 - an optional extra

    return DEMO_IMAGE_NAME


async def _stream(settings: Settings, worker_id: UUID) -> list[tuple[int, str]]:
    store = open_event_store(event_store_uri(settings))
    try:
        return [(each.revision, each.type) for each in await store.read(stream_of(worker_id))]
    finally:
        await store.close()


async def _token(settings: Settings, worker_id: UUID) -> str:
    store = open_event_store(event_store_uri(settings))
    try:
        for each in await store.read(stream_of(worker_id)):
            launch = json.loads(each.data).get("launch")
            if launch:
                return str(launch["client_token"])
    finally:
        await store.close()
    return ""


def _of(received: list[EventEnvelope], worker_id: UUID) -> list[tuple[int, str]]:
    return [(each.revision, each.type) for each in received if each.worker_id == worker_id]


async def _soon(condition: Callable[[], Awaitable[bool]]) -> bool:
    """Whether the condition becomes true in time."""
    try:
        async with asyncio.timeout(LONGEST_WAIT):
            while not await condition():  # noqa: ASYNC110 - what is awaited is in another service
                await asyncio.sleep(0.1)
    except TimeoutError:
        return False
    return True


def _code(result: OperationResult) -> str | None:
    return result.problem.code.value if result.problem else None


def _short(data: Any) -> str:
    if isinstance(data, dict) and "aws_instance_id" in data:
        return f"{data['aws_instance_id']} {data['instance_state']}"
    return json.dumps(data)
