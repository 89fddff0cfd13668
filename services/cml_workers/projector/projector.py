"""Follows the event store into the read model, and answers queries from it."""

from collections import OrderedDict
from collections.abc import Sequence
from uuid import UUID

from cml_contracts.queries import (
    QUERIES,
    GetCMLWorker,
    GetOperation,
    ListCMLWorkers,
    OperationView,
    Query,
    WorkerView,
)
from cml_contracts.results import OperationResult, Problem, ProblemCode
from cml_workers.bus.codec import BadMessageError, read, reply, reply_address
from cml_workers.bus.port import Ack, DeadLetter, Message, Publish, Verdict
from cml_workers.domain.worker import Worker, evolve
from cml_workers.eventstore.port import (
    CaughtUp,
    Checkpoint,
    EventStore,
    StoredEvent,
    StoreUnavailableError,
)
from cml_workers.eventstore.worker_streams import decode, load, worker_of
from cml_workers.projector.read_model import InvalidCursorError, ReadModel
from cml_workers.projector.rows import operation_rows, worker_row

REMEMBERED = 10_000
"""Folded workers kept in memory; any other is folded again from its stream when its next event comes."""


class Projector:
    """Applies events in the store's order."""

    def __init__(self, *, store: EventStore, read_model: ReadModel) -> None:
        self._store = store
        self._read_model = read_model
        self._folded: OrderedDict[UUID, Worker] = OrderedDict()
        self._workers: dict[UUID, WorkerView] = {}
        self._operations: dict[str, OperationView] = {}
        self._position: str | None = None

    async def handle(self, items: Sequence[StoredEvent | Checkpoint | CaughtUp]) -> None:
        """Take the next items of the store's order: one transaction, however many they are."""
        for item in items:
            match item:
                case StoredEvent():
                    await self._apply(item)
                    self._position = item.position
                case Checkpoint(position):
                    self._position = position
                case CaughtUp():
                    pass
        await self.flush()

    async def flush(self) -> None:
        """Write what has been applied. If that fails it stays, and is written with the next."""
        if self._position is None:
            return
        await self._read_model.write(self._workers.values(), self._operations.values(), self._position)
        self._workers, self._operations, self._position = {}, {}, None

    async def resumed(self) -> str | None:
        """Begin anew behind the saved checkpoint; what was not written is delivered again."""
        self._workers, self._operations, self._position = {}, {}, None
        self._folded.clear()
        return await self._read_model.checkpoint()

    async def _apply(self, stored: StoredEvent) -> None:
        worker_id = worker_of(stored.stream)
        before = self._folded.pop(worker_id, None)
        if before is not None and before.revision >= stored.revision:
            self._folded[worker_id] = before
            return
        if before is None or before.revision != stored.revision - 1:
            before = (
                await load(self._store, worker_id, upto=stored.revision - 1)
                if stored.revision
                else Worker(worker_id)
            )
            if before.revision != stored.revision - 1:
                raise StoreUnavailableError(
                    f"a replica lags behind: no {stored.stream}@{stored.revision - 1} yet"
                )
        after = evolve(before, decode(stored))
        if after.exists:  # refused commands may name any number of workers that never were
            self._folded[worker_id] = after
        if len(self._folded) > REMEMBERED:
            self._folded.popitem(last=False)
        row = worker_row(after)
        if row is not None:
            self._workers[worker_id] = row
        for operation in operation_rows(after, before):
            self._operations[operation.command_id] = operation

    async def on_query(self, message: Message, publish: Publish) -> Verdict:
        """Answer a question; one that nobody awaits is dropped."""
        address = reply_address(message)
        try:
            query: Query = read(message, QUERIES)
            result = await self._answer(query, message.message_id)
            verdict: Verdict = Ack()
        except BadMessageError as error:
            result = _rejected(message.message_id, error.problem)
            verdict = DeadLetter(error.problem.detail, error.problem.code)
        if address is not None:
            await publish(reply(result, address))
        return verdict

    async def _answer(self, query: Query, query_id: str | None) -> OperationResult:
        found: WorkerView | OperationView | None
        worker_id: UUID | None
        match query:
            case ListCMLWorkers():
                try:
                    page = await self._read_model.workers(query)
                except InvalidCursorError as error:
                    return _rejected(query_id, Problem.of(ProblemCode.VALIDATION_FAILED, str(error)))
                return OperationResult(
                    command_id=query_id, outcome="succeeded", data=page.model_dump(mode="json")
                )
            case GetCMLWorker():
                found = await self._read_model.worker(query.worker_id)
                missing, worker_id = f"worker {query.worker_id} is not known", query.worker_id
            case GetOperation():
                found = await self._read_model.operation(query.command_id)
                missing, worker_id = f"no operation of command {query.command_id!r} is recorded (yet)", None
        if found is None:
            return _rejected(query_id, Problem.of(ProblemCode.WORKER_NOT_FOUND, missing)).model_copy(
                update={"worker_id": worker_id}
            )
        return OperationResult(
            command_id=query_id,
            worker_id=found.id if isinstance(found, WorkerView) else found.worker_id,
            outcome="succeeded",
            data=found.model_dump(mode="json"),
        )


def _rejected(query_id: str | None, problem: Problem) -> OperationResult:
    return OperationResult(command_id=query_id, outcome="rejected", problem=problem)
