"""The relay's checkpoint: in the event store, and where it is lost, the relay asks."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn
from uuid import uuid4

import pytest
import sqlalchemy as sa
from kurrentdbclient import AsyncKurrentDBClient, StreamState

from cml_workers.domain.worker import Worker
from cml_workers.eventstore.anchor import MISSING_LOOKS, Anchor
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.names import WORKER_STREAMS
from cml_workers.eventstore.port import (
    Checkpoint,
    EventStore,
    StoreConfigurationError,
    StoredEvent,
    StoreForbiddenError,
    StoreUnavailableError,
    StreamDeletedError,
)
from cml_workers.eventstore.relay_stream import (
    KEEP,
    RELAY_STREAM,
    NotBegunError,
    Saved,
    begin_if_new,
    ensure_begun,
    load_saved,
)
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import append
from cml_workers.relay.checkpoint import FIRST_LOOKS, LOOKS_AGAIN, LOST, REMEDY, TRIM_EVERY, RelayCheckpoint
from cml_workers.relay.relay import Relay
from cml_workers.sql.database import migrate, open_database
from cml_workers.sql.earlier import EarlierCheckpoint
from cml_workers.sql.port import DatabaseOptions
from cml_workers.sql.schema import CHECKPOINTS
from support.buses import Outbox
from support.given import NOW, created, recorded
from support.kurrentdb_standin import KurrentDbStandIn
from support.observed import stored_events
from support.postgresql import emptied
from support.relaying import no_longer_under_way

CREATED = created()
Begins = Literal["beginning", "end"] | None


class Asks(Exception):  # noqa: N818 - what ends a test's wait, no error
    """It would wait for an operator now."""


class Place:
    """An event store, and how an operator takes the relay's stream away."""

    def __init__(self, store: EventStore, file: Path | None, uri: str | None) -> None:
        self.store = store
        self._file, self._uri = file, uri
        self.pauses: list[float] = []
        self.most_pauses = FIRST_LOOKS

    async def lose(self) -> None:
        if self._file:
            with closing(sqlite3.connect(self._file)) as connection, connection:
                connection.execute("DELETE FROM events WHERE stream = ?", (RELAY_STREAM,))
        else:
            await self._client(lambda each: each.delete_stream(RELAY_STREAM, current_version=StreamState.ANY))

    async def _client(self, work: Callable) -> None:  # type: ignore[type-arg]
        assert self._uri
        client = AsyncKurrentDBClient(self._uri)
        await client.connect()
        await work(client)
        await client.close()

    async def happen(self, workers: int) -> list[StoredEvent]:
        for _ in range(workers):
            worker = Worker(uuid4())
            await append(self.store, worker, [(CREATED, recorded(worker, CREATED, NOW, "c").metadata)])
        return await stored_events(self.store)

    def checkpoint(self, begins: Begins = None, earlier: EarlierCheckpoint | None = None) -> RelayCheckpoint:
        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)
            if len(self.pauses) >= self.most_pauses:
                raise Asks

        return RelayCheckpoint(self.store, new_id=uuid4, begins=begins, earlier=earlier, sleep=sleep)


@pytest.fixture(params=["sqlite", "kurrentdb"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param == "sqlite":
        store: EventStore = SqliteEventStore(tmp_path / "events.sqlite3")
        yield Place(store, tmp_path / "events.sqlite3", None)
        await store.close()
    else:
        node = KurrentDbStandIn()
        await node.start()
        store = KurrentDbEventStore(node.uri)
        yield Place(store, None, node.uri)
        await store.close()
        await node.stop()


async def test_a_new_system_begins_by_itself_and_a_crash_before_the_first_save_asks_nobody(place: Place):
    assert await place.checkpoint().load() is None
    await place.happen(3)
    assert await place.checkpoint().load() is None
    assert place.pauses == []


async def test_what_was_saved_is_where_the_next_one_goes_on(place: Place):
    first = place.checkpoint()
    await first.load()
    events = await place.happen(3)
    for event in events:
        await first.save(event.position)
    assert await place.checkpoint().load() == events[-1].position


async def test_lifecycle_begins_the_stream_before_any_worker_so_a_relay_that_starts_late_asks_nobody(
    place: Place,
):
    await ensure_begun(place.store, uuid4)
    assert await load_saved(place.store) == Saved(None, 0)
    await place.happen(1)
    await ensure_begun(place.store, uuid4)
    assert await load_saved(place.store) == Saved(None, 0)
    assert await place.checkpoint().load() is None


async def test_where_lifecycle_may_not_follow_it_waits_until_the_relay_has_begun_the_stream(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    def forbidden(**_: object) -> NoReturn:
        raise StoreForbiddenError("not $all")

    with monkeypatch.context() as context:
        context.setattr(place.store, "follow", forbidden)
        for _ in range(2):
            with pytest.raises(NotBegunError, match="the relay has not begun its stream cml_relay yet"):
                await ensure_begun(place.store, uuid4)
    await place.checkpoint().load()
    monkeypatch.setattr(place.store, "follow", forbidden)
    await ensure_begun(place.store, uuid4)


async def test_several_processes_that_begin_together_begin_once(place: Place):
    begun = await asyncio.gather(*(begin_if_new(place.store, uuid4) for _ in range(5)))
    assert begun == [Saved(None, 0)] * 5


@pytest.mark.parametrize("had_saved", [True, False])
async def test_a_lost_checkpoint_is_asked_for_and_nothing_is_published(place: Place, had_saved: bool):
    before = place.checkpoint()
    await before.load()
    events = await place.happen(2)
    if had_saved:
        await before.save(events[-1].position)
    await place.lose()
    asking = place.checkpoint()
    with pytest.raises(Asks):
        await asking.load()
    assert asking.problem() == LOST
    assert "CML_RELAY_BEGIN" in LOST
    assert place.pauses == [*[1.0] * (FIRST_LOOKS - 1), LOOKS_AGAIN]
    assert await load_saved(place.store) is None
    await ensure_begun(place.store, uuid4)
    assert await load_saved(place.store) is None  # nor does lifecycle make up for it


@pytest.mark.parametrize("begins", ["beginning", "end"])
async def test_a_lost_checkpoint_begins_where_an_operator_says_and_goes_on_from_there(
    place: Place, begins: Begins
):
    before = place.checkpoint()
    await before.load()
    events = await place.happen(3)
    await before.save(events[-1].position)
    await place.lose()
    chosen = place.checkpoint(begins)
    position = await chosen.load()
    assert (chosen.problem(), await chosen.load()) == (None, position)
    assert position == (None if begins == "beginning" else events[-1].position)
    newer = await place.happen(1)
    await chosen.save(newer[-1].position)
    # The setting is of no effect any more, whichever it is.
    assert await place.checkpoint("beginning").load() == newer[-1].position
    assert await place.checkpoint("end").load() == newer[-1].position


async def test_a_setting_does_not_decide_for_a_stream_that_a_replica_does_not_show_yet(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    checkpoint = place.checkpoint("beginning")
    await checkpoint.load()
    events = await place.happen(2)
    await checkpoint.save(events[-1].position)
    last, shown = place.store.last, iter([False, True])

    async def lagging(stream: str) -> StoredEvent:
        if not next(shown, True):
            raise StreamDeletedError(stream)
        return await last(stream)

    monkeypatch.setattr(place.store, "last", lagging)
    assert await place.checkpoint("beginning").load() == events[-1].position


async def test_only_over_the_one_that_was_read_so_two_relays_notice_one_another(place: Place):
    one, other = place.checkpoint(), place.checkpoint()
    await one.load()
    await other.load()
    events = await place.happen(2)
    await one.save(events[1].position)
    with pytest.raises(StoreUnavailableError, match="another relay"):
        await other.save(events[0].position)
    assert await other.load() == events[1].position
    await other.save(events[1].position)


async def test_the_stream_stays_small(place: Place):
    checkpoint = place.checkpoint()
    await checkpoint.load()
    (event,) = await place.happen(1)
    for _ in range(2 * TRIM_EVERY + 1):
        await checkpoint.save(event.position)
    last = await place.store.last(RELAY_STREAM)
    kept = await place.store.read(RELAY_STREAM, after=last.revision - KEEP)
    assert len(kept) == KEEP
    with pytest.raises(StreamDeletedError):
        await place.store.read(RELAY_STREAM, after=last.revision - KEEP - 1)


async def test_a_stream_that_may_not_be_trimmed_is_no_reason_not_to_publish(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    async def denied(stream: str, _: int) -> None:
        raise StoreConfigurationError(f"our user may not trim {stream}")

    monkeypatch.setattr(place.store, "trim", denied)
    checkpoint = place.checkpoint()
    await checkpoint.load()
    (event,) = await place.happen(1)
    await checkpoint.save(event.position)
    assert await place.checkpoint().load() == event.position


async def test_a_tombstone_is_said_to_an_operator():
    node = KurrentDbStandIn()
    await node.start()
    store = KurrentDbEventStore(node.uri)
    place = Place(store, None, node.uri)
    await place.checkpoint().load()
    await place.happen(1)
    await place._client(lambda each: each.tombstone_stream(RELAY_STREAM, current_version=StreamState.ANY))
    with pytest.raises(StoreConfigurationError, match="tombstone"):
        await place.checkpoint("end").load()
    await store.close()
    await node.stop()


async def of_another_store(place: Place, *, certain: bool) -> list[StoredEvent]:
    """Three workers, and a checkpoint that was saved with another store behind as many events."""
    first = place.checkpoint()
    await first.load()
    events = await place.happen(3)
    anchor = Anchor.of(replace(events[-1], event_id=uuid4()))
    if not certain:
        anchor = replace(anchor, stream=f"{WORKER_STREAMS}{uuid4()}")
    await first.save(events[1].position, anchor)
    return events


@pytest.mark.parametrize("certain", [True, False])
async def test_a_checkpoint_of_another_store_stops_the_relay_which_says_what_to_do(
    place: Place, monkeypatch: pytest.MonkeyPatch, *, certain: bool
):
    await of_another_store(place, certain=certain)
    saved = await load_saved(place.store)
    checkpoint = place.checkpoint()
    place.most_pauses = 2 if certain else MISSING_LOOKS + 1
    with pytest.raises(Asks):
        await checkpoint.load()
    problem = checkpoint.problem() or ""
    assert problem.startswith("the checkpoint of the relay is another event store's")
    assert problem.endswith(REMEDY)
    assert place.pauses[-2:] == [LOOKS_AGAIN, LOOKS_AGAIN]
    assert await load_saved(place.store) == saved


@pytest.mark.parametrize("certain", [True, False])
@pytest.mark.parametrize("begins", ["beginning", "end"])
async def test_a_checkpoint_of_another_store_begins_where_an_operator_says(
    place: Place, begins: Begins, *, certain: bool
):
    events = await of_another_store(place, certain=certain)
    place.most_pauses = MISSING_LOOKS + 1
    chosen = place.checkpoint(begins)
    position = await chosen.load()
    assert position == (None if begins == "beginning" else events[-1].position)
    assert chosen.problem() is None
    newer = await place.happen(1)
    await chosen.save(newer[-1].position, Anchor.of(newer[-1]))
    again = place.checkpoint()
    assert await again.load() == newer[-1].position
    assert again.problem() is None


async def test_what_the_relay_has_published_is_what_it_recognises_the_store_by(place: Place):
    """Also where nothing was published since, and a place without an event was saved."""
    checkpoint = place.checkpoint()
    relay = Relay(
        store=place.store,
        waiting=checkpoint.waiting,
        publish=Outbox(),
        routed=no_longer_under_way,
        load=checkpoint.load,
        save=checkpoint.save,
        end=place.store.end,
        source="/test",
        now=lambda: NOW,
    )
    await relay.begin()
    events = await place.happen(3)
    left_out = replace(
        events[2], position=events[1].position
    )  # as it comes where a subscription had left it out
    for items, last in (
        (events[:2], events[1]),
        ([left_out], events[1]),
        ([Checkpoint(events[2].position)], events[1]),
    ):
        await relay.handle(items)
        async with asyncio.timeout(30):
            while relay.counts()["events_under_way"]:
                await asyncio.sleep(0)
        await relay.save()
        saved = await load_saved(place.store)
        assert saved is not None
        assert saved.anchor == Anchor.of(last)
    assert await place.checkpoint().load() == events[2].position
    after_restart = place.checkpoint()
    await after_restart.load()
    await after_restart.save(events[2].position)
    saved = await load_saved(place.store)
    assert saved is not None
    assert saved.anchor == Anchor.of(events[1])
    await relay.end()


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'read-model.sqlite3'}"
    return await emptied(request.getfixturevalue("postgresql_url"))


async def test_the_checkpoint_of_an_earlier_version_is_taken_over_once(place: Place, database_url: str):
    events = await place.happen(5)
    engine = open_database(database_url)
    await migrate(engine)
    row = {"follower": "relay", "position": events[2].position}
    async with engine.begin() as connection:
        await connection.execute(sa.insert(CHECKPOINTS), row)
    taking = place.checkpoint(earlier=EarlierCheckpoint(DatabaseOptions(database_url)))
    assert await taking.load() == events[2].position
    await taking.save(events[4].position)
    assert (
        await place.checkpoint(earlier=EarlierCheckpoint(DatabaseOptions(database_url))).load()
        == events[4].position
    )
    await engine.dispose()
    await place.lose()
    with pytest.raises(Asks):  # the old one would publish again what was published since
        await place.checkpoint(earlier=EarlierCheckpoint(DatabaseOptions(database_url))).load()


async def test_a_database_without_a_checkpoint_is_neither_made_nor_an_error(
    place: Place, database_url: str, tmp_path: Path
):
    await place.happen(1)
    with pytest.raises(Asks):
        await place.checkpoint(earlier=EarlierCheckpoint(DatabaseOptions(database_url))).load()
    assert list(tmp_path.glob("read-model*")) == []
