"""The read model's rows as plain functions of the folded worker."""

from collections.abc import Iterator

from cml_contracts.queries import OperationView, WorkerView
from cml_workers.domain.worker import Worker


def worker_row(worker: Worker) -> WorkerView | None:
    """What the read model shows of a worker; None while it only has refused commands to its name."""
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
        problem=worker.launch_problem.detail if worker.launch_problem else None,
        instance=worker.dto,
    )


def operation_rows(worker: Worker, before: Worker) -> Iterator[OperationView]:
    """The operations that the events between the two changed."""
    for operation in worker.operations.values():
        # The fold makes a new one of what changes.
        if before.operations.get(operation.command_id) is not operation:
            yield OperationView(
                command_id=operation.command_id,
                worker_id=worker.id,
                command_type=operation.command_type,
                requested_at=operation.requested.time,
                overdue_at=operation.overdue_at,
                settled_at=operation.settled_at,
                result=operation.result,
            )
