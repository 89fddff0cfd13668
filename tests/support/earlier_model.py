"""The read model of workers as its fourth version has it, written by the code of now."""

from collections.abc import Iterator
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from cml_workers.domain.history import Recorded
from cml_workers.domain.worker import Worker
from cml_workers.readmodels.changes import Change, Put
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.fold import of_event, of_worker
from cml_workers.sql.database import _upgrade

REVISION = "0008"
"""Of the schema that goes with it."""
_TABLES = sa.MetaData()
WORKERS = sa.Table(
    "workers",
    _TABLES,
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
    _TABLES,
    sa.Column("worker_id", sa.Uuid, primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("value", sa.String(256), nullable=False),
    sa.Index("worker_tags_by_key", "key", "value"),
)
OPERATIONS = sa.Table(
    "operations",
    _TABLES,
    sa.Column("command_id", sa.String(256), primary_key=True),
    sa.Column("worker_id", sa.Uuid, nullable=False, index=True),
    sa.Column("pending_since", sa.String(32), nullable=True, index=True),
    sa.Column("view", sa.Text, nullable=False),
)


def _of_worker(worker: Worker) -> Iterator[Change]:
    columns = {table.name: table.columns for table in (WORKERS, WORKER_TAGS)}
    for change in of_worker(worker):
        row = {name: value for name, value in change.row.items() if name in columns[change.table]}
        yield Put(change.table, row)


def _of_event(before: Worker, recorded: Recorded, after: Worker) -> Iterator[Change]:
    for change in of_event(before, recorded, after):
        row = dict(change.row)
        if change.table == "operations":
            row["command_id"] = row.pop("sent_id")
            del row["operation_id"]
        yield replace(change, row=row)


EARLIER = replace(
    WORKERS_VIEW,
    version=4,
    tables=(WORKERS, WORKER_TAGS, OPERATIONS),
    of_worker=_of_worker,
    of_event=_of_event,
    usable=frozenset({1, 2, 3}),
)


async def make_earlier_schema(engine: AsyncEngine) -> None:
    """In an empty database."""
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade, REVISION)
