"""The rows of workers and operations as plain functions of the folded worker and its events."""

from collections.abc import Iterator
from datetime import UTC, datetime

from cml_contracts.instance import WorkerStatus
from cml_contracts.queries import OperationView, WorkerView
from cml_workers.domain.history import Recorded
from cml_workers.domain.ledger import Entry, entries
from cml_workers.domain.operations import as_sent, of_user
from cml_workers.domain.worker import Worker
from cml_workers.readmodels.changes import Change, Put, Remove

NEVER = "9999-12-31T23:59:59.999999+00:00"
"""When a worker ended that has not been terminated: later than any time."""


def worker_row(worker: Worker) -> WorkerView | None:
    """What is shown of a worker; None while it only has rejected commands to its name."""
    if worker.created_at is None or worker.updated_at is None:
        return None
    return WorkerView(
        id=worker.id,
        name=worker.name,
        status=worker.status,
        aws_region=worker.aws_region,
        instance_type=worker.instance.instance_type if worker.instance else worker.instance_type,
        owner=worker.owner,
        cml_version=worker.cml_version,
        tags=worker.tags,
        created_at=worker.created_at,
        updated_at=worker.updated_at,
        revision=worker.revision,
        generation=worker.generation or None,
        problem=worker.launch_problem.detail if worker.launch_problem else None,
        reason=worker.instance.reason if worker.instance else None,
        instance=worker.dto,
        profile=worker.profile,
        waits_for=worker.delay,
    )


def operation_view(entry: Entry, worker: Worker) -> OperationView:
    """What is shown of a command."""
    return OperationView(
        command_id=as_sent(entry.command_id),
        worker_id=worker.id,
        command_type=entry.command_type,
        requested_at=entry.requested.time,
        overdue_at=entry.overdue_at,
        waits_for=entry.waits_for,
        settled_at=entry.settled_at,
        result=entry.result,
    )


def of_worker(worker: Worker) -> Iterator[Change]:
    """The worker's row and its tags."""
    row = worker_row(worker)
    if row is None:
        return
    yield Put(
        "workers",
        {
            "id": row.id,
            "name": row.name,
            "status": row.status.value,
            "aws_region": row.aws_region,
            "owner": row.owner,
            "created_at": sortable(row.created_at),
            "view": row.model_dump_json(),
            "ended_at": sortable(row.updated_at) if row.status is WorkerStatus.TERMINATED else NEVER,
        },
    )
    of_all = {"worker_id": row.id, "name": row.name, "owner": row.owner}
    for key, value in row.tags.items():
        yield Put("worker_tags", {**of_all, "key": key, "value": value})


def of_event(before: Worker, recorded: Recorded, after: Worker) -> Iterator[Change]:
    """The rows of the operations that the event changed, and the tags that are gone with it."""
    for key in before.tags.keys() - after.tags.keys():
        yield Remove("worker_tags", {"worker_id": after.id, "key": key})
    for entry in entries(before, recorded, after):
        view = operation_view(entry, after)
        yield Put(
            "operations",
            {
                "command_id": of_user(view.command_id, entry.requested.user),
                "worker_id": view.worker_id,
                "pending_since": None if view.result else sortable(view.requested_at),
                "view": view.model_dump_json(),
                "sent_id": view.command_id,
                "operation_id": entry.command_id,
            },
        )


def sortable(time: datetime) -> str:
    """The time as text whose order is that of times."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")
