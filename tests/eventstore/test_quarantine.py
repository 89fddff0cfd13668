"""The quarantine in the event store, and what lifecycle and the EC2 adapter make of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from cml_contracts.events import StartRequested
from cml_workers.domain.history import UnreadableEventError
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.names import stream_of
from cml_workers.eventstore.port import EventStore, StoreConfigurationError, StreamDeletedError
from cml_workers.eventstore.quarantine import (
    RELAY,
    WORKERS,
    Broken,
    Decision,
    NotHeldError,
    Quarantine,
    What,
    of_read_model,
)
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import Workers, append, load_ledger
from cml_workers.readmodels.workers import WORKERS_VIEW
from support.broken import append_raw, binary
from support.given import NOW, created, recorded

CREATED = created()
START = StartRequested(operation_id="start")
SKIP = Decision(What.SKIPPED, "ann", None, "of no use")
TAKE_UP = Decision(What.TAKEN_UP, "ann", None, None)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EventStore]:
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    yield store
    await store.close()


def broken(stream: str, revision: int = 1, error: Exception | None = None) -> Broken:
    gone = isinstance(error, StreamDeletedError)
    return Broken(stream, revision, str(revision), uuid4(), "T", "it is no JSON", gone)


async def worker_with(store: EventStore) -> UUID:
    """One with a broken event behind its creation."""
    worker = Worker(uuid4())
    await append(store, worker, [(CREATED, recorded(worker, CREATED, NOW, "c").metadata)])
    await append_raw(store, stream_of(worker.id), binary())
    return worker.id


async def held(store: EventStore, worker_id: UUID) -> Quarantine:
    stream = stream_of(worker_id)
    *_, event = await store.read(stream)
    quarantine = Quarantine(store, WORKERS)
    await quarantine.hold(Broken.of(event, ValueError("it is no JSON")))
    return quarantine


async def test_two_processes_record_an_event_once_and_others_in_turn(store: EventStore):
    first, second = Quarantine(store, RELAY), Quarantine(store, RELAY)
    events = [broken("cml_worker-1"), broken("cml_worker-2")]
    await asyncio.gather(
        *(each.hold(event) for each in (first, second) for event in (events[0], events[0], events[1]))
    )
    assert len(await store.read("cml_quarantine-relay")) == 2
    for each in (first, second):
        await each.load()
        assert {case.broken.stream for case in each.undecided} == {"cml_worker-1", "cml_worker-2"}


async def test_of_two_decisions_the_first_counts(store: EventStore):
    first, second = Quarantine(store, RELAY), Quarantine(store, RELAY)
    await first.hold(broken("cml_worker-1"))
    await first.decide("cml_worker-1", 1, SKIP)
    for decision in (SKIP, TAKE_UP):
        with pytest.raises(NotHeldError, match="was skipped already"):
            await second.decide("cml_worker-1", 1, decision)
    with pytest.raises(NotHeldError, match="does not wait at revision 2"):
        await second.decide("cml_worker-1", 2, SKIP)
    assert second.skips("cml_worker-1", 1)


async def test_a_skipped_event_stays_skipped_when_a_later_one_is_held(store: EventStore):
    quarantine = Quarantine(store, RELAY)
    for revision in (1, 4):
        await quarantine.hold(broken("cml_worker-1", revision))
        await quarantine.decide("cml_worker-1", revision, SKIP)
    await quarantine.hold(broken("cml_worker-1", 6))
    again = Quarantine(store, RELAY)
    await again.load()
    assert [revision for revision in range(8) if again.skips("cml_worker-1", revision)] == [1, 4]
    assert again.holds("cml_worker-1")


async def test_a_quarantine_that_was_truncated_is_for_an_operator(store: EventStore):
    quarantine = Quarantine(store, RELAY)
    for number in range(3):
        await quarantine.hold(broken(f"cml_worker-{number}"))
    await store.trim(quarantine.stream, 1)
    with pytest.raises(StoreConfigurationError, match="cml_quarantine-relay has lost what was decided"):
        await Quarantine(store, RELAY).load()


async def test_who_cannot_read_a_worker_says_which_event_it_is(store: EventStore):
    worker_id = await worker_with(store)
    with pytest.raises(
        UnreadableEventError, match=f"{stream_of(worker_id)}@1 at position 2 cannot be read: "
    ):
        await Workers(store).newest(worker_id)


async def test_what_is_skipped_for_the_read_model_is_skipped_by_whoever_decides(store: EventStore):
    """Otherwise nobody could ever terminate the worker."""
    worker_id = await worker_with(store)
    workers = Workers(store)
    quarantine = await held(store, worker_id)
    with pytest.raises(UnreadableEventError):  # nobody has decided yet
        await workers.newest(worker_id)
    await quarantine.decide(stream_of(worker_id), 1, SKIP)
    worker = await workers.newest(worker_id)
    assert (worker.revision, worker.given_name) == (1, CREATED.name)
    after = await workers.append(worker, [recorded(worker, START, NOW, "c")])
    assert after.revision == 2
    assert await workers.newest(worker_id) == after
    assert (await Workers(store).ledger(worker_id)).worker == await Workers(store).newest(worker_id) == after
    assert "start" in (await load_ledger(store, worker_id)).entries


async def test_what_is_skipped_while_the_worker_is_at_hand_is_skipped_too(store: EventStore):
    worker = Worker(uuid4())
    workers = Workers(store)
    worker = await workers.append(await workers.newest(worker.id), [recorded(worker, CREATED, NOW, "c")])
    await append_raw(store, stream_of(worker.id), binary())
    await (await held(store, worker.id)).decide(stream_of(worker.id), 1, SKIP)
    assert (await workers.newest(worker.id)).revision == 1
    assert (await workers.newest(worker.id)).revision == 1


def test_workers_are_folded_as_the_read_model_of_workers_does():
    assert of_read_model(WORKERS_VIEW.name) == WORKERS
