"""Mixed commands on a fleet, by callers who do not give up: each is repeated under its own id until it is answered."""

import asyncio
import random
from collections.abc import Callable
from uuid import UUID, uuid5

from cml_contracts.client import NoResultYetError, NotSentError, WorkerClient
from cml_contracts.commands import (
    CreateCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.results import OperationResult
from cml_workers.embedded.ec2_simulator import DEMO_IMAGES

_NAMES = UUID("6d1f27a4-9c1c-4f34-8a5d-1d6a3a3a9d11")
REGION = "us-east-1"


class Load:
    """``total`` commands of which about ``fleet`` are creates, ``callers`` at once; the same for the same seed."""

    def __init__(
        self, client: WorkerClient, *, total: int, fleet: int, seed: int = 1, callers: int = 24
    ) -> None:
        self.replies: dict[str, list[OperationResult]] = {}
        self.sent: dict[str, str] = {}
        self.repeated = 0
        self.finished = asyncio.Event()
        self._client = client
        self._callers = callers
        self._random = random.Random(seed)
        self._workers = [uuid5(_NAMES, f"{seed}/worker/{n}") for n in range(fleet)]
        self._commands = self._script(total, seed)

    @property
    def answered(self) -> int:
        return len(self.replies)

    async def run(self, on_answer: Callable[[], None] = lambda: None, patience: float = 240.0) -> None:
        """Send everything and await every result. Raises TimeoutError."""

        async def caller() -> None:
            while self._commands:
                command_id, command = self._commands.pop(0)
                self.sent[command_id] = command.TYPE
                await self._until_answered(command_id, command)
                on_answer()

        async with asyncio.timeout(patience):
            await asyncio.gather(*(caller() for _ in range(self._callers)))
        self.finished.set()

    async def _until_answered(self, command_id: str, command: WorkerCommand) -> None:
        while True:
            try:
                result = await self._client.send(command, command_id=command_id, deadline=15)
            except NotSentError:
                await asyncio.sleep(0.2)
            except NoResultYetError:
                self.repeated += 1
            else:
                self.replies.setdefault(command_id, []).append(result)
                return

    def _script(self, total: int, seed: int) -> list[tuple[str, WorkerCommand]]:
        """Creates are spread over the first half, what follows goes to workers created by then."""
        commands: list[WorkerCommand] = []
        created = 0
        while len(commands) < total:
            share = created / len(self._workers)
            if not created or (share < 1 and len(commands) / total > share / 2):
                commands.append(self._create(created))
                created += 1
            else:
                commands.append(self._wish(self._random.choice(self._workers[:created])))
        return [(str(uuid5(_NAMES, f"{seed}/command/{n}")), command) for n, command in enumerate(commands)]

    def _create(self, number: int) -> CreateCMLWorker:
        return CreateCMLWorker(
            name=f"lab-{number}",
            aws_region=REGION,
            instance_type="m5.large",
            ami_id=DEMO_IMAGES[REGION],
            created_by="load",
            worker_id=self._workers[number],
        )

    def _wish(self, worker_id: UUID) -> WorkerCommand:
        kind = self._random.choices(("start", "stop", "tags", "status", "terminate"), (28, 28, 24, 14, 6))[0]
        match kind:
            case "start":
                return StartCMLWorker(worker_id=worker_id)
            case "stop":
                return StopCMLWorker(worker_id=worker_id)
            case "tags":
                tags = {self._random.choice("abcd"): str(self._random.randrange(10))}
                return UpdateCMLWorkerTags(worker_id=worker_id, tags=tags)
            case "status":
                return UpdateCMLWorkerStatus(worker_id=worker_id)
            case _:
                return TerminateCMLWorker(worker_id=worker_id)
