"""Queries of the read model, sent to ``cml.queries``; their results come as ``OperationResult.data``."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import Field

from cml_contracts.instance import CMLWorkerInstanceDto, WorkerStatus
from cml_contracts.model import Strict, Tolerant
from cml_contracts.results import Delay, OperationResult
from cml_contracts.texts import CommandId, Region, Text
from cml_contracts.times import Moment


class GetCMLWorker(Strict):
    """One worker. Answer: ``WorkerView``, or the problem ``WorkerNotFound``."""

    TYPE: ClassVar = "cml.worker.get.v1"
    worker_id: UUID


class ListCMLWorkers(Strict):
    """Workers that meet every given condition. Answer: ``WorkerPage``.

    ``tag``: ``key`` or ``key=value``; ``name_part``: anywhere in the name, whatever its case; ``terminated_since``: of the
    terminated only those that were terminated then or later;
    ``cursor``: the ``next_cursor`` of the page before, with the same conditions and sorting.
    """

    TYPE: ClassVar = "cml.worker.list.v1"
    aws_region: Region | None = None
    status: Annotated[WorkerStatus, Field(strict=False)] | None = None
    owner: Text | None = None
    tag: Annotated[str, Field(min_length=1, max_length=400)] | None = None
    name_part: Text | None = None
    terminated_since: Moment | None = None
    sort: Literal["created_at", "name", "status", "aws_region"] = "created_at"
    descending: bool = False
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    cursor: Annotated[str, Field(max_length=1024)] | None = None


class GetOperation(Strict):
    """The operation of a command: of the asker's own one, else of another user's under this id.

    Answer: ``OperationView``, or the problem ``OperationNotFound``.
    """

    TYPE: ClassVar = "cml.operation.get.v1"
    command_id: CommandId


Query = GetCMLWorker | ListCMLWorkers | GetOperation

QUERIES: Mapping[str, type[Query]] = {
    query.TYPE: query for query in (GetCMLWorker, ListCMLWorkers, GetOperation)
}


class WorkerView(Tolerant):
    """A row of the read model. ``revision``: of the last event it contains; ``profile``: None if it was imported, or is older.

    ``name``: the Name tag of the instance, or what it was given.
    ``generation``: the number of its launch, more than 1 if it was created again or moved on to another place; None if it was imported.
    ``problem``: why the launch failed; ``reason``: why the instance is in its state, in EC2's words.
    ``waits_for``: of its oldest operation that EC2 has not carried out yet.
    """

    id: UUID
    name: str
    status: WorkerStatus
    aws_region: str
    instance_type: str
    owner: str
    cml_version: str | None = None
    tags: Mapping[str, str] = {}
    created_at: datetime
    updated_at: datetime
    revision: int
    generation: int | None = None
    problem: str | None = None
    reason: str | None = None
    instance: CMLWorkerInstanceDto | None = None
    profile: str | None = None
    waits_for: Delay | None = None


class WorkerPage(Tolerant):
    """``next_cursor`` is None on the last page."""

    workers: tuple[WorkerView, ...]
    next_cursor: str | None = None


class OperationView(Tolerant):
    """An operation; ``result`` is None while it is pending, ``overdue_at`` when a deadline passed meanwhile.

    ``waits_for``: why EC2 has not carried it out yet, if an attempt was unsuccessful.
    """

    command_id: str
    worker_id: UUID
    command_type: str
    requested_at: datetime
    overdue_at: datetime | None = None
    waits_for: Delay | None = None
    settled_at: datetime | None = None
    result: OperationResult | None = None
