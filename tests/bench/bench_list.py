"""How long every list of very many workers takes, and what its indexes cost whoever writes them; and the migrations of many rows.

    PYTHONPATH=tests .venv/bin/python -m bench.bench_list [--workers 100000] [--sqlite]

On a PostgreSQL of its own, or an SQLite file. Each list is asked for in every sorting and direction, its first page and one from
the middle on; the table has the median and the slowest of them. Then the indexes are replaced by those of version 4, and all of it
is done again. Exits with 1 if a list takes longer than it may on PostgreSQL.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import product
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa

from cml_contracts.queries import ListCMLWorkers
from cml_workers.domain.ownership import Viewer
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.readmodels.changes import Put
from cml_workers.readmodels.model import Found
from cml_workers.readmodels.workers.queries import _cursor, list_workers
from cml_workers.sql.database import _upgrade, dispose, migrate, open_database
from cml_workers.sql.port import Database, DatabaseOptions
from support.earlier_model import WORKER_TAGS, WORKERS
from support.many_workers import FILTERS, SORTS, VIEWERS, Filters, fill, rows, worker
from support.postgresql import private_postgresql
from support.projecting import Projected, opened

MOST_MS = 20.0
BATCH, BATCHES, TIMES = 1_000, 10, 3
OPERATIONS = 40_000


async def list_times(
    database: Database, filters: Filters, number: int, viewer: Viewer | None = None
) -> Sequence[float]:
    """Milliseconds of each list; the best of some."""
    middle, _ = worker(number // 2, number)
    taken = []
    for sort, descending in product(SORTS, (False, True)):
        first = ListCMLWorkers.model_validate({**filters, "sort": sort, "descending": descending})
        later = first.model_copy(update={"cursor": _cursor(first, middle[sort], middle["id"])})
        for query in (first, later):
            each = []
            for _ in range(TIMES):
                began = time.perf_counter()
                assert isinstance(await list_workers(database, query, viewer), Found)
                each.append((time.perf_counter() - began) * 1000)
            taken.append(min(each))
    return taken


async def lists(database: Database, number: int) -> Mapping[str, Sequence[float]]:
    """By filter, and by who asks for everything."""
    found = {name: await list_times(database, filters, number) for name, filters in FILTERS.items()}
    return found | {name: await list_times(database, {}, number, each) for name, each in VIEWERS.items()}


async def batch_ms(projected: Projected, number: int) -> float:
    """Of a batch of workers whose state has changed, the best of some."""
    taken = []
    for batch in range(BATCHES):
        workers, tags = rows(range(number - BATCH * (batch + 1), number - BATCH * batch), number)
        changes = {
            "workers": [Put("workers", {**each, "status": f"S{uuid4().hex[:4]}"}) for each in workers],
            "worker_tags": [Put("worker_tags", each) for each in tags],
        }
        generation = await projected.active()
        began = time.perf_counter()
        await projected.generations.write(generation, changes, f"{uuid4()}", BATCH)
        taken.append((time.perf_counter() - began) * 1000)
        changes["workers"] = [Put("workers", each) for each in workers]
        await projected.generations.write(await projected.active(), changes, f"{uuid4()}", BATCH)
    return min(taken)


def as_before(connection: sa.Connection) -> None:
    """The indexes of version 4."""
    for table in (WORKERS, WORKER_TAGS):
        for made in sa.inspect(connection).get_indexes(table.name):
            connection.exec_driver_sql(f"DROP INDEX {made['name']}")
        for index in table.indexes:
            index.create(connection)
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("DROP INDEX IF EXISTS workers_by_name_part")
        connection.exec_driver_sql("DROP STATISTICS worker_tags_values")
    connection.exec_driver_sql("ANALYZE")


async def migration_seconds(url: str) -> tuple[float, float]:
    """Of the migrations, with many operations that are pending: as they are, and with one statement for each row."""
    engine = open_database(DatabaseOptions(url, call_seconds=300))
    operations = sa.table(
        "operations", sa.column("command_id"), sa.column("worker_id", sa.Uuid), sa.column("view")
    )
    view = '{"result": null, "requested_at": "2026-01-31T12:00:00.5Z"}'
    made = [{"command_id": f"{each}", "worker_id": uuid4(), "view": view} for each in range(OPERATIONS)]
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade, "0001")
        await connection.execute(sa.insert(operations), made)
    began = time.perf_counter()
    await migrate(engine)
    together = time.perf_counter() - began
    one = sa.text("UPDATE operations SET pending_since = :since WHERE command_id = :id")
    began = time.perf_counter()
    async with engine.begin() as connection:
        for each in made:
            await connection.execute(one, {"since": "2026-01-31T12:00:01", "id": each["command_id"]})
    one_by_one = time.perf_counter() - began
    await dispose(engine)
    return together, one_by_one


async def measure(number: int, url: str, folder: Path, *, postgresql: bool) -> bool:
    """The table; whether every list was fast enough."""
    store = SqliteEventStore(folder / "events.sqlite3")
    async with opened(DatabaseOptions(url, call_seconds=300)) as database:
        projected = Projected(store, database)
        await fill(projected, number, url if postgresql else None)
        now, batch = await lists(database, number), await batch_ms(projected, number)
        await database.write(as_before, lasting=True)
        before, batch_before = await lists(database, number), await batch_ms(projected, number)
    await store.close()
    print(f"{number} workers on {'PostgreSQL' if postgresql else 'SQLite'}: ms, before → now\n")
    print("| list of | median | slowest |\n|---|---:|---:|")
    for name, taken in now.items():
        old = before[name]
        medians = f"{statistics.median(old):.1f} → {statistics.median(taken):.1f}"
        print(f"| {name} | {medians} | {max(old):.1f} → {max(taken):.1f} |")
    print(
        f"\na batch of {BATCH} changed workers: {batch_before:.0f} → {batch:.0f} ms ({batch / batch_before:.2f})"
    )
    return max(max(taken) for taken in now.values()) <= MOST_MS or not postgresql


async def run(number: int, *, sqlite: bool) -> bool:
    """On a database of its own."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = [f"sqlite:///{folder / name}" for name in ("lists", "migrations")]
        if not sqlite:
            server = stack.enter_context(private_postgresql())
            urls = [server.url, server.url.replace("/postgres", "/template1")]
        good = await measure(number, urls[0], folder, postgresql=not sqlite)
        together, one_by_one = await migration_seconds(urls[1])
    print(
        f"{OPERATIONS} pending operations migrated: one statement each {one_by_one:.1f} s, together {together:.1f} s "
        f"({one_by_one / together:.0f} times as fast)"
    )
    return good


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, default=100_000)
    parser.add_argument("--sqlite", action="store_true")
    given = parser.parse_args()
    sys.exit(not asyncio.run(run(given.workers, sqlite=given.sqlite)))


if __name__ == "__main__":
    main()
