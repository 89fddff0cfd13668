"""What a read model is: tables, how events become their rows, and the queries that it answers."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from cml_contracts.results import Problem
from cml_workers.domain.history import Recorded
from cml_workers.domain.ownership import Viewer
from cml_workers.domain.worker import Worker
from cml_workers.readmodels.changes import Change
from cml_workers.sql.port import Database


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a query; ``data``: JSON."""

    data: str
    worker_id: UUID | None = None


Answer = Callable[[Database, Any, Viewer | None, str | None], Awaitable[Found | Problem]]
"""A query, answered with what is open to a viewer; None: with everything. Last the broker's user that asks; None: nobody vouches for one."""


@dataclass(frozen=True, slots=True)
class ReadModel:
    """A view of the workers' streams that can be made again from them at any time.

    ``version`` goes up whenever the tables or the rows change: the tables are then filled again beside the active generation's.
    ``usable`` are the earlier versions whose tables this code can write and read, which go on answering meanwhile.
    ``of_worker``: the rows of a worker as it is after its last event at hand; ``of_event``: what an event changes besides,
    between the worker before and after it. Both are pure, and make the same rows in whatever batches the events come.
    """

    name: str
    version: int
    tables: tuple[sa.Table, ...]
    of_worker: Callable[[Worker], Iterable[Change]]
    of_event: Callable[[Worker, Recorded, Worker], Iterable[Change]]
    answers: Mapping[type[Any], Answer]
    usable: frozenset[int] = field(default_factory=frozenset)


@lru_cache
def generation_table(table: sa.Table, number: int) -> sa.Table:
    """The table as a generation has it; the first one has no number in its name, as it was there before."""
    if number == 1:
        return table
    copied = table.to_metadata(sa.MetaData(), name=f"{table.name}_{number}")
    for index in copied.indexes:
        if not index.name or str(index.name).startswith("ix_"):  # named after its table already
            continue
        index.name = sa.sql.quoted_name(f"{index.name}_{number}", quote=None)
    return copied


@lru_cache
def active(table: sa.Table) -> sa.Table:
    """The view through which queries see the active generation of the table."""
    return sa.Table(
        f"active_{table.name}", sa.MetaData(), *(sa.Column(each.name, each.type) for each in table.columns)
    )
