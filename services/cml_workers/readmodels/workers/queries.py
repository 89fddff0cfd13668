"""The queries on workers and operations. What they answer is the stored JSON itself."""

import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.base import ReadOnlyColumnCollection
from sqlalchemy.sql.functions import FunctionElement

from cml_contracts.envelope import MAX_PAGE
from cml_contracts.instance import WorkerStatus
from cml_contracts.queries import GetCMLWorker, GetOperation, ListCMLWorkers, OperationView, WorkerView
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.operations import of_user
from cml_workers.domain.ownership import Viewer
from cml_workers.readmodels.model import Found, active
from cml_workers.readmodels.workers import fold
from cml_workers.readmodels.workers.tables import (
    OPERATIONS,
    WORKER_TAGS,
    WORKERS,
    lower_of,
    pairs_of,
    parts_of,
)
from cml_workers.sql.port import ByKey, Database, Row

NEXT_ONES = 500
"""Workers that are looked at, one after the other, for a name or a tag."""
Columns = ReadOnlyColumnCollection[str, Any]
_WORKERS, _TAGS, _OPERATIONS = active(WORKERS), active(WORKER_TAGS), active(OPERATIONS)
_WORKER = ByKey(_WORKERS.c.id, _WORKERS.c.view)
_OPERATION = ByKey(_OPERATIONS.c.command_id, _OPERATIONS.c.view, _OPERATIONS.c.worker_id)
_OF_ANYBODY = (
    sa.select(_OPERATIONS.c.view, _OPERATIONS.c.worker_id)
    .where(
        sa.or_(
            _OPERATIONS.c.sent_id == sa.bindparam("sent"), _OPERATIONS.c.command_id == sa.bindparam("sent")
        )
    )
    .order_by(_OPERATIONS.c.operation_id != sa.bindparam("sent"), _OPERATIONS.c.command_id)
)
_PENDING = (
    sa.select(_OPERATIONS.c.view, _OPERATIONS.c.operation_id)
    .where(_OPERATIONS.c.pending_since < sa.bindparam("before"))
    .order_by(_OPERATIONS.c.pending_since)
)
_UNSETTLED = sa.select(_WORKERS.c.id).where(
    _WORKERS.c.status.in_((WorkerStatus.STARTING.value, WorkerStatus.STOPPING.value))
)


class InvalidCursorError(ValueError):
    """The cursor is not one that was handed out for this sorting."""


class _UpdatedAt(FunctionElement[str]):
    """When the row last changed: of a terminated worker, when that was. Read from the view: tables of version 4 say it nowhere else."""

    type = sa.String()
    inherit_cache = True


@compiles(_UpdatedAt, "sqlite")
def _in_sqlite(element: _UpdatedAt, compiler: Any, **how: Any) -> str:
    return f"json_extract({compiler.process(element.clauses, **how)}, '$.updated_at')"


@compiles(_UpdatedAt, "postgresql")
def _in_postgresql(element: _UpdatedAt, compiler: Any, **how: Any) -> str:
    return f"(CAST({compiler.process(element.clauses, **how)} AS json) ->> 'updated_at')"


class _Contains(FunctionElement[bool]):
    """Whether a text has another one in it, whatever its case: in PostgreSQL found by an index."""

    type = sa.Boolean()
    inherit_cache = True


@compiles(_Contains, "sqlite")
def _looked_for(element: _Contains, compiler: Any, **how: Any) -> str:
    text, part = (compiler.process(each, **how) for each in element.clauses)
    return f"instr(lower({text}), lower({part})) > 0"


@compiles(_Contains, "postgresql")
def _by_pairs(element: _Contains, compiler: Any, **how: Any) -> str:
    text, part = (compiler.process(each, **how) for each in element.clauses)
    # Names are mostly in lower case already, and to make them so takes longer than all the rest.
    contains = f"strpos({text}, lower({part})) > 0 OR strpos({lower_of(text)}, lower({part})) > 0"
    return f"({parts_of(text)} @> {pairs_of(part)} AND ({contains}))"


async def get_worker(
    database: Database, query: GetCMLWorker, viewer: Viewer | None = None, _user: str | None = None
) -> Found | Problem:
    """The worker's row. One that is not open to the viewer is not known to it."""
    row = await database.find(_WORKER, query.worker_id)
    if row is None or not _is_open(row.view, viewer):
        missing = f"worker {query.worker_id} is not known, or not yet"
        return Problem.of(ProblemCode.WORKER_NOT_FOUND, missing, retryable=True)
    return Found(row.view, query.worker_id)


async def get_operation(
    database: Database, query: GetOperation, viewer: Viewer | None = None, user: str | None = None
) -> Found | Problem:
    """What became of the user's command, or else of anybody's under this id; unknown to the viewer like its worker."""
    own = await database.find(_OPERATION, of_user(query.command_id, user))
    if own is not None and await _shows(database, own, viewer):
        return Found(own.view, own.worker_id)
    for row in await database.read(partial(_of_anybody, query.command_id)):
        if await _shows(database, row, viewer):
            return Found(row.view, row.worker_id)
    missing = f"no operation of command {query.command_id!r} is recorded, or not yet"
    return Problem.of(ProblemCode.OPERATION_NOT_FOUND, missing, retryable=True)


def _of_anybody(command_id: str, connection: sa.Connection) -> Sequence[Row]:
    return connection.execute(_OF_ANYBODY, {"sent": command_id}).all()


async def _shows(database: Database, operation: Row, viewer: Viewer | None) -> bool:
    """Whether the operation is open to the viewer, as its worker is."""
    if viewer is None:
        return True
    of = await database.find(_WORKER, operation.worker_id)
    return _is_open(of.view if of else None, viewer)


def _is_open(view: str | None, viewer: Viewer | None) -> bool:
    if viewer is None:
        return True
    shown = json.loads(view) if view else None
    return shown is not None and viewer.may(shown["owner"], shown["tags"])


async def list_workers(
    database: Database, query: ListCMLWorkers, viewer: Viewer | None = None, _user: str | None = None
) -> Found | Problem:
    """A page of the workers that meet the conditions, and are open to the viewer: as many as are asked for, or fit into a reply."""
    try:
        statements = _page(query, viewer)
    except InvalidCursorError as error:
        return Problem.of(ProblemCode.VALIDATION_FAILED, str(error))
    rows: Sequence[Row] = ()
    found = 0
    for statement in statements:
        rows = await database.read(partial(_all, statement))
        found = rows[0].found if rows else 0
        if found > query.limit:
            break
    page = _that_fit(rows[: query.limit])
    cursor = _cursor(query, page[-1][1], page[-1][2]) if found > len(page) else None
    return Found(f'{{"workers":[{",".join(row[0] for row in page)}],"next_cursor":{json.dumps(cursor)}}}')


async def worker(database: Database, worker_id: UUID) -> WorkerView | None:
    """The worker's row."""
    found = await get_worker(database, GetCMLWorker(worker_id=worker_id))
    return WorkerView.model_validate_json(found.data) if isinstance(found, Found) else None


async def operation(database: Database, command_id: str) -> OperationView | None:
    """What became of a command."""
    found = await get_operation(database, GetOperation(command_id=command_id))
    return OperationView.model_validate_json(found.data) if isinstance(found, Found) else None


@dataclass(frozen=True, slots=True)
class Pending:
    """What is shown of an operation without an outcome, and its id in its worker's stream."""

    view: OperationView
    operation_id: str


async def pending(database: Database, before: datetime) -> Sequence[Pending]:
    """The operations that were requested before then and have no outcome, oldest first."""
    rows = await database.read(partial(_pending, fold.sortable(before)))
    views = [OperationView.model_validate_json(row.view) for row in rows]
    return [Pending(view, row.operation_id or view.command_id) for view, row in zip(views, rows, strict=True)]


def _pending(before: str, connection: sa.Connection) -> Sequence[Row]:
    return connection.execute(_PENDING, {"before": before}).all()


async def unsettled(database: Database) -> Sequence[UUID]:
    """The workers whose instance is on its way from one state to another."""
    return await database.read(lambda connection: connection.scalars(_UNSETTLED).all())


def _all(statement: sa.Select[Any], connection: sa.Connection) -> Sequence[Row]:
    return connection.execute(statement).all()


def _that_fit(rows: Sequence[Row]) -> Sequence[Row]:
    """The first ones, of ``MAX_PAGE`` bytes together; always one."""
    total = 0
    for number, row in enumerate(rows):
        total += len(row[0].encode()) + 1
        if total > MAX_PAGE and number:
            return rows[:number]
    return rows


def _sized(wanted: ListCMLWorkers, statement: sa.Select[Any]) -> sa.Select[Any]:
    """The same rows, as far as a page can have them, each with the number ``found`` of all: so that no more come into memory."""
    rows = statement.subquery()
    order = _order(wanted, rows.c)
    before = sa.func.sum(sa.func.length(rows.c.view)).over(order_by=order, rows=(None, -1)).label("before")
    sized = sa.select(*rows.c, sa.func.count().over().label("found"), before).subquery()
    columns = (sized.c[each] for each in ("view", wanted.sort, "id", "found"))
    fits = sa.func.coalesce(sized.c.before, 0) <= MAX_PAGE
    return sa.select(*columns).where(fits).order_by(*_order(wanted, sized.c))


def _page(wanted: ListCMLWorkers, viewer: Viewer | None = None) -> Sequence[sa.Select[Any]]:
    """Statements of which the first that finds a whole page will do; what the last one finds is all there is.

    Of names and tags nobody knows where in the order they are. So the next workers are looked at first, which is enough for what is
    common; then all that have the name or tag are found, however many workers come before them.
    """
    return [_sized(wanted, statement) for statement in _statements(wanted, viewer)]


def _statements(wanted: ListCMLWorkers, viewer: Viewer | None) -> Iterator[sa.Select[Any]]:
    sort = _WORKERS.c[wanted.sort]
    owners = [wanted.owner] if wanted.owner else []
    if viewer and not viewer.teams:
        owners.append(viewer.actor)
    teams = viewer if viewer and viewer.teams else None
    others = _conditions(wanted)
    conditions = [*others, *(_WORKERS.c.owner == owner for owner in owners)]
    onwards = [*conditions, *_from_cursor(wanted, sort, _WORKERS.c.id)]
    if not (wanted.name_part or wanted.tag or teams):
        yield _ordered(wanted, sa.select(_WORKERS.c.view, sort, _WORKERS.c.id).where(*onwards))
        return
    tagged = (
        [*_tagged(wanted.tag), *(_TAGS.c.owner.in_((owner, "")) for owner in owners)] if wanted.tag else []
    )
    columns = dict.fromkeys(_WORKERS.c[each] for each in ("view", "name", "owner", wanted.sort, "id"))
    next_ones = _ordered(wanted, sa.select(*columns).where(*onwards), more=NEXT_ONES).subquery()
    near = sa.select(next_ones.c.view, next_ones.c[wanted.sort], next_ones.c.id).where(
        *_looked_up(wanted, tagged, next_ones.c), *([_is_open_to(teams, next_ones.c)] if teams else [])
    )
    yield _ordered(wanted, near, next_ones.c)
    by_names = wanted.sort == "name" and not (others or wanted.name_part)
    every = sa.select(sort, _WORKERS.c.id).where(*onwards, *_looked_up(wanted, tagged, _WORKERS.c))
    if teams:
        page = _own_and_shared(wanted, every, teams, owners, by_names=by_names and not wanted.tag)
    elif by_names:
        page = _first_ones(wanted, _by_names(wanted, _tagged(wanted.tag or ""), owners))
    else:
        page = _first_ones(wanted, every)
    found = page.subquery()
    views = sa.select(_WORKERS.c.view, found.c[wanted.sort], found.c.id).join_from(
        found, _WORKERS, _WORKERS.c.id == found.c.id
    )
    yield _ordered(wanted, views, found.c)


def _own_and_shared(
    wanted: ListCMLWorkers,
    every: sa.Select[Any],
    viewer: Viewer,
    owners: Sequence[str],
    *,
    by_names: bool,
) -> sa.Select[Any]:
    """The first ones of the viewer's and of its teams' together: each are found by an index, those of either by none."""
    own = every.where(_WORKERS.c.owner == viewer.actor)
    tags = _of_teams(viewer)
    shared = every.where(_WORKERS.c.id.in_(sa.select(_TAGS.c.worker_id).where(*tags)))
    pages = (
        _first_ones(wanted, own) if wanted.name_part or wanted.tag else _ordered(wanted, own),
        _first_ones(wanted, _by_names(wanted, tags, owners) if by_names else shared),
    )
    both = sa.union(*(sa.select(page.subquery()) for page in pages)).subquery()
    return _ordered(wanted, sa.select(both), both.c)


def _first_ones(wanted: ListCMLWorkers, every: sa.SelectBase) -> sa.Select[Any]:
    """Of all of them, by a plan for all of them: one for the first ones would walk through an index in their order."""
    rows = every.subquery()
    direction = sa.desc if wanted.descending else sa.asc
    order = (direction(rows.c[wanted.sort].concat("")), direction(rows.c.id))
    return sa.select(rows).order_by(*order).limit(wanted.limit + 1)


def _ordered(
    wanted: ListCMLWorkers, query: sa.Select[Any], columns: Columns = _WORKERS.c, *, more: int = 0
) -> sa.Select[Any]:
    """One row more than are wanted shows that there are more."""
    return query.order_by(*_order(wanted, columns)).limit(wanted.limit + 1 + more)


def _order(wanted: ListCMLWorkers, columns: Columns) -> Sequence[sa.ColumnElement[Any]]:
    direction = sa.desc if wanted.descending else sa.asc
    return (direction(columns[wanted.sort]), direction(columns.id))


def _conditions(wanted: ListCMLWorkers) -> list[sa.ColumnElement[bool]]:
    """Those that an index in the order of the list has, but for the owner."""
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.aws_region:
        conditions.append(_WORKERS.c.aws_region == wanted.aws_region)
    if wanted.status:
        conditions.append(_WORKERS.c.status == wanted.status.value)
    if wanted.terminated_since:
        ended = _WORKERS.c.status == WorkerStatus.TERMINATED.value
        since = fold.sortable(wanted.terminated_since)
        conditions.append(_WORKERS.c.ended_at >= since)
        conditions.append(sa.or_(~ended, _UpdatedAt(_WORKERS.c.view) >= since))
    return conditions


def _from_cursor(
    wanted: ListCMLWorkers, value: sa.ColumnElement[str], worker_id: sa.ColumnElement[UUID]
) -> Iterator[sa.ColumnElement[bool]]:
    """That a row comes behind the cursor."""
    if not wanted.cursor:
        return
    last_value, last_id = _read_cursor(wanted)
    here = sa.tuple_(value, worker_id)
    there = sa.tuple_(sa.literal(last_value), sa.literal(last_id, sa.Uuid))
    # Not "behind": of many with the same value PostgreSQL would expect none.
    yield here <= there if wanted.descending else here >= there
    yield worker_id != last_id


def _by_names(
    wanted: ListCMLWorkers, tagged: Sequence[sa.ColumnElement[bool]], owners: Sequence[str]
) -> sa.CompoundSelect[Any]:
    """Names and ids of the workers with a tag, from the rows of the tags: to look for the name of each takes much longer."""
    named = sa.select(_TAGS.c.name, _TAGS.c.worker_id.label("id")).where(
        *tagged,
        _TAGS.c.owner != "",
        *(_TAGS.c.owner == owner for owner in owners),
        *_from_cursor(wanted, _TAGS.c.name, _TAGS.c.worker_id),
    )
    of_earlier_versions = sa.select(_TAGS.c.worker_id).where(*tagged, _TAGS.c.owner == "")
    others = sa.select(_WORKERS.c.name, _WORKERS.c.id).where(
        _WORKERS.c.id.in_(of_earlier_versions),
        *(_WORKERS.c.owner == owner for owner in owners),
        *_from_cursor(wanted, _WORKERS.c.name, _WORKERS.c.id),
    )
    return named.union_all(others)


def _tagged(tag: str) -> Sequence[sa.ColumnElement[bool]]:
    """That a row of the tags is this one: a key, or a key and its value."""
    key, equals, value = tag.partition("=")
    return (_TAGS.c.key == key, *((_TAGS.c.value == value,) if equals else ()))


def _of_teams(viewer: Viewer) -> Sequence[sa.ColumnElement[bool]]:
    """That a row of the tags is one of the viewer's teams."""
    return (_TAGS.c.key == viewer.team_tag, _TAGS.c.value.in_(sorted(viewer.teams)))


def _is_open_to(viewer: Viewer, columns: Columns) -> sa.ColumnElement[bool]:
    shared = sa.select(_TAGS.c.worker_id).where(*_of_teams(viewer), _TAGS.c.worker_id == columns.id)
    return sa.or_(columns.owner == viewer.actor, shared.exists())


def _looked_up(
    wanted: ListCMLWorkers, tagged: Sequence[sa.ColumnElement[bool]], columns: Columns
) -> Iterator[sa.ColumnElement[bool]]:
    """Those that have indexes of their own."""
    if wanted.name_part:
        yield _Contains(columns.name, sa.literal(wanted.name_part))
    if tagged:
        yield columns.id.in_(sa.select(_TAGS.c.worker_id).where(*tagged))


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
        raise InvalidCursorError("the cursor is not one that was returned; omit it to begin again") from error
    if (sort, descending) != (wanted.sort, wanted.descending):
        raise InvalidCursorError("the cursor belongs to another sorting; omit it to begin again")
    return place
