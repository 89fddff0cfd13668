"""What became of a worker's commands, read from its events: for replies, rows and audits.

A worker itself holds only what is pending. What an event settled is worked out where it is needed: from the worker
before and after it, or, for a command of some time ago, from the whole stream.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from cml_contracts.commands import ImportCMLWorker
from cml_contracts.events import (
    CommandRejected,
    CommandSkipped,
    InstanceLaunched,
    TagsUpdated,
    TerminationRequested,
    WorkerEvent,
    WorkerImported,
    WorkerTerminated,
)
from cml_contracts.results import Delay, OperationResult, Outcome, Problem
from cml_workers.domain.fold import evolve
from cml_workers.domain.history import EventMetadata, Recorded
from cml_workers.domain.operations import KINDS, SWITCHES, Kind, as_sent, command_of, is_adoption
from cml_workers.domain.worker import Operation, Worker


@dataclass(frozen=True, slots=True)
class Entry:
    """What the stream says of one command.

    ``requested`` surrounds the request, or the answer where nothing was asked of AWS; ``operation``: the request as it
    is, or was, pending; ``result`` is None while it is. ``settled_by`` is the id of the message whose handling settled
    it, so that a repetition sends the same replies again.
    """

    command_id: str
    command_type: str
    requested: EventMetadata
    operation: Operation | None = None
    result: OperationResult | None = None
    settled_at: datetime | None = None
    settled_by: str | None = None

    @property
    def overdue_at(self) -> datetime | None:
        """When a deadline passed while it was pending."""
        return self.operation and self.operation.overdue_at

    @property
    def waits_for(self) -> Delay | None:
        """Why EC2 has not carried it out yet."""
        return self.operation.delay if self.operation and self.result is None else None


@dataclass(slots=True)
class Ledger:
    """A worker and all its commands, by their ids in the order they came."""

    worker: Worker
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def of(cls, worker_id: UUID, history: Iterable[Recorded]) -> Self:
        """The ledger of a whole stream, in time that grows with its length."""
        ledger = cls(Worker(worker_id))
        for recorded in history:
            ledger.add(recorded)
        return ledger

    def add(self, recorded: Recorded) -> None:
        """The worker's next event."""
        before, self.worker = self.worker, evolve(self.worker, recorded)
        self.entries |= {each.command_id: each for each in entries(before, recorded, self.worker)}

    def settled_by(self, message_id: str) -> Sequence[Entry]:
        """The commands that the handling of one message settled."""
        return [entry for entry in self.entries.values() if entry.settled_by == message_id]


def entries(before: Worker, recorded: Recorded, after: Worker) -> Iterator[Entry]:
    """The commands that the event between the two changed."""
    for command_id, operation in after.operations.items():
        # The fold makes a new one of what changes.
        if before.operations.get(command_id) is not operation:
            yield Entry(
                command_of(command_id),
                _command_type(command_id, operation.kind),
                operation.requested,
                operation,
            )
    if isinstance(recorded.event, WorkerImported):
        # Until the adoption, which is requested with it, has its outcome.
        yield Entry(recorded.event.operation_id, ImportCMLWorker.TYPE, recorded.metadata)
    yield from settled(before, recorded)


def settled(before: Worker, recorded: Recorded) -> Iterator[Entry]:
    """The commands that the event settled, with their results."""
    event = recorded.event
    match event:
        case CommandRejected():
            yield _entry(
                before,
                recorded,
                event.operation_id,
                event.command_type,
                outcome=event.outcome,
                problem=event.problem,
            )
        case CommandSkipped():
            yield _entry(before, recorded, event.operation_id, event.command_type, data=event.data)
        case WorkerTerminated():
            for operation in before.pending(TerminationRequested):
                yield _entry(before, recorded, operation.command_id, operation.kind.command.TYPE, data=True)
        case TagsUpdated() if is_adoption(event.operation_id):
            yield _entry(
                before, recorded, event.operation_id, ImportCMLWorker.TYPE, data=_as_it_was_found(before)
            )
        case _ if (failed := _FAILED.get(type(event))) is not None:
            failure: Any = event
            yield _entry(
                before,
                recorded,
                failure.operation_id,
                _command_type(failure.operation_id, failed),
                outcome="failed",
                problem=failure.problem,
            )
        case _ if (kind := _SUCCEEDED.get(type(event))) is not None:
            success: Any = event
            data = _DATA[type(event)](before, event)
            yield _entry(before, recorded, success.operation_id, kind.command.TYPE, data=data)
        case _:
            pass


def _command_type(operation_id: str, kind: Kind) -> str:
    """The type of the command that an operation is of."""
    return ImportCMLWorker.TYPE if is_adoption(operation_id) else kind.command.TYPE


def _entry(
    before: Worker,
    recorded: Recorded,
    operation_id: str,
    command_type: str,
    *,
    outcome: Outcome = "succeeded",
    data: Any = None,
    problem: Problem | None = None,
) -> Entry:
    command_id = command_of(operation_id)
    result = OperationResult(
        command_id=as_sent(command_id), worker_id=before.id, outcome=outcome, data=data, problem=problem
    )
    operation, metadata = before.operation(operation_id), recorded.metadata
    return Entry(
        command_id,
        command_type,
        operation.requested if operation else metadata,
        operation,
        result,
        settled_at=metadata.time,
        settled_by=metadata.causation_id,
    )


def _launched(before: Worker, event: InstanceLaunched) -> Any:
    return before.shown(event.instance).model_dump(mode="json")


def _as_it_was_found(before: Worker) -> Any:
    assert before.instance is not None  # noqa: S101 - the import recorded it
    return before.shown(before.instance).model_dump(mode="json")


def _true(_before: Worker, _event: WorkerEvent) -> Any:
    return True


def _tags(_before: Worker, event: TagsUpdated) -> Any:
    return dict(event.tags)


_FAILED: Mapping[type[WorkerEvent], Kind] = {kind.failure: kind for kind in KINDS}
_SUCCEEDED: Mapping[type[WorkerEvent], Kind] = {kind.success: kind for kind in KINDS}
_DATA: Mapping[type[WorkerEvent], Callable[[Worker, Any], Any]] = {
    InstanceLaunched: _launched,
    **{kind.success: _true for kind in SWITCHES},
    TagsUpdated: _tags,
}
"""What a caller gets when its operation has succeeded; the termination, which settles several, stands above."""
