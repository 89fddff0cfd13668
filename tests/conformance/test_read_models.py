"""The contract of the database port and of the generations of a read model, held by SQLite, PostgreSQL and the simulation's."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from cml_workers.readmodels.changes import Change, Put, Remove
from cml_workers.readmodels.generation import Generation, State
from cml_workers.readmodels.generations import CheckpointMovedError, Generations, NewerReadModelError
from cml_workers.readmodels.model import ReadModel, active
from cml_workers.sql.port import ByKey, Database
from support.projecting import DATABASES, a_database

_TABLES = sa.MetaData()
THINGS = sa.Table(
    "things",
    _TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False, index=True),
    sa.Index("things_by_both", "name", "id"),
)
MODEL = ReadModel(
    name="things",
    version=3,
    tables=(THINGS,),
    of_worker=lambda _: (),
    of_event=lambda *_: (),
    answers={},
)


class Subject:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.generations = Generations(MODEL, database)

    async def first(self) -> Generation:
        """An active one."""
        assert await self.generations.switch(await self.generations.begin(), None)
        found = await self.generations.active()
        assert found is not None
        return found

    async def put(self, generation: Generation, position: str, **names: str) -> Generation:
        things = [Put("things", {"id": int(key.strip("_")), "name": name}) for key, name in names.items()]
        return await self.generations.write(generation, {"things": things}, position, len(things))

    async def names(self) -> list[str]:
        """What queries see."""
        table = active(THINGS)
        query = sa.select(table.c.name).order_by(table.c.id)
        return list(await self.database.read(lambda connection: connection.scalars(query).all()))

    async def tables(self) -> set[str]:
        found = await self.database.read(lambda connection: sa.inspect(connection).get_table_names())
        return {each for each in found if each.startswith("things")}


@pytest.fixture(params=DATABASES)
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    async with a_database(request.param, tmp_path, url) as database:
        yield Subject(database)


async def test_what_raises_has_written_nothing(subject: Subject):
    first = await subject.first()

    def half(connection: sa.Connection) -> None:
        connection.execute(sa.insert(THINGS).values(id=1, name="half"))
        raise LookupError

    with pytest.raises(LookupError):
        await subject.database.write(half)
    assert await subject.names() == []
    await subject.put(first, "p1", _1="whole")
    assert await subject.names() == ["whole"]


async def test_calls_side_by_side_do_not_disturb_each_other(subject: Subject):
    generation = await subject.first()

    async def write() -> None:
        nonlocal generation
        for number in range(30):
            generation = await subject.put(generation, f"p{number}", **{f"_{number}": str(number)})

    async def read() -> list[int]:
        return [len(await subject.names()) for _ in range(60)]

    writing = asyncio.create_task(write())
    seen = await asyncio.gather(*(read() for _ in range(5)))
    await writing
    assert all(counts == sorted(counts) for counts in seen)
    assert len(await subject.names()) == 30


async def test_rows_are_added_replaced_and_removed(subject: Subject):
    generation = await subject.put(await subject.first(), "p1", _1="one", _2="two")
    changes: list[Change] = [Put("things", {"id": 1, "name": "new"}), Remove("things", {"id": 2})]
    await subject.generations.write(generation, {"things": changes}, "p2")
    assert await subject.names() == ["new"]


async def test_rows_and_checkpoint_change_together(subject: Subject):
    generation = await subject.put(await subject.first(), "p1", _1="one", _2="two")
    assert generation == await subject.generations.active()
    assert (generation.position, generation.events) == ("p1", 2)


async def test_of_two_writers_one_is_refused_and_has_written_nothing(subject: Subject):
    first = await subject.first()
    both = await asyncio.gather(
        subject.put(first, "p2", _1="new", _2="new"),
        subject.put(first, "p1", _2="old", _1="old"),
        return_exceptions=True,
    )
    (won,) = [each for each in both if isinstance(each, Generation)]
    (lost,) = [each for each in both if not isinstance(each, Generation)]
    assert isinstance(lost, CheckpointMovedError)
    assert await subject.generations.active() == won
    assert await subject.names() == (["new", "new"] if won.position == "p2" else ["old", "old"])


async def test_a_checkpoint_that_went_back_is_not_written_over(subject: Subject):
    """A standby that took over has lost the last transactions."""
    first = await subject.put(await subject.first(), "p1", _1="one")
    ahead = replace(first, position="p3")
    with pytest.raises(CheckpointMovedError):
        await subject.put(ahead, "p4", _1="four")
    assert await subject.names() == ["one"]


async def test_an_unfinished_generation_is_resumed(subject: Subject):
    await subject.first()
    begun = await subject.put(await subject.generations.begin(), "p1", _1="one")
    assert await subject.generations.begin() == begun
    assert await subject.names() == []  # nobody sees it


async def test_an_unfinished_generation_of_another_version_is_replaced(subject: Subject):
    await subject.first()
    old = await subject.put(await subject.generations.begin(), "p1", _1="one")
    newer = Generations(replace(MODEL, version=4), subject.database)
    begun = await newer.begin()
    assert (begun.version, begun.position, begun.events) == (4, None, 0)
    with pytest.raises(CheckpointMovedError):
        await subject.put(old, "p2", _1="two")


async def test_a_switch_shows_the_new_rows_and_refuses_the_old_writer(subject: Subject):
    old = await subject.put(await subject.first(), "p1", _1="old")
    new = await subject.put(await subject.generations.begin(), "p1", _1="new")
    assert await subject.generations.switch(new, old)
    assert await subject.names() == ["new"]
    with pytest.raises(CheckpointMovedError):
        await subject.put(old, "p2", _1="late")
    with pytest.raises(CheckpointMovedError):  # it knows it as one that nobody sees
        await subject.put(new, "p2", _1="late")
    now = await subject.generations.active()
    assert now == replace(new, state=State.ACTIVE)
    await subject.put(now, "p2", _1="newer")
    assert await subject.names() == ["newer"]


async def test_a_switch_is_refused_where_the_active_generation_has_more(subject: Subject):
    old = await subject.put(await subject.first(), "p1", _1="old")
    new = await subject.put(await subject.generations.begin(), "p1", _1="new")
    await subject.put(old, "p2", _2="moved")
    assert not await subject.generations.switch(new, old)
    assert not await subject.generations.switch(new, None)
    assert await subject.names() == ["old", "moved"]
    assert await subject.generations.switch(new, old, behind=True)  # of one that never rests
    assert await subject.names() == ["new"]


async def test_a_switch_does_not_wait_for_one_that_has_moved_and_has_no_more(subject: Subject):
    old = await subject.put(await subject.first(), "p1", _1="old")
    new = await subject.put(await subject.generations.begin(), "p3", _1="new", _2="newer", _3="newest")
    await subject.put(old, "p2", _2="moved")
    assert await subject.generations.switch(new, old)
    assert await subject.names() == ["new", "newer", "newest"]


async def test_of_switches_at_once_one_is_made(subject: Subject):
    old = await subject.first()
    new = await subject.generations.begin()
    done = await asyncio.gather(*(subject.generations.switch(new, old) for _ in range(4)))
    assert sorted(done) == [False, False, False, True]


async def test_retired_tables_are_dropped_and_no_others(subject: Subject):
    old = await subject.first()
    assert await subject.generations.switch(await subject.generations.begin(), old)
    unfinished = await subject.generations.begin()
    assert await subject.tables() == {"things", "things_2", "things_3"}
    assert await subject.generations.drop() == [1]
    assert await subject.tables() == {"things_2", "things_3"}
    assert await subject.generations.drop(unfinished) == [3]
    now = await subject.generations.active()
    assert now is not None
    await subject.generations.drop(now)  # never the active generation
    assert await subject.tables() == {"things_2"}
    assert await subject.names() == []


async def test_a_row_is_found_by_its_key(subject: Subject):
    await subject.put(await subject.first(), "p1", _1="one", _2="two")
    things = ByKey(active(THINGS).c.id, active(THINGS).c.name)
    found = await asyncio.gather(*(subject.database.find(things, key) for key in (2, 3, 1, 2)))
    assert [row and row.name for row in found] == ["two", None, "one", "two"]


async def test_a_row_is_found_as_it_was_last_written(subject: Subject):
    """However many ask meanwhile: nobody gets an answer that was read before the query."""
    generation = await subject.first()
    names = ByKey(active(THINGS).c.id, active(THINGS).c.name)
    answered: list[None] = []

    async def ask() -> None:
        while len(answered) < 200:
            await subject.database.find(names, 1)
            answered.append(None)
            await asyncio.sleep(0)

    others = [asyncio.ensure_future(ask()) for _ in range(5)]
    for number in range(20):
        generation = await subject.put(generation, f"p{number}", _1=str(number))
        row = await subject.database.find(names, 1)
        assert row is not None
        assert row.name == str(number)
    await asyncio.gather(*others)


async def test_a_row_is_found_though_the_pooled_connections_are_gone(subject: Subject):
    await subject.put(await subject.first(), "p1", _1="one", _2="two")
    things = ByKey(active(THINGS).c.id, active(THINGS).c.name)

    def break_others(connection: sa.Connection) -> None:
        if connection.dialect.name == "postgresql":  # a file has no connections to lose
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            connection.execute(sa.text(f"{others} AND datname = current_database()"))

    for _ in range(3):
        found = await asyncio.gather(*(subject.database.find(things, key) for key in (1, 2, 1)))
        assert [row and row.name for row in found] == ["one", "two", "one"]
        await subject.database.write(break_others)


async def test_no_number_comes_again(subject: Subject):
    """Whoever still knows it would write into the tables of another."""
    await subject.first()
    for _ in range(3):
        new = await subject.generations.begin()
        await subject.generations.drop(new)
        assert await subject.generations.numbered(new.number) is None
        with pytest.raises(CheckpointMovedError):
            await subject.put(new, "p1", _1="late")
        assert (await subject.generations.begin()).number == new.number + 1


async def test_a_temporary_one_is_nobody_elses_and_goes_when_the_next_begins(subject: Subject):
    await subject.first()
    unfinished = await subject.generations.begin()
    ours = await subject.put(await subject.generations.begin(temporary=True), "p1", _1="ours")
    assert await subject.generations.drop() == []
    assert await subject.generations.begin() == unfinished
    assert await subject.generations.numbered(ours.number) is None


async def test_what_a_newer_version_begins_is_left_alone(subject: Subject):
    await subject.first()
    newer = Generations(replace(MODEL, version=MODEL.version + 1), subject.database)
    theirs = await newer.begin()
    for temporary in (True, False):
        with pytest.raises(NewerReadModelError, match="version 4 is building"):
            await subject.generations.begin(temporary=temporary)
    assert await newer.begin() == theirs


async def test_a_copy_of_the_active_generation_does_not_change(subject: Subject):
    assert await subject.generations.copy() is None
    old = await subject.put(await subject.first(), "p1", _1="one", _2="two")
    begun = await subject.generations.begin()
    copy = await subject.generations.copy()
    assert copy == replace(old, number=copy.number if copy else 0, state=State.TEMPORARY)
    await subject.put(old, "p2", _2="moved")
    new = await subject.put(begun, "p1", _1="one", _2="two")
    assert await subject.generations.compare(new, copy) == []
    assert await subject.generations.drop() == []
    assert await subject.generations.drop(copy) == [copy.number]
    assert await subject.generations.compare(new, copy) is None
    assert await subject.names() == ["one", "moved"]


async def test_generations_are_compared_at_one_position(subject: Subject):
    old = await subject.put(await subject.first(), "p1", _1="same", _2="old", _3="gone")
    begun = await subject.generations.begin()
    copy = await subject.generations.copy()
    assert copy is not None
    new = await subject.put(begun, "p0", _1="same", _2="new")
    assert await subject.generations.compare(new, copy) is None
    new = await subject.put(new, "p1", _4="more")
    (found,) = await subject.generations.compare(new, copy) or ()
    assert (found.table, found.missing, found.added) == ("things", 2, 2)
    assert found.examples == ("2", "3", "4")
    same = {"things": [Put("things", {"id": 2, "name": "old"}), Put("things", {"id": 3, "name": "gone"})]}
    new = await subject.generations.write(
        new, {"things": [*same["things"], Remove("things", {"id": 4})]}, "p1"
    )
    assert await subject.generations.compare(new, copy) == []
    assert old.events == 3


async def test_queries_beside_switches_see_one_generation_each(subject: Subject):
    """Rows say of which generation they are; a query that sees two kinds has seen half of it."""
    await subject.put(await subject.first(), "p", **{f"_{number}": "0" for number in range(20)})
    seen: set[str] = set()
    switching = True

    async def read() -> None:
        while switching:
            names = await subject.names()
            assert len(names) == 20
            assert len(set(names)) == 1
            seen.update(names)
            await asyncio.sleep(0)

    readers = [asyncio.create_task(read()) for _ in range(4)]
    for number in range(1, 8):
        old = await subject.generations.active()
        new = await subject.put(
            await subject.generations.begin(), "p", **{f"_{each}": str(number) for each in range(20)}
        )
        assert await subject.generations.switch(new, old)
        await subject.generations.drop()
        await asyncio.sleep(0.02)
    switching = False
    await asyncio.gather(*readers)
    assert len(seen) > 3
