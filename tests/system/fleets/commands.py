"""What the callers of a fleet ask for at random, and what became of it."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

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
from cml_contracts.instance import CONSENT_TAG, DEPLOYMENT_TAG
from cml_contracts.results import OperationResult, ProblemCode
from cml_embedded.ec2_simulator import DEMO_IMAGES
from support.ec2 import SimulatorAdmin
from system.fleets.parts import Fleet

REGIONS = ("us-east-1", "eu-west-1")
TYPES = ("m5.large", "m5.xlarge", "c5.2xlarge")
KEYS = "abcd"
"""Tags that callers and the stranger change."""
TURN = 60.0
"""Seconds after which a caller goes on; the answer is awaited all the same."""
MOST_WORKERS = 12
WEIGHTS: Mapping[str, int] = {
    "create": 10,
    "start": 24,
    "stop": 22,
    "tags": 20,
    "status": 10,
    "terminate": 5,
    "import": 4,
    "import of the other's": 5,
}
GONE = (ProblemCode.WORKER_TERMINATED, ProblemCode.WORKER_NOT_FOUND)


class Commands:
    """Random commands for one fleet."""

    def __init__(self, fleet: Fleet, admin: SimulatorAdmin, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.workers: dict[UUID, str] = {}
        """Those that are not known to be gone, with their region."""
        self.sent: dict[str, WorkerCommand] = {}
        self._fleet = fleet
        self._admin = admin
        self._random = random.Random(seed)

    async def run(self, until: Callable[[], bool], lanes: int) -> None:
        """Send, one after the other in each lane, until it is enough."""

        async def lane() -> None:
            while not until():
                chosen = await self._choose()
                if chosen is not None:
                    await self.send(*chosen)
                await asyncio.sleep(self._random.uniform(0.05, 0.6))

        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(lane())

    async def send(self, kind: str, command: WorkerCommand) -> OperationResult | None:
        """Once; the answer, if it comes in time."""
        command_id = str(UUID(int=self._random.getrandbits(128), version=4))
        self.sent[command_id] = command
        self.counts[kind] += 1
        if isinstance(command, CreateCMLWorker | ImportCMLWorker):
            self.workers[command.worker(command_id)] = command.aws_region
        await self._fleet.callers.send(command, command_id, command_id)
        if not await self._fleet.callers.answer(command_id, TURN):
            return None
        result = self._fleet.callers.replies[command_id][0]
        self._learn(kind, command, command_id, result)
        return result

    def _learn(self, kind: str, command: WorkerCommand, command_id: str, result: OperationResult) -> None:
        code = result.problem.code if result.problem else ""
        self.outcomes[f"{result.outcome} {code}".strip()] += 1
        succeeded = result.outcome == "succeeded"
        ended = isinstance(command, TerminateCMLWorker) and succeeded
        not_imported = isinstance(command, ImportCMLWorker) and not succeeded
        if code in GONE or ended or not_imported:
            self.workers.pop(command.worker(command_id), None)
        if kind == "import of the other's" and succeeded:
            self.wrong.append(f"{self._fleet.name} could import what is not its own: {command}")

    async def _choose(self) -> tuple[str, WorkerCommand] | None:
        kind = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if kind.startswith("import"):
            return self._import(kind, await asyncio.to_thread(self._admin.instances))
        if kind == "create" and len(self.workers) >= MOST_WORKERS:
            kind = "terminate"
        if kind == "create" or len(self.workers) < 3:
            return "create", self._create()
        worker_id = self._random.choice(list(self.workers))
        match kind:
            case "start":
                return kind, StartCMLWorker(worker_id=worker_id)
            case "stop":
                return kind, StopCMLWorker(worker_id=worker_id)
            case "tags":
                tags = {self._random.choice(KEYS): str(self._random.randrange(10))}
                return kind, UpdateCMLWorkerTags(worker_id=worker_id, tags=tags)
            case "status":
                return kind, UpdateCMLWorkerStatus(worker_id=worker_id)
            case _:
                return kind, TerminateCMLWorker(worker_id=worker_id)

    def _create(self) -> CreateCMLWorker:
        region = self._random.choice(REGIONS)
        return CreateCMLWorker(
            name=f"lab-{self.counts['create']}",
            aws_region=region,
            instance_type=self._random.choice(TYPES),
            ami_id=DEMO_IMAGES[region],
            tags={"a": "0"},
            created_by=self._fleet.name,
            worker_id=UUID(int=self._random.getrandbits(128), version=4),
        )

    def _import(self, kind: str, instances: Sequence[Mapping[str, Any]]) -> tuple[str, WorkerCommand] | None:
        """Of an instance that we may import, or of one that another fleet has or may import."""
        us = self._fleet.name
        there = [each for each in instances if each["state"] in ("running", "stopped")]
        if kind == "import":
            there = [
                each
                for each in there
                if DEPLOYMENT_TAG not in each["tags"] and each["tags"].get(CONSENT_TAG) == us
            ]
        else:
            there = [
                each
                for each in there
                if each["tags"].get(DEPLOYMENT_TAG, each["tags"].get(CONSENT_TAG)) != us
            ]
        if not there:
            return None
        chosen = self._random.choice(there)
        return kind, ImportCMLWorker(
            aws_region=chosen["region"], instance_id=chosen["instance_id"], created_by=us
        )
