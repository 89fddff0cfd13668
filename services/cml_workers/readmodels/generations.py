"""Generations of a read model's tables: one is active, another may be filled beside it. Each has its own checkpoint.

Rows and checkpoint change in one transaction, and only if the checkpoint is still the one that was read. Queries see the
active generation through views, which change with it in one transaction: see ``docs/decisions/0019``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from types import MappingProxyType

import sqlalchemy as sa
from sqlalchemy.exc import ProgrammingError

from cml_workers.eventstore.anchor import Anchor
from cml_workers.eventstore.quarantine import Waiting
from cml_workers.foundation.failures import ConfigurationError
from cml_workers.readmodels.changes import Change, Put, Remove
from cml_workers.readmodels.comparing import Difference, difference
from cml_workers.readmodels.generation import GENERATIONS, Generation, State
from cml_workers.readmodels.model import ReadModel, generation_table
from cml_workers.readmodels.showing import complete, lacks, show
from cml_workers.readmodels.waiting import Changed, forget_held, held_of, write_held
from cml_workers.sql.port import Database
from cml_workers.sql.schema import alone, upsert

_MOVE = sa.update(GENERATIONS).where(
    GENERATIONS.c.name == sa.bindparam("seen_name"),
    GENERATIONS.c.number == sa.bindparam("seen_number"),
    GENERATIONS.c.state == sa.bindparam("seen_state"),
    GENERATIONS.c.position.is_not_distinct_from(sa.bindparam("seen_position")),
)
"""Made once: each batch of events executes it."""

Changes = Mapping[str, Sequence[Change]]
"""By table, one for each key."""
NOBODY: Changed = MappingProxyType({})


class NewerReadModelError(ConfigurationError):
    """A newer version of the system owns the tables."""


class CheckpointMovedError(ConnectionError):
    """Somebody else has written these rows, or they are no longer the ones to write: resume from what is saved."""


class Generations:
    """Those of one read model in a database. Every method raises what ``Database`` raises."""

    def __init__(self, model: ReadModel, database: Database) -> None:
        self.model = model
        self._database = database

    async def active(self) -> Generation | None:
        """What queries see; None if there is nothing yet."""
        return await self._database.read(partial(self._find, state=State.ACTIVE))

    async def numbered(self, number: int) -> Generation | None:
        """A generation as it is now; None if it is gone."""
        return await self._database.read(partial(self._find, number=number))

    async def begin(self, *, temporary: bool = False) -> Generation:
        """The one to be filled: an unfinished one of this version, else a new one without rows; temporary ones of others go.

        ``temporary``: one that nobody else resumes, sees or drops, but for whoever begins next.

        Raises NewerReadModelError.
        """
        return await self._database.write(partial(self._begin, temporary=temporary), lasting=True)

    async def held(self, generation: Generation) -> dict[str, Waiting]:
        """By stream, the workers of which it has passed events that it does not show, as they wait in quarantine."""
        return await self._database.read(partial(held_of, name=self.model.name, number=generation.number))

    async def write(
        self,
        generation: Generation,
        changes: Changes,
        position: str | None,
        events: int = 0,
        held: Changed = NOBODY,
        anchor: Anchor | None = None,
    ) -> Generation:
        """Write rows, who waits, and checkpoint together. Raises CheckpointMovedError, and then has written nothing.

        ``anchor``: the last event up to there; None: it is the one before.
        """
        after = await self._database.write(
            partial(self._write, generation, changes, position, events, held=held, anchor=anchor)
        )
        if after is None:
            raise CheckpointMovedError(
                f"read model {self.model.name}: generation {generation.number} is no longer {generation.state} at "
                f"position {generation.position}; going on from what is saved"
            )
        return after

    def usable(self, generation: Generation) -> bool:
        """Whether this code can write and read its tables."""
        return generation.version == self.model.version or generation.version in self.model.usable

    async def adopt(self) -> None:
        """Give an active generation of an earlier version that this code can use the columns that it lacks.

        Whoever wrote it may go on: they have a default.
        """
        if await self._database.snapshot(self._lacking):
            await self._database.write(self._adopt)

    async def copy(self) -> Generation | None:
        """A temporary copy of the active generation as it is now, to compare another one with; None if there is none."""
        return await self._database.write(self._copy, lasting=True)

    async def compare(self, generation: Generation, copy: Generation) -> Sequence[Difference] | None:
        """How it differs from a copy; None if the two are not at the same position, or the copy is gone."""
        return await self._database.snapshot(partial(self._compare, generation, copy), lasting=True)

    async def switch(self, generation: Generation, over: Generation | None, *, behind: bool = False) -> bool:
        """Make it the active generation, if both are still the ones that were seen; whether that was so.

        ``behind``: even if it has fewer events than the one that it replaces. Who follows the store goes on from where the
        new one is.
        """
        return await self._database.write(
            partial(self._switch, generation, over, behind=behind), lasting=True
        )

    async def drop(self, *more: Generation) -> Sequence[int]:
        """Drop the tables of those that are retired, and of these, unless one is active; their numbers."""
        numbers = await self._database.read(partial(self._to_drop, more))
        for number in numbers:
            await self._database.write(partial(self._drop, number), lasting=True)
        return numbers

    # -- within a transaction -----------------------------------------------------------------------------

    def _tables(self, number: int) -> Mapping[str, sa.Table]:
        return {table.name: generation_table(table, number) for table in self.model.tables}

    def _find(
        self,
        connection: sa.Connection,
        *,
        state: State | None = None,
        number: int | None = None,
        lock: bool = False,
    ) -> Generation | None:
        query = sa.select(GENERATIONS).where(GENERATIONS.c.name == self.model.name)
        if state is not None:
            query = query.where(GENERATIONS.c.state == state.value)
        if number is not None:
            query = query.where(GENERATIONS.c.number == number)
        row = connection.execute(query.with_for_update() if lock else query).first()
        if row is None or row.state == State.DROPPED:
            return None
        anchor = Anchor.parsed(row.anchor)
        return Generation(row.number, row.version, State(row.state), row.position, row.events, anchor)

    def _begin(self, connection: sa.Connection, *, temporary: bool = False) -> Generation:
        alone(connection)
        for left in self._numbers(connection, State.TEMPORARY):
            self._drop(left, connection)
        for owner in (State.ACTIVE, State.BUILDING):
            found = self._find(connection, state=owner)
            if found is not None and found.version > self.model.version:
                raise self.newer(found)
        if temporary:
            return self._add(connection, Generation(0, self.model.version, State.TEMPORARY, None, 0))
        unfinished = self._find(connection, state=State.BUILDING)
        if unfinished is not None and unfinished.version == self.model.version:
            return unfinished
        if unfinished is not None:
            self._drop(unfinished.number, connection)
        return self._add(connection, Generation(0, self.model.version, State.BUILDING, None, 0))

    def newer(self, found: Generation) -> NewerReadModelError:
        """What to say where this one belongs to a newer version."""
        return NewerReadModelError(
            f"read model {self.model.name}: version {found.version} is {found.state}, and this program knows version "
            f"{self.model.version}; update it"
        )

    def _add(self, connection: sa.Connection, generation: Generation) -> Generation:
        """With the next number, and without rows."""
        last = connection.scalar(
            sa.select(sa.func.max(GENERATIONS.c.number)).where(GENERATIONS.c.name == self.model.name)
        )
        added = replace(generation, number=(last or 0) + 1)
        for table in self._tables(added.number).values():
            table.create(connection)
        row = asdict(added) | {"state": added.state.value, "anchor": _stored(added.anchor)}
        connection.execute(sa.insert(GENERATIONS).values(name=self.model.name, **row))
        return added

    def _lacking(self, connection: sa.Connection, *, add: bool = False) -> bool:
        """Whether the active generation lacks columns; ``add`` them."""
        found = self._find(connection, state=State.ACTIVE)
        if found is None or found.version == self.model.version or not self.usable(found):
            return False
        lacking = [each for each in self.model.tables if lacks(connection, each, found.number)]
        if lacking and add:
            complete(connection, lacking, found.number)
        return bool(lacking)

    def _adopt(self, connection: sa.Connection) -> None:
        alone(connection)
        self._lacking(connection, add=True)

    def _copy(self, connection: sa.Connection) -> Generation | None:
        alone(connection)
        active = self._find(connection, state=State.ACTIVE, lock=True)  # nobody writes its rows meanwhile
        if active is None:
            return None
        copy = self._add(connection, replace(active, state=State.TEMPORARY))
        copied = self._tables(copy.number)
        for name, table in self._tables(active.number).items():
            rows = sa.select(table)
            connection.execute(sa.insert(copied[name]).from_select(rows.selected_columns.keys(), rows))
        return copy

    def _write(
        self,
        generation: Generation,
        changes: Changes,
        position: str | None,
        events: int,
        connection: sa.Connection,
        *,
        held: Changed = NOBODY,
        anchor: Anchor | None = None,
    ) -> Generation | None:
        after = replace(
            generation,
            position=position,
            events=generation.events + events,
            anchor=anchor or generation.anchor,
        )
        seen = {
            "seen_name": self.model.name,
            "seen_number": generation.number,
            "seen_state": generation.state.value,
            "seen_position": generation.position,
        }
        values = {"position": after.position, "events": after.events, "anchor": _stored(after.anchor)}
        moved = connection.execute(_MOVE, {**seen, **values})
        if not moved.rowcount:
            return None
        for name, table in self._tables(generation.number).items():
            gone = [change.row for change in changes.get(name, ()) if isinstance(change, Remove)]
            rows = [change.row for change in changes.get(name, ()) if isinstance(change, Put)]
            if gone:
                key = (column == sa.bindparam(f"key_{column.name}") for column in table.primary_key)
                named = [{f"key_{column}": value for column, value in row.items()} for row in gone]
                connection.execute(sa.delete(table).where(*key), named)
            if rows:
                connection.execute(upsert(connection.dialect.name, table), rows)
        write_held(connection, self.model.name, generation.number, held)
        return after

    def _compare(
        self, generation: Generation, copy: Generation, connection: sa.Connection
    ) -> Sequence[Difference] | None:
        there = self._find(connection, number=copy.number)
        here = self._find(connection, number=generation.number)
        if there is None or here is None or there.position != here.position:
            return None
        there_tables, here_tables = self._tables(there.number), self._tables(here.number)
        try:
            found = [
                difference(connection, name, table, here_tables[name]) for name, table in there_tables.items()
            ]
        except ProgrammingError:  # dropped between two statements, of which each sees the tables there are
            return None
        return [each for each in found if each.missing or each.added]

    def _switch(
        self,
        generation: Generation,
        over: Generation | None,
        connection: sa.Connection,
        *,
        behind: bool = False,
    ) -> bool:
        there = self._find(connection, state=State.ACTIVE, lock=True)
        here = self._find(connection, number=generation.number, lock=True)
        if here != generation or (there is None) != (over is None):
            return False
        if there is not None and over is not None:
            if there.number != over.number or (here.events < there.events and not behind):
                return False
            connection.execute(
                sa.update(GENERATIONS).where(*self._is(there)).values(state=State.RETIRED.value)
            )
        connection.execute(
            sa.update(GENERATIONS).where(*self._is(generation)).values(state=State.ACTIVE.value)
        )
        for table in self._tables(generation.number).values():
            connection.exec_driver_sql(f"ANALYZE {table.name}")  # before its first query needs a plan
        show(connection, self.model.tables, generation.number)
        return True

    def _numbers(self, connection: sa.Connection, state: State) -> list[int]:
        query = sa.select(GENERATIONS.c.number).where(
            GENERATIONS.c.name == self.model.name, GENERATIONS.c.state == state.value
        )
        return list(connection.scalars(query))

    def _to_drop(self, more: Sequence[Generation], connection: sa.Connection) -> Sequence[int]:
        return sorted({*self._numbers(connection, State.RETIRED), *(each.number for each in more)})

    def _drop(self, number: int, connection: sa.Connection) -> None:
        """Whoever still knows the number must never find another generation under it: it is kept until a higher one is."""
        alone(connection)
        gone = connection.execute(
            sa.update(GENERATIONS)
            .where(
                GENERATIONS.c.name == self.model.name,
                GENERATIONS.c.number == number,
                GENERATIONS.c.state.not_in((State.ACTIVE.value, State.DROPPED.value)),
            )
            .values(state=State.DROPPED.value)
        )
        if gone.rowcount:
            for table in self._tables(number).values():
                table.drop(connection, checkfirst=True)
            forget_held(connection, self.model.name, number)
        highest = sa.select(sa.func.max(GENERATIONS.c.number)).where(GENERATIONS.c.name == self.model.name)
        connection.execute(
            sa.delete(GENERATIONS).where(
                GENERATIONS.c.name == self.model.name,
                GENERATIONS.c.state == State.DROPPED.value,
                GENERATIONS.c.number < (connection.scalar(highest) or 0),
            )
        )

    def _is(self, generation: Generation) -> tuple[sa.ColumnElement[bool], ...]:
        return GENERATIONS.c.name == self.model.name, GENERATIONS.c.number == generation.number


def _stored(anchor: Anchor | None) -> str | None:
    return None if anchor is None else str(anchor)
