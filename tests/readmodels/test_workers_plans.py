"""How PostgreSQL finds the workers of a list: by an index, whatever is asked for and however few there are of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from itertools import combinations, product
from typing import Any, get_args

import pytest
import sqlalchemy as sa

from cml_contracts.queries import ListCMLWorkers
from cml_workers.domain.ownership import Viewer
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.readmodels.generations import Generations
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.queries import _cursor, _page
from cml_workers.sql.adapters import PostgresqlDatabase, connect
from cml_workers.sql.port import DatabaseOptions
from support.many_workers import FILTERS, SORTS, Filters, fill, worker
from support.postgresql import emptied
from support.projecting import Projected, opened

ALL = 30_000
MOST_PAGES = 4_000
"""That PostgreSQL may look at for one page of the list, again and again counted; to look at each worker and its tags takes 30 times as many."""
OF_THE_LIST = {"cursor", "limit", "sort", "descending"}
COMBINED = {
    f"{one} and {other}": {**FILTERS[one], **FILTERS[other]}
    for one, other in combinations(FILTERS, 2)
    if FILTERS[one].keys().isdisjoint(FILTERS[other])
}


@pytest.fixture(scope="module")
def filled(postgresql_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with very many workers."""

    async def make() -> None:
        store = SqliteEventStore(tmp_path_factory.mktemp("plans") / "events.sqlite3")
        async with opened(DatabaseOptions(await emptied(postgresql_url), call_seconds=60)) as database:
            await fill(Projected(store, database), ALL, postgresql_url)
        await store.close()

    asyncio.run(make())
    return postgresql_url


@pytest.fixture
async def database(filled: str) -> AsyncIterator[PostgresqlDatabase]:
    found = connect(DatabaseOptions(filled, call_seconds=60))
    assert isinstance(found, PostgresqlDatabase)
    yield found
    await found.close()


def pages(filters: Filters) -> Iterator[ListCMLWorkers]:
    """The first page in every sorting, and one from the middle of all workers on."""
    middle, _ = worker(ALL // 2, ALL)
    for sort, descending in product(SORTS, (False, True)):
        query = ListCMLWorkers.model_validate({**filters, "sort": sort, "descending": descending})
        yield query
        cursor = _cursor(query, middle[sort], middle["id"])
        yield query.model_copy(update={"cursor": cursor})


def _carry_out(statement: sa.Select[Any], connection: sa.Connection) -> tuple[Any, int]:
    """Its plan, for these values, and how many rows it finds."""
    literal = {"literal_binds": True, "render_postcompile": True}
    sql = str(statement.compile(dialect=connection.dialect, compile_kwargs=literal))
    said = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}").scalar_one()
    return said, len(connection.execute(statement).all())


async def plans(
    database: PostgresqlDatabase, query: ListCMLWorkers, viewer: Viewer | None
) -> list[Mapping[str, Any]]:
    """Of the statements that are needed for the page."""
    found = []
    for statement in _page(query, viewer):
        said, rows = await database.read(partial(_carry_out, statement))
        found.append((said if isinstance(said, list) else json.loads(said))[0]["Plan"])
        if rows > query.limit:
            break
    return found


def nodes(of: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield of
    for each in of.get("Plans", ()):
        yield from nodes(each)


async def found_by_an_index(
    database: PostgresqlDatabase, query: ListCMLWorkers, viewer: Viewer | None = None
) -> None:
    found = await plans(database, query, viewer)
    read = sum(each["Shared Hit Blocks"] + each["Shared Read Blocks"] for each in found)
    scanned = [
        node["Relation Name"] for each in found for node in nodes(each) if node["Node Type"] == "Seq Scan"
    ]
    assert (scanned, read < MOST_PAGES) == ([], True), (query, read, json.dumps(found, indent=1))


def test_every_condition_and_sorting_of_the_contract_is_looked_at():
    asked = {condition for filters in FILTERS.values() for condition in filters}
    assert asked == ListCMLWorkers.model_fields.keys() - OF_THE_LIST
    assert get_args(ListCMLWorkers.model_fields["sort"].annotation) == SORTS


@pytest.mark.parametrize("filters", FILTERS)
async def test_every_page_is_found_by_an_index(database: PostgresqlDatabase, filters: str):
    for query in pages(FILTERS[filters]):
        await found_by_an_index(database, query)


async def test_conditions_together_are_found_by_an_index(database: PostgresqlDatabase):
    for number, filters in enumerate(COMBINED.values()):
        sort = SORTS[number % len(SORTS)]
        query = ListCMLWorkers.model_validate({**filters, "sort": sort, "descending": number % 2 == 1})
        await found_by_an_index(database, query)


@pytest.mark.parametrize("actor", ["portal", "owner-17", "nobody"])
@pytest.mark.parametrize("teams", [(), ("ccna",), ("final", "none")])
async def test_what_is_open_to_somebody_is_found_by_an_index(
    database: PostgresqlDatabase, actor: str, teams: tuple[str, ...]
):
    viewer = Viewer(actor, frozenset(teams), "exam" if "final" in teams else "course")
    for query in (
        *pages(FILTERS["everything"]),
        *pages(FILTERS["a part of many names"]),
        *pages(FILTERS["a region"]),
    ):
        await found_by_an_index(database, query, viewer)


async def test_a_plan_is_made_for_the_values_that_are_asked_for(database: PostgresqlDatabase):
    """A prepared statement's plan for values in general, made after some that are rare, would read all rows for a common one."""
    setting = sa.text("SHOW plan_cache_mode")
    assert await database.read(lambda connection: connection.scalar(setting)) == "force_custom_plan"
    assert await database.write(lambda connection: connection.scalar(setting)) == "auto"


async def test_a_rebuilt_generation_has_the_same_indexes_and_its_plans_need_no_time(
    database: PostgresqlDatabase,
):
    """The first one is made by a migration, others by the code."""
    indexes = sa.text(
        "SELECT replace(indexdef, :number, '') FROM pg_indexes "
        "WHERE tablename = ANY (ARRAY['workers' || :number, 'worker_tags' || :number, 'operations' || :number])"
    )
    statistics = sa.text("SELECT count(*) FROM pg_statistic_ext")
    generations = Generations(WORKERS_VIEW, database)
    before = await generations.active()
    copy = await generations.copy()
    assert before
    assert copy

    async def of(number: str) -> set[str]:
        given = {"number": number}
        return set(await database.read(lambda connection: connection.scalars(indexes, given).all()))

    first = await of("")
    assert len(first) == 13
    assert await of(f"_{copy.number}") == first
    assert await database.read(lambda connection: connection.scalar(statistics)) == 2
    assert await generations.switch(copy, before)
    for filters in ("a tag of all", "a tag of few", "an owner of many", "a number"):
        for query in pages(FILTERS[filters]):
            await found_by_an_index(database, query)
