"""The read model in SQL: the rows of workers and operations, and the queries on them."""

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from cml_contracts.instance import WorkerStatus
from cml_contracts.queries import ListCMLWorkers, OperationView, WorkerPage, WorkerView
from cml_workers.sql.database import (
    METADATA,
    load_checkpoint,
    save_checkpoint,
    transaction,
    upsert,
)

FOLLOWER = "read-model"

WORKERS = sa.Table(
    "workers",
    METADATA,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("aws_region", sa.String(32), nullable=False, index=True),
    sa.Column("owner", sa.String(128), nullable=False, index=True),
    sa.Column("created_at", sa.String(32), nullable=False, index=True),
    sa.Column("view", sa.Text, nullable=False),
)
WORKER_TAGS = sa.Table(
    "worker_tags",
    METADATA,
    sa.Column("worker_id", sa.Uuid, primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("value", sa.String(256), nullable=False),
    sa.Index("worker_tags_by_key", "key", "value"),
)
OPERATIONS = sa.Table(
    "operations",
    METADATA,
    sa.Column("command_id", sa.String(256), primary_key=True),
    sa.Column("worker_id", sa.Uuid, nullable=False, index=True),
    sa.Column("pending_since", sa.String(32), nullable=True, index=True),
    sa.Column("view", sa.Text, nullable=False),
)


class InvalidCursorError(ValueError):
    """The cursor is not one that was handed out for this sorting."""


class ReadModel:
    """Rows and checkpoint change in one transaction, so a crash leaves them in step."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def checkpoint(self) -> str | None:
        """The position up to which the rows are."""
        async with transaction(self._engine) as connection:
            return await load_checkpoint(connection, FOLLOWER)

    async def write(
        self, workers: Iterable[WorkerView], operations: Iterable[OperationView], position: str
    ) -> None:
        """Write rows and their checkpoint together."""
        async with transaction(self._engine) as connection:
            rows = [_worker_columns(worker) for worker in workers]
            if rows:
                await upsert(connection, WORKERS, rows)
            tags = [
                {"worker_id": row["id"], "key": key, "value": value}
                for row in rows
                for key, value in json.loads(row["view"])["tags"].items()
            ]
            if tags:  # tags are only ever added or overwritten
                await upsert(connection, WORKER_TAGS, tags)
            asked = [_operation_columns(operation) for operation in operations]
            if asked:
                await upsert(connection, OPERATIONS, asked)
            await save_checkpoint(connection, FOLLOWER, position)

    async def worker(self, worker_id: UUID) -> WorkerView | None:
        """The worker's row."""
        async with transaction(self._engine) as connection:
            view = await connection.scalar(sa.select(WORKERS.c.view).where(WORKERS.c.id == worker_id))
        return WorkerView.model_validate_json(view) if view else None

    async def operation(self, command_id: str) -> OperationView | None:
        """What became of a command."""
        query = sa.select(OPERATIONS.c.view).where(OPERATIONS.c.command_id == command_id)
        async with transaction(self._engine) as connection:
            view = await connection.scalar(query)
        return OperationView.model_validate_json(view) if view else None

    async def pending(self, before: datetime) -> Sequence[OperationView]:
        """The operations that were requested before then and have no outcome, oldest first."""
        query = (
            sa.select(OPERATIONS.c.view)
            .where(OPERATIONS.c.pending_since < _sortable(before))
            .order_by(OPERATIONS.c.pending_since)
        )
        async with transaction(self._engine) as connection:
            views = (await connection.scalars(query)).all()
        return [OperationView.model_validate_json(view) for view in views]

    async def unsettled(self) -> Sequence[UUID]:
        """The workers whose instance is on its way from one state to another."""
        query = sa.select(WORKERS.c.id).where(
            WORKERS.c.status.in_((WorkerStatus.STARTING.value, WorkerStatus.STOPPING.value))
        )
        async with transaction(self._engine) as connection:
            return (await connection.scalars(query)).all()

    async def workers(self, wanted: ListCMLWorkers) -> WorkerPage:
        """A page of the workers that meet the conditions. Raises InvalidCursorError."""
        order = WORKERS.c[wanted.sort]
        query = sa.select(WORKERS.c.view, order, WORKERS.c.id).where(*_conditions(wanted))
        if wanted.cursor:
            value, worker_id = _read_cursor(wanted)
            here = sa.tuple_(order, WORKERS.c.id)
            there = sa.tuple_(sa.literal(value), sa.literal(worker_id, sa.Uuid))
            query = query.where(here < there if wanted.descending else here > there)
        direction = sa.desc if wanted.descending else sa.asc
        query = query.order_by(direction(order), direction(WORKERS.c.id)).limit(wanted.limit + 1)
        async with transaction(self._engine) as connection:
            rows = (await connection.execute(query)).all()
        page = rows[: wanted.limit]
        return WorkerPage(
            workers=tuple(WorkerView.model_validate_json(row[0]) for row in page),
            next_cursor=_cursor(wanted, page[-1][1], page[-1][2]) if len(rows) > wanted.limit else None,
        )


def _worker_columns(worker: WorkerView) -> dict[str, Any]:
    return {
        "id": worker.id,
        "name": worker.name,
        "status": worker.status.value,
        "aws_region": worker.aws_region,
        "owner": worker.owner,
        "created_at": _sortable(worker.created_at),
        "view": worker.model_dump_json(),
    }


def _operation_columns(operation: OperationView) -> dict[str, Any]:
    return {
        "command_id": operation.command_id,
        "worker_id": operation.worker_id,
        "pending_since": None if operation.result else _sortable(operation.requested_at),
        "view": operation.model_dump_json(),
    }


def _sortable(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def _conditions(wanted: ListCMLWorkers) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.aws_region:
        conditions.append(WORKERS.c.aws_region == wanted.aws_region)
    if wanted.status:
        conditions.append(WORKERS.c.status == wanted.status.value)
    if wanted.owner:
        conditions.append(WORKERS.c.owner == wanted.owner)
    if wanted.name_part:
        conditions.append(WORKERS.c.name.icontains(wanted.name_part, autoescape=True))
    if wanted.tag:
        key, equals, value = wanted.tag.partition("=")
        tagged = sa.select(WORKER_TAGS.c.worker_id).where(WORKER_TAGS.c.key == key)
        if equals:
            tagged = tagged.where(WORKER_TAGS.c.value == value)
        conditions.append(WORKERS.c.id.in_(tagged))
    return conditions


def _cursor(wanted: ListCMLWorkers, value: str, worker_id: UUID) -> str:
    place = json.dumps([wanted.sort, wanted.descending, value, str(worker_id)])
    return base64.urlsafe_b64encode(place.encode()).decode()


def _storable(text: str) -> str:
    """The text, unless no database takes it: a lone surrogate, or NUL. Raises ValueError."""
    if b"\0" in text.encode():
        raise ValueError("NUL")
    return text


def _read_cursor(wanted: ListCMLWorkers) -> tuple[str, UUID]:
    try:
        sort, descending, value, worker_id = json.loads(base64.urlsafe_b64decode(wanted.cursor or ""))
        place = _storable(str(value)), UUID(worker_id)
    except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise InvalidCursorError(
            "cursor is not one that was handed out; leave it away to begin anew"
        ) from error
    if (sort, descending) != (wanted.sort, wanted.descending):
        raise InvalidCursorError("cursor belongs to another sorting; leave it away to begin anew")
    return place
