"""One suite for every kind of database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cml_workers.eventstore.sqlite import SqliteEventStore
from support.projecting import DATABASES, Projected, a_database


@pytest.fixture(params=DATABASES)
async def projected(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Projected]:
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    async with a_database(request.param, tmp_path, url) as database:
        yield Projected(store, database)
    await store.close()
