"""The archive of dead letters, in SQL: each once, with its history.

It is bounded. Whatever waits for an operator waits for good, but for the oldest messages of a sender of whom too many wait: they are
discarded, and their history says so. What was dealt with goes after a while.
"""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cml_contracts.deadletters import (
    DeadLetterCount,
    DeadLetterDetails,
    DeadLetterOutcome,
    DeadLetterPage,
    DeadLetterState,
    DeadLetterView,
    ListDeadLetters,
)
from cml_contracts.envelope import MAX_BODY, MAX_PAGE
from cml_contracts.model import Tolerant
from cml_workers.deadletters.letter import FROM_SENDERS, Letter
from cml_workers.sql.database import transaction
from cml_workers.sql.schema import METADATA, insert

DEAD_LETTERS = sa.Table(
    "dead_letters",
    METADATA,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("death", sa.Text, nullable=False),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("cause", sa.String(64), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("message_id", sa.Text),
    sa.Column("user", sa.Text),
    sa.Column("properties", sa.Text, nullable=False),
    sa.Column("deaths", sa.Integer, nullable=False),
    sa.Column("redrives", sa.Integer, nullable=False),
    sa.Column("deliveries", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("faults", sa.Integer, nullable=False),
    sa.Column("first_died_at", sa.String(32), nullable=False),
    sa.Column("last_died_at", sa.String(32), nullable=False, index=True),
    sa.Column("whole_size", sa.Integer),
    sa.Column("whole_sha256", sa.String(64)),
)
OUTCOMES = sa.Table(
    "dead_letter_outcomes",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("dead_letter_id", sa.Uuid, nullable=False, index=True),
    sa.Column("time", sa.String(32), nullable=False),
    sa.Column("what", sa.String(16), nullable=False),
    sa.Column("user", sa.Text),
    sa.Column("by", sa.String(128)),
    sa.Column("reason", sa.Text),
    sa.Column("message_id", sa.Text),
    sa.Column("replaced_type", sa.Text),
    sa.Column("replaced_body", sa.LargeBinary),
)
_CONTENT = ("queue", "cause", "reason", "type", "body", "message_id", "user", "whole_size", "whole_sha256")
_COUNTERS = ("deliveries", "attempts", "faults")
_PROPERTIES = ("correlation_id", "reply_to", "content_type", "headers")
_SIZE: sa.Label[int] = sa.func.coalesce(sa.column("whole_size"), sa.func.length(sa.column("body"))).label(
    "size"
)
_OF_A_DEATH = ("state", "death", *_CONTENT, "properties", *_COUNTERS, "last_died_at")
DEATHS_KEPT = 100
"""Of one dead letter in its history, which are the last ones: a sender can send the same message without end."""
AT_ONCE = 1000
"""Rows that one transaction deletes or discards."""


@dataclass(frozen=True, slots=True)
class OperatorAction:
    """What an operator did. ``user``: whom the broker vouched for; ``by``: who they said they were."""

    what: Literal["redriven", "edited", "discarded"]
    time: datetime
    user: str | None
    by: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What is kept. ``dealt_with_for``: how long after it was dealt with; ``dealt_with``: how many of these at most.

    ``waiting``: how many from outside may wait of one sender.
    """

    dealt_with_for: timedelta
    dealt_with: int
    waiting: int


@dataclass(frozen=True, slots=True)
class ArchivedLetter:
    """An archived dead letter."""

    letter: Letter
    view: DeadLetterView

    @property
    def next_redrive(self) -> int:
        return self.view.redrives + 1


class Archive:
    """Every method raises DatabaseUnavailableError: try again. ``engine``: one that is ``durable``."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writing = asyncio.Lock()

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is on disk at the end; one at a time, as SQLite does not serve those that wait in their order."""
        async with self._writing, transaction(self._engine) as connection:
            yield connection

    async def keep(self, letter: Letter, now: datetime) -> bool:
        """Archive it, on disk when this returns; False: this very death was archived before."""
        row = {
            "id": letter.id,
            "state": DeadLetterState.WAITING.value,
            "death": letter.death,
            **_columns(letter),
            "deaths": 1,
            "redrives": 0,
            "first_died_at": _sortable(now),
            "last_died_at": _sortable(now),
        }
        async with self._write() as connection:
            statement = insert(connection.dialect.name, DEAD_LETTERS).values(row)
            counted = statement.on_conflict_do_update(
                index_elements=["id"],
                set_={
                    **{name: statement.excluded[name] for name in _OF_A_DEATH},
                    "deaths": DEAD_LETTERS.c.deaths + 1,
                },
                where=DEAD_LETTERS.c.death != letter.death,
            )
            fresh = (await connection.execute(counted.returning(DEAD_LETTERS.c.id))).first() is not None
            if fresh:
                died = {"time": _sortable(now), "what": "died", "reason": row["reason"], "user": row["user"]}
                await _record(connection, letter.id, {**died, "message_id": row["message_id"]})
                await connection.execute(_forgotten_deaths(letter.id))
        return fresh

    async def find(self, dead_letter_id: UUID) -> ArchivedLetter | None:
        """The dead letter as it is now."""
        async with transaction(self._engine) as connection:
            row = await _row(connection, dead_letter_id)
        return ArchivedLetter(_letter(row), _view(row)) if row else None

    async def details(self, dead_letter_id: UUID) -> DeadLetterDetails | None:
        """The dead letter with its history."""
        history = (
            sa.select(OUTCOMES)
            .where(OUTCOMES.c.dead_letter_id == dead_letter_id)
            .order_by(OUTCOMES.c.number.desc())
            .limit(2 * DEATHS_KEPT)
        )
        async with transaction(self._engine) as connection:
            row = await _row(connection, dead_letter_id)
            outcomes = (await connection.execute(history)).mappings().all()
        if row is None:
            return None
        body, encoding = _shown(row["body"])
        details = DeadLetterDetails(
            **_view(row).model_dump(),
            body=body,
            sha256=row["whole_sha256"] or hashlib.sha256(row["body"]).hexdigest(),
            encoding=encoding,
            **json.loads(row["properties"]),
            history=(),
        )
        last = _that_fit([_outcome(each) for each in outcomes], MAX_PAGE - len(details.model_dump_json()))
        return details.model_copy(update={"history": tuple(reversed(last))})

    async def redriven(self, before: ArchivedLetter, after: Letter, action: OperatorAction) -> None:
        """Record that it was redriven as ``after``, unless it has died again meanwhile, which is later."""
        old = before.letter
        changes = {"state": action.what, "redrives": before.next_redrive, **_columns(after)}
        replaced = {"replaced_type": old.type, "replaced_body": old.body} if action.what == "edited" else {}
        async with self._write() as connection:
            await connection.execute(
                sa.update(DEAD_LETTERS)
                .where(DEAD_LETTERS.c.id == old.id, DEAD_LETTERS.c.death == old.death)
                .values(changes)
            )
            await connection.execute(
                sa.update(DEAD_LETTERS)
                .where(DEAD_LETTERS.c.id == old.id, DEAD_LETTERS.c.death != old.death)
                .values(redrives=before.next_redrive)
            )
            await _record(connection, old.id, _done(action, after.message_id) | replaced)

    async def discarded(self, before: ArchivedLetter, action: OperatorAction) -> None:
        """Record that nothing is done about this death."""
        old = before.letter
        async with self._write() as connection:
            await connection.execute(
                sa.update(DEAD_LETTERS)
                .where(DEAD_LETTERS.c.id == old.id, DEAD_LETTERS.c.death == old.death)
                .values(state=action.what)
            )
            await _record(connection, old.id, _done(action, old.message_id))

    async def page(self, wanted: ListDeadLetters) -> DeadLetterPage:
        """A page of those that meet the conditions, and how many there are. Raises ValueError for a bad cursor."""
        conditions = _conditions(wanted)
        table = DEAD_LETTERS.c
        columns = [column for column in table if column.name not in ("body", "properties")]
        query = sa.select(*columns, _SIZE).where(*conditions)
        if wanted.cursor:
            time, _, last = wanted.cursor.partition("/")
            here = sa.tuple_(table.last_died_at, table.id)
            query = query.where(here < sa.tuple_(sa.literal(time), sa.literal(UUID(last), sa.Uuid)))
        query = query.order_by(table.last_died_at.desc(), table.id.desc()).limit(wanted.limit + 1)
        counting = (
            sa.select(table.cause, table.queue, sa.func.count().label("count"))
            .where(*conditions)
            .group_by(table.cause, table.queue)
            .order_by(sa.desc("count"), table.cause, table.queue)
        )
        async with transaction(self._engine) as connection:
            rows = (await connection.execute(query)).mappings().all()
            counts = (await connection.execute(counting)).mappings().all()
        views = _that_fit([_view(row) for row in rows[: wanted.limit]], MAX_PAGE)
        end = rows[len(views) - 1] if views else None
        return DeadLetterPage(
            dead_letters=tuple(views),
            counts=tuple(DeadLetterCount.model_validate(dict(row)) for row in counts),
            next_cursor=f"{end['last_died_at']}/{end['id']}" if end and len(rows) > len(views) else None,
        )

    async def waiting(self) -> int:
        """How many wait for an operator."""
        waiting = DEAD_LETTERS.c.state == DeadLetterState.WAITING.value
        async with transaction(self._engine) as connection:
            count = await connection.scalar(sa.select(sa.func.count()).where(waiting))
        return count or 0

    async def tidy(self, limits: Limits, now: datetime) -> Mapping[str, int]:
        """Keep to the limits; how many were ``discarded`` and how many are ``gone``."""
        table = DEAD_LETTERS.c
        dealt_with = table.state != DeadLetterState.WAITING.value
        since = _sortable(now - limits.dealt_with_for)
        lately = sa.exists().where(OUTCOMES.c.dead_letter_id == table.id, OUTCOMES.c.time >= since)
        newest_first = (table.last_died_at.desc(), table.id.desc())
        old = sa.select(table.id).where(dealt_with, table.last_died_at < since, ~lately)
        # SQLite has no OFFSET without LIMIT.
        too_many = (
            sa.select(table.id)
            .where(dealt_with)
            .order_by(*newest_first)
            .offset(limits.dealt_with)
            .limit(AT_ONCE)
        )
        discarded = await self._discard_too_many(limits.waiting, now)
        gone = await self._delete(old.limit(AT_ONCE)) + await self._delete(too_many)
        return {"discarded": discarded, "gone": gone}

    async def _discard_too_many(self, limit: int, now: datetime) -> int:
        table = DEAD_LETTERS.c
        waiting = sa.and_(table.state == DeadLetterState.WAITING.value, table.queue.in_(FROM_SENDERS))
        senders = sa.select(table.user).where(waiting).group_by(table.user).having(sa.func.count() > limit)
        discarded = 0
        async with transaction(self._engine) as connection:
            users = (await connection.scalars(senders)).all()
        for user in users:
            of_user = sa.and_(waiting, table.user.is_not_distinct_from(user))
            newest = sa.select(table.id, table.message_id).where(of_user)
            newest = newest.order_by(table.last_died_at.desc(), table.id.desc())
            reason = f"more than {limit} of its sender waited"
            action = OperatorAction("discarded", now, None, "cml-workers", reason)
            while True:
                async with self._write() as connection:
                    found = (await connection.execute(newest.offset(limit).limit(AT_ONCE))).all()
                    if not found:
                        break
                    ids = [each.id for each in found]
                    await connection.execute(
                        sa.update(DEAD_LETTERS).where(table.id.in_(ids)).values(state=action.what)
                    )
                    await connection.execute(
                        sa.insert(OUTCOMES),
                        [{"dead_letter_id": each.id, **_done(action, each.message_id)} for each in found],
                    )
                discarded += len(found)
        return discarded

    async def _delete(self, which: sa.Select[Any]) -> int:
        gone = 0
        while True:
            async with self._write() as connection:
                ids = (await connection.scalars(which)).all()
                if not ids:
                    return gone
                await connection.execute(sa.delete(OUTCOMES).where(OUTCOMES.c.dead_letter_id.in_(ids)))
                await connection.execute(sa.delete(DEAD_LETTERS).where(DEAD_LETTERS.c.id.in_(ids)))
            gone += len(ids)


T = TypeVar("T", bound=Tolerant)


def _that_fit(items: Sequence[T], size: int) -> Sequence[T]:
    """The first ones, of so many bytes together; always one."""
    total = 0
    for number, item in enumerate(items):
        total += len(item.model_dump_json().encode()) + 1
        if total > size and number:
            return items[:number]
    return items


def _forgotten_deaths(dead_letter_id: UUID) -> sa.Delete:
    """All but the last ones, as a statement."""
    died = sa.and_(OUTCOMES.c.dead_letter_id == dead_letter_id, OUTCOMES.c.what == "died")
    last = sa.select(OUTCOMES.c.number).where(died).order_by(OUTCOMES.c.number.desc())
    # A subquery of its own, which both databases evaluate first.
    oldest_kept = last.offset(DEATHS_KEPT - 1).limit(1).scalar_subquery()
    return sa.delete(OUTCOMES).where(died, OUTCOMES.c.number < oldest_kept)


async def _row(connection: AsyncConnection, dead_letter_id: UUID) -> sa.RowMapping | None:
    query = sa.select(DEAD_LETTERS, _SIZE)
    return (await connection.execute(query.where(DEAD_LETTERS.c.id == dead_letter_id))).mappings().first()


async def _record(connection: AsyncConnection, dead_letter_id: UUID, outcome: dict[str, Any]) -> None:
    await connection.execute(sa.insert(OUTCOMES).values(dead_letter_id=dead_letter_id, **outcome))


def _done(action: OperatorAction, message_id: str | None) -> dict[str, Any]:
    return {
        "time": _sortable(action.time),
        "what": action.what,
        "user": action.user,
        "by": action.by,
        "reason": action.reason,
        "message_id": _storable(message_id),
    }


def _columns(letter: Letter) -> dict[str, Any]:
    return {
        **{name: _storable(getattr(letter, name)) for name in (*_CONTENT, *_COUNTERS)},
        "properties": json.dumps({name: getattr(letter, name) for name in _PROPERTIES}),
    }


def _storable(value: Any) -> Any:
    """PostgreSQL stores no NUL in text."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _letter(row: sa.RowMapping) -> Letter:
    return Letter(
        **{name: row[name] for name in ("id", "death", *_CONTENT, *_COUNTERS)},
        **json.loads(row["properties"]),
    )


def _view(row: sa.RowMapping) -> DeadLetterView:
    stored = {name: row[name] for name in DeadLetterView.model_fields if name != "is_cut"}
    return DeadLetterView.model_validate({**stored, "is_cut": row["whole_size"] is not None})


def _outcome(row: sa.RowMapping) -> DeadLetterOutcome:
    replaced = row["replaced_body"]
    fields = {name: row[name] for name in DeadLetterOutcome.model_fields}
    return DeadLetterOutcome.model_validate(
        {**fields, "replaced_body": None if replaced is None else _shown(replaced)[0]}
    )


def _shown(body: bytes) -> tuple[str, Literal["utf-8", "base64"]]:
    """A body longer than any valid one is truncated."""
    cut = body[:MAX_BODY]
    try:
        return cut.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(cut).decode(), "base64"


def _sortable(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def _conditions(wanted: ListDeadLetters) -> list[sa.ColumnElement[bool]]:
    table = DEAD_LETTERS.c
    conditions: list[sa.ColumnElement[bool]] = [
        table[name] == value
        for name in ("queue", "type", "state", "cause")
        if (value := getattr(wanted, name)) is not None
    ]
    if wanted.reason_part:
        conditions.append(table.reason.icontains(wanted.reason_part, autoescape=True))
    if wanted.since:
        conditions.append(table.last_died_at >= _sortable(wanted.since))
    return conditions
