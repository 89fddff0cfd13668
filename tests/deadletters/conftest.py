"""The dead letters on the embedded parts, and on RabbitMQ with PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cml_contracts.client import WorkerClient
from cml_workers.bus import delivery
from cml_workers.deadletters.archive import Archive
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.sql.database import migrate, open_database
from support.buses import emptied, left_behind
from support.dead_letter_service import Service
from support.plain_amqp import PlainAmqp
from support.postgresql import emptied as emptied_database

PARTS = [("embedded_amqp_url", "sqlite"), ("rabbitmq_url", "postgresql")]


@pytest.fixture(params=PARTS, ids=["embedded", "real"])
async def service(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    """On the embedded parts, and on RabbitMQ with PostgreSQL. One failure of a handler is enough."""
    monkeypatch.setattr(delivery, "MAX_FAULTS", 1)
    broker, database = request.param
    url = await emptied(request.getfixturevalue(broker))
    engine = open_database(
        f"sqlite:///{tmp_path / 'read-model.sqlite3'}"
        if database == "sqlite"
        else await emptied_database(request.getfixturevalue("postgresql_url")),
        durable=True,
    )
    await migrate(engine)
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    service = Service(url, store, Archive(engine))
    async with service.stack as stack:
        await stack.enter_async_context(service.bus)
        service.client = await stack.enter_async_context(PlainAmqp(url))
        service.operator = await stack.enter_async_context(WorkerClient(url, deadline=20))
        yield service
    await engine.dispose()
    assert await left_behind(url) == {}
    await store.close()
