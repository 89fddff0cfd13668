"""Mixed commands on a fleet. Most callers send once and wait; a few are impatient, do not wait, or use our client."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Literal
from uuid import UUID, uuid4

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
from cml_embedded.ec2_simulator import DEMO_IMAGES
from support.callers import Callers

REGION = "us-east-1"

Manner = Literal["once", "impatient", "post", "client"]
MANNERS: dict[Manner, int] = {"once": 80, "impatient": 8, "post": 7, "client": 5}
"""How callers send, of a hundred: once, and wait; again after ``IMPATIENCE``, at another address; without an address; by
``WorkerClient``, which sends again by itself."""
IMPATIENCE = 15.0
TURN = 60.0
"""Seconds after which a caller goes on with another command; the answer is awaited all the same."""
RIVALS = 0.1
"""The share of commands that are a start or stop whose worker is terminated at the same time by another caller."""


class Load:
    """``total`` commands of which about ``fleet`` are creates, ``callers`` at once; the same for the same seed, but for the ids of
    workers and commands: a store that was given has those of the runs before.

    ``client``: for the callers that use it; without one they are callers like most.
    """

    def __init__(
        self,
        callers: Callers,
        client: WorkerClient | None = None,
        *,
        total: int,
        fleet: int,
        seed: int = 1,
        lanes: int = 24,
    ) -> None:
        self.sent: dict[str, str] = {}
        """The types of all commands that were begun, by id."""
        self.manners: Counter[Manner] = Counter()
        self.repeated = 0
        """Messages of those who did not wait for long enough, those of the client included."""
        self.of_client: dict[str, list[OperationResult]] = {}
        """What the client's commands were answered; empty as long as they were not."""
        self._callers = callers
        self._client = client
        self._lanes = lanes
        self._random = random.Random(seed)
        self._workers = [uuid4() for _ in range(fleet)]
        self._commands = self._script(total)

    @property
    def answered(self) -> int:
        """Commands of which a caller knows the end."""
        return sum(bool(self.of_client.get(each) or self._callers.replies.get(each)) for each in self.sent)

    @property
    def status_updates(self) -> frozenset[str]:
        """The status updates, whose results are not recorded."""
        return frozenset(each for each, kind in self.sent.items() if kind == UpdateCMLWorkerStatus.TYPE)

    async def run(self, on_answer: Callable[[], None] = lambda: None) -> None:
        """Send everything. Most is answered by the end, see ``TURN``."""

        async def lane() -> None:
            while self._commands:
                command_id, command, manner = self._commands.pop(0)
                self.sent[command_id] = command.TYPE
                self.manners[manner] += 1
                await self._send(command_id, command, manner)
                on_answer()

        await asyncio.gather(*(lane() for _ in range(self._lanes)))

    async def _send(self, command_id: str, command: WorkerCommand, manner: Manner) -> None:
        if manner == "client" and self._client is not None:
            await self._by_client(self._client, command_id, command)
        elif manner == "post":
            await self._callers.send(command, command_id, None)
        elif manner == "impatient":
            for attempt in range(int(TURN / IMPATIENCE)):
                self.repeated += attempt > 0
                address = f"{command_id}/{attempt}"
                await self._callers.send(command, command_id, address)
                if await self._callers.answer(address, IMPATIENCE):
                    return
        else:
            await self._callers.send(command, command_id, command_id)
            await self._callers.answer(command_id, TURN)

    async def _by_client(self, client: WorkerClient, command_id: str, command: WorkerCommand) -> None:
        self.of_client[command_id] = []
        while True:
            try:
                result = await client.send(command, command_id=command_id, deadline=IMPATIENCE)
            except NotSentError:
                await asyncio.sleep(0.2)
            except NoResultYetError:
                self.repeated += 1
            else:
                self.of_client[command_id].append(result)
                return

    def _script(self, total: int) -> list[tuple[str, WorkerCommand, Manner]]:
        """Creates are spread over the first half, what follows goes to workers created by then, few of them terminated."""
        commands: list[WorkerCommand] = []
        created = 0
        alive: list[UUID] = []
        while len(commands) < total:
            share = created / len(self._workers)
            if not created or (share < 1 and len(commands) / total > share / 2):
                commands.append(self._create(created))
                alive.append(self._workers[created])
                created += 1
            elif self._random.random() < RIVALS and len(commands) + 2 <= total and len(alive) > 2:
                worker_id = alive.pop(self._random.randrange((len(alive) + 1) // 2))  # one that runs by now
                first = self._random.choice((StopCMLWorker, StopCMLWorker, StartCMLWorker))
                commands += first(worker_id=worker_id), TerminateCMLWorker(worker_id=worker_id)
            else:
                anyone = self._random.random() < 0.2 or not alive
                command = self._command(self._random.choice(self._workers[:created] if anyone else alive))
                if isinstance(command, TerminateCMLWorker) and command.worker_id in alive:
                    alive.remove(command.worker_id)
                commands.append(command)
        manners = self._random.choices(list(MANNERS), list(MANNERS.values()), k=len(commands))
        return [(str(uuid4()), command, manner) for command, manner in zip(commands, manners, strict=True)]

    def _create(self, number: int) -> CreateCMLWorker:
        return CreateCMLWorker(
            name=f"lab-{number}",
            aws_region=REGION,
            instance_type="m5.large",
            ami_id=DEMO_IMAGES[REGION],
            created_by="load",
            worker_id=self._workers[number],
        )

    def _command(self, worker_id: UUID) -> WorkerCommand:
        kind = self._random.choices(("start", "stop", "tags", "status", "terminate"), (28, 28, 26, 14, 4))[0]
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
