"""The read model and the checkpoints in memory, as a process sees a database over a network."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from cml_contracts.instance import WorkerStatus
from cml_contracts.queries import OperationView, WorkerView
from cml_workers.projector.read_model import FOLLOWER, ReadModel
from cml_workers.sql.database import DatabaseUnavailableError
from simulation.world import Process


@dataclass
class Tables:
    workers: dict[UUID, WorkerView] = field(default_factory=dict)
    operations: dict[str, OperationView] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)


class ReadModelOfProcess(ReadModel):
    """What the projector asks of ``ReadModel``; a transaction is one moment, before and after which anything happens."""

    def __init__(self, process: Process, tables: Tables) -> None:
        self.process = process
        self.tables = tables

    async def checkpoint(self) -> str | None:
        await self._begin("checkpoint")
        return self.tables.checkpoints.get(FOLLOWER)

    async def write(
        self, workers: Iterable[WorkerView], operations: Iterable[OperationView], position: str
    ) -> None:
        await self._begin("rows")
        self.tables.workers.update((worker.id, worker) for worker in workers)
        self.tables.operations.update((operation.command_id, operation) for operation in operations)
        self.tables.checkpoints[FOLLOWER] = position
        await self._end("rows")

    async def worker(self, worker_id: UUID) -> WorkerView | None:
        await self._begin("query")
        return self.tables.workers.get(worker_id)

    async def operation(self, command_id: str) -> OperationView | None:
        await self._begin("query")
        return self.tables.operations.get(command_id)

    async def pending(self, before: datetime) -> Sequence[OperationView]:
        await self._begin("query")
        pending = [each for each in self.tables.operations.values() if each.result is None]
        return sorted(
            (each for each in pending if each.requested_at < before), key=lambda each: each.requested_at
        )

    async def unsettled(self) -> Sequence[UUID]:
        await self._begin("query")
        moving = (WorkerStatus.STARTING, WorkerStatus.STOPPING)
        return [worker.id for worker in self.tables.workers.values() if worker.status in moving]

    async def load(self, follower: str) -> str | None:
        """A follower's checkpoint, as the relay loads it."""
        await self._begin("checkpoint")
        return self.tables.checkpoints.get(follower)

    async def save(self, follower: str, position: str) -> None:
        await self._begin("checkpoint")
        self.tables.checkpoints[follower] = position
        await self._end("checkpoint")

    async def _begin(self, what: str) -> None:
        await self.process.step(f"{what} begins")
        if self.process.world.happens("unavailable", what):
            raise DatabaseUnavailableError("no connection")

    async def _end(self, what: str) -> None:
        await self.process.step(f"{what} end")
        if self.process.world.happens("lost answer", what):
            raise DatabaseUnavailableError("the answer was lost")
