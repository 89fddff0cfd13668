"""The honest sender: a steady rate of commands and queries by ``WorkerClient``, and how long each took.

Each is due at its time, whether the ones before it are answered or not, and its time counts from then: who waits is not left out.
"""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Self
from uuid import UUID

from cml_contracts.client import NoAnswerError, NoResultYetError, NotSentError, WorkerClient
from cml_contracts.commands import CreateCMLWorker, StartCMLWorker, StopCMLWorker, UpdateCMLWorkerTags
from cml_contracts.queries import GetCMLWorker, ListCMLWorkers
from cml_contracts.results import OperationResult
from cml_embedded.ec2_simulator import DEMO_IMAGES
from system.hostile.messages import REGION

USER = "ann"
WORKERS = 12
SLOTS: Mapping[str, int] = {"create": 1, "stop": 10, "start": 10, "tags": 45, "get": 22, "list": 12}
"""Of a hundred that it sends."""
QUERIES = ("get", "list")
PATIENCE = 1_800.0
"""Seconds after which something counts as not answered."""


class Honest:
    """``took``: by part of the run and kind, in seconds."""

    def __init__(self, url: str, *, seed: int, rate: float) -> None:
        self._client = WorkerClient(url, deadline=PATIENCE, own_exchanges=True)
        self._random = random.Random(seed)
        self._rate = rate
        self._workers: list[UUID] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self.took: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.outcomes: Counter[str] = Counter()
        self.not_sent = 0
        """Not confirmed by the broker, or refused by it, and sent again under the same id."""
        self.asked_again = 0
        """Queries that expired in their queue."""
        self.unanswered: list[str] = []

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._client.__aexit__(None, None, None)

    async def settle(self) -> None:
        """Its workers, and everything once: what is first is slower."""
        self._workers = [await self._created() for _ in range(WORKERS)]
        for kind in SLOTS:
            await self._ask(kind)

    async def send(self, part: str, seconds: float) -> None:
        """At its rate for so long; what is not answered then is awaited by ``answered``."""
        began = time.monotonic()
        for number in range(int(seconds * self._rate)):
            due = began + number / self._rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            (kind,) = self._random.choices(list(SLOTS), list(SLOTS.values()))
            task = asyncio.create_task(self._timed(part, kind, due))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def answered(self) -> None:
        """Everything is, or counts as not answered."""
        await asyncio.gather(*self._under_way)

    async def _timed(self, part: str, kind: str, due: float) -> None:
        try:
            result = await self._ask(kind)
        except (NoResultYetError, TimeoutError) as error:
            self.unanswered.append(f"{kind}: {error}")
            return
        self.took[part][kind].append(time.monotonic() - due)
        self.outcomes[f"{result.outcome} {result.problem.code if result.problem else ''}".strip()] += 1

    async def _ask(self, kind: str) -> OperationResult:
        worker_id = self._random.choice(self._workers)
        match kind:
            case "create":
                return await self._command(self._create())
            case "stop":
                return await self._command(StopCMLWorker(worker_id=worker_id))
            case "start":
                return await self._command(StartCMLWorker(worker_id=worker_id))
            case "tags":
                turn = str(self._random.randrange(1_000))
                return await self._command(UpdateCMLWorkerTags(worker_id=worker_id, tags={"turn": turn}))
            case "get":
                return await self._query(GetCMLWorker(worker_id=worker_id))
            case _:
                return await self._query(ListCMLWorkers(limit=20))

    async def _command(
        self, command: CreateCMLWorker | StartCMLWorker | StopCMLWorker | UpdateCMLWorkerTags
    ) -> OperationResult:
        command_id = str(UUID(int=self._random.getrandbits(128), version=4))
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await self._client.send(command, command_id=command_id)
                except NotSentError:
                    self.not_sent += 1
                    await asyncio.sleep(0.05)

    async def _query(self, query: GetCMLWorker | ListCMLWorkers) -> OperationResult:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await self._client.query(query, deadline=60)
                except NotSentError:
                    self.not_sent += 1
                    await asyncio.sleep(0.05)
                except NoAnswerError:
                    self.asked_again += 1

    def _create(self) -> CreateCMLWorker:
        return CreateCMLWorker(
            name="honest",
            aws_region=REGION,
            ami_id=DEMO_IMAGES[REGION],
            instance_type="t3.micro",
            created_by=USER,
        )

    async def _created(self) -> UUID:
        result = await self._command(self._create())
        assert result.worker_id is not None, result
        return result.worker_id
