from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cml_workers.eventstore.sqlite import SqliteEventStore
from support.relaying import Service


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    service = Service(store)
    yield service
    await service.relay.end()
    await store.close()
