"""Which messages are certain to be new to a worker, while workers are kept, evicted and changed by others."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from cml_contracts.events import CommandSkipped
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.port import EventStore
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import Workers
from support.given import NOW, WORKER, created, recorded

OTHER = UUID(int=2)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EventStore]:
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    yield store
    await store.close()


async def _skip(workers: Workers, worker: Worker, command_id: str) -> Worker:
    event = CommandSkipped(operation_id=command_id, command_type="t", data=True)
    return await workers.append(worker, [recorded(worker, event, NOW, f"message of {command_id}")])


async def _begun(workers: Workers, worker_id: UUID = WORKER) -> Worker:
    blank = await workers.newest(worker_id)
    worker = await workers.append(blank, [recorded(blank, created(), NOW, "create")])
    return await _skip(workers, worker, "first")


async def test_a_worker_knows_the_commands_and_the_messages_that_its_events_name(store: EventStore):
    workers = Workers(store)
    worker = await _begun(workers)
    for reader in (workers, Workers(store)):
        worker = await reader.newest(WORKER)
        named = ("create", "first", "message of first")
        assert [reader.is_new(worker, each) for each in named] == [False] * 3
        assert reader.is_new(worker, "second")
        assert list((await reader.ledger(WORKER)).entries) == ["first"]


async def test_nothing_is_certain_of_a_worker_that_was_evicted_or_changed_meanwhile(store: EventStore):
    workers = Workers(store, at_hand=1)
    worker = await _begun(workers)
    await _begun(workers, OTHER)
    assert not workers.is_new(worker, "second")
    after = await _skip(workers, worker, "second")  # what it knew of the first is gone
    assert workers.at_hand(WORKER) is None
    assert not workers.is_new(after, "first")
    assert not workers.is_new(await workers.newest(WORKER), "first")

    by_another = Workers(store)
    await _skip(by_another, await by_another.newest(WORKER), "third")
    assert workers.is_new(await workers.newest(WORKER), "fourth")
    assert not workers.is_new(await workers.newest(WORKER), "third")


async def test_as_many_workers_are_kept_as_their_ids_leave_room_for(store: EventStore):
    workers = Workers(store, most_ids=8)
    for number in range(4):
        await _begun(workers, UUID(int=number))
    kept = [number for number in range(4) if workers.at_hand(UUID(int=number))]
    assert kept == [2, 3]  # three ids each
    worker = await workers.newest(UUID(int=3))
    for number in range(10):
        worker = await _skip(workers, worker, f"more {number}")
    assert workers.at_hand(UUID(int=3)) is worker  # the one in use stays, alone
    assert workers.at_hand(UUID(int=2)) is None
