"""What the doctor says of checkpoints that are not those of the event store."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from cml_workers.doctor.checkpoints import checkpoint_lines
from cml_workers.doctor.lines import Line, Status
from cml_workers.eventstore.anchor import Anchor
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.relay_stream import append_saved, begin_if_new
from cml_workers.relay.checkpoint import REMEDY
from cml_workers.runtime.settings import Settings
from support.kurrentdb_standin import KurrentDbStandIn
from support.postgresql import emptied
from support.projecting import CREATED, Projected, opened


@pytest.fixture
async def node() -> AsyncIterator[KurrentDbStandIn]:
    node = KurrentDbStandIn()
    await node.start()
    yield node
    await node.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'read-model.sqlite3'}"
    return await emptied(request.getfixturevalue("postgresql_url"))


def settings(**given: object) -> Settings:
    return Settings.model_validate({"aws": True, **given})


async def test_checkpoints_of_this_store_are_not_mentioned(node: KurrentDbStandIn, database_url: str):
    await fill(node, database_url)
    assert await checkpoint_lines(settings(kurrentdb_uri=node.uri, database_url=database_url)) == []


async def test_checkpoints_of_another_store_are_said(node: KurrentDbStandIn, database_url: str):
    await fill(node, database_url, foreign=True)
    other = KurrentDbStandIn()
    await other.start()
    found = await checkpoint_lines(settings(kurrentdb_uri=other.uri, database_url=database_url))
    assert [(each.status, each.subject) for each in found] == [(Status.MISSING, "checkpoint")]
    assert found[0].problem.startswith("the checkpoint of read model workers is another event store's")
    assert found[0].fix.endswith("run `cml-workers rebuild workers`")
    relays = await checkpoint_lines(settings(kurrentdb_uri=node.uri, database_url=database_url))
    assert [each.fix.endswith(REMEDY) for each in relays] == [True]
    await other.stop()


async def test_what_could_not_be_asked_is_said(node: KurrentDbStandIn, tmp_path: Path):
    found = await checkpoint_lines(settings(kurrentdb_uri=node.uri))
    assert [each.status for each in found] == [Status.NOTE]
    without_tables = f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    found = await checkpoint_lines(settings(kurrentdb_uri=node.uri, database_url=without_tables))
    assert unknown(found) == ["DATABASE_URL"]
    await node.stop()
    found = await checkpoint_lines(settings(kurrentdb_uri=f"{node.uri}&DefaultDeadline=1"))
    assert unknown(found[:1]) == ["KURRENTDB_URI"]
    found = await checkpoint_lines(settings(kurrentdb_uri="esdb://127.0.0.1?tls=maybe"))
    assert unknown(found) == ["KURRENTDB_URI"]


async def test_where_nothing_is_stored_yet_nothing_is_said(tmp_path: Path):
    assert await checkpoint_lines(settings(data_dir=tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def unknown(lines: list[Line]) -> list[str]:
    assert [each.status for each in lines] == [Status.UNKNOWN] * len(lines)
    return [next(word for word in each.fix.split(", ")[0].split() if word.isupper()) for each in lines]


async def fill(node: KurrentDbStandIn, database_url: str, *, foreign: bool = False) -> None:
    """Two workers, that are published and projected; ``foreign``: the relay's checkpoint is another store's."""
    store = KurrentDbEventStore(node.uri)
    await begin_if_new(store, uuid4)
    async with opened(database_url) as database:
        projected = Projected(store, database)
        await projected.workers(2, CREATED)
        await projected.catch_up()
        last = (await projected.stored())[-1]
    anchor = Anchor(uuid4() if foreign else last.event_id, last.stream, last.revision, last.position)
    await append_saved(store, last.position, anchor, uuid4(), expected=0)
    await store.close()
