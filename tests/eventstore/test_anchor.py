"""Whether a checkpoint is one of the store: by the event that it was saved behind."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kurrentdbclient import AsyncKurrentDBClient, StreamState

from cml_workers.eventstore.anchor import LOOKS_AGAIN, MISSING_LOOKS, Anchor, Recognition, mismatch
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import NO_STREAM, EventStore, StreamNotFoundError
from cml_workers.eventstore.sqlite import SqliteEventStore
from support.kurrentdb_followers import events
from support.kurrentdb_standin import KurrentDbStandIn


class Place:
    """A store, as it is now, and as it was when it was backed up."""

    def __init__(self, store: EventStore, restored: Callable[[], Awaitable[EventStore]]) -> None:
        self.store = store
        self.restored = restored


@pytest.fixture(params=["sqlite", "kurrentdb"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """``restored`` is as the store was behind the first event of stream a."""
    opened: list[EventStore] = []
    node, other = KurrentDbStandIn(), KurrentDbStandIn()
    if request.param == "sqlite":
        opened.append(SqliteEventStore(tmp_path / "events.sqlite3"))
    else:
        await node.start()
        await other.start()
        opened.append(KurrentDbEventStore(node.uri))
    store = opened[0]
    await store.append("a", events(), expected=NO_STREAM)
    if request.param == "sqlite":
        await store.close()
        shutil.copy(tmp_path / "events.sqlite3", tmp_path / "restored.sqlite3")
        opened[0] = store = SqliteEventStore(tmp_path / "events.sqlite3")
    else:
        other.log.records = list(node.log.records)
        other.log.streams = {name: list(records) for name, records in node.log.streams.items()}

    async def restored() -> EventStore:
        opened.append(
            SqliteEventStore(tmp_path / "restored.sqlite3")
            if request.param == "sqlite"
            else KurrentDbEventStore(other.uri)
        )
        return opened[-1]

    yield Place(store, restored)
    for each in opened:
        await each.close()
    await node.stop()
    await other.stop()


async def last_anchor(store: EventStore, stream: str = "a") -> Anchor:
    return Anchor.of(await store.last(stream))


async def test_the_store_it_was_saved_with(place: Place):
    await place.store.append("a", events(3), expected=0)
    anchor = await last_anchor(place.store)
    assert Anchor.parsed(str(anchor)) == anchor
    assert await mismatch(place.store, anchor) is None
    await place.store.append("a", events(3), expected=3)
    assert await mismatch(place.store, anchor) is None


async def test_a_checkpoint_of_an_earlier_version_is_taken_over(place: Place):
    assert Anchor.parsed(None) is None
    assert await mismatch(place.store, None) is None
    await place.store.append("a", events(3), expected=0)
    for event in await place.store.read("a"):
        assert await mismatch(place.store, None, event.position) is None
    assert await mismatch(place.store, None, await place.store.end()) is None


async def test_without_an_anchor_a_checkpoint_beyond_the_end_is_another_stores(place: Place):
    """Positions are compared as numbers: 10 is behind 9."""
    first = await last_anchor(place.store)
    await place.store.append("a", events(9), expected=0)
    copy = await place.restored()
    assert await mismatch(copy, None, first.position) is None
    last = await last_anchor(place.store)
    for position in (last.position, (await place.store.read("a"))[1].position):
        found = await mismatch(copy, None, position)
        assert found is not None
        assert not found.is_certain  # a replica that lags shows the same
        assert f"it is at {position}, and this event store ends at {first.position}" in found.reason
    looks = Looks()
    while looks.recognition.problem is None:
        assert not await looks.recognition.passes(None, copy, last.position)
    assert looks.pauses[-1] == LOOKS_AGAIN
    await copy.append("others", events(20), expected=NO_STREAM)
    assert await looks.recognition.passes(None, copy, last.position)


async def test_without_an_anchor_a_position_of_another_kind_of_store_is_another_stores(place: Place):
    found = await mismatch(place.store, None, "elsewhere")
    assert found is not None
    assert found.is_certain
    assert "position 'elsewhere' is not one of" in found.reason


async def test_an_empty_store_is_not_the_one_of_a_checkpoint(tmp_path: Path):
    store = SqliteEventStore(tmp_path / "empty.sqlite3")
    found = await mismatch(store, None, "1")
    await store.close()
    assert found is not None
    assert "ends at its beginning" in found.reason


async def test_an_older_copy_that_has_the_beginning_of_the_same_stream(place: Place):
    first = await last_anchor(place.store)
    await place.store.append("a", events(1), expected=0)
    copy = await place.restored()
    found = await mismatch(copy, await last_anchor(place.store))
    assert found is not None
    assert not found.is_certain  # a replica that lags shows the same
    assert "revision 1), which this event store does not have" in found.reason
    assert await mismatch(copy, first) is None


async def test_an_older_copy_that_has_grown_past_it_with_other_events(place: Place):
    await place.store.append("a", events(1), expected=0)
    copy = await place.restored()
    await copy.append("a", events(20), expected=0)
    found = await mismatch(copy, await last_anchor(place.store))
    assert found is not None
    assert found.is_certain
    assert "has another one there" in found.reason


async def test_another_store_that_does_not_know_the_stream(place: Place):
    copy = await place.restored()
    await copy.append("others", events(20), expected=NO_STREAM)
    await place.store.append("b", events(1), expected=NO_STREAM)
    found = await mismatch(copy, await last_anchor(place.store, "b"))
    assert found is not None
    assert not found.is_certain


async def test_a_store_that_was_filled_from_this_one_has_the_event_elsewhere(place: Place):
    same = events(1)
    copy = await place.restored()
    await copy.append("others", events(2), expected=NO_STREAM)
    for each in (place.store, copy):
        await each.append("a", same, expected=0)
    found = await mismatch(copy, await last_anchor(place.store))
    assert found is not None
    assert found.is_certain
    assert "is elsewhere" in found.reason


@pytest.mark.parametrize("how", ["delete_stream", "tombstone_stream", "truncate"])
async def test_what_an_operator_has_deleted_says_nothing(
    node: KurrentDbStandIn, store: KurrentDbEventStore, client: AsyncKurrentDBClient, how: str
):
    await store.append("a", events(3), expected=NO_STREAM)
    anchor = await last_anchor(store)
    if how == "truncate":
        await client.set_stream_metadata("a", metadata={"$tb": 3})
    else:
        await getattr(client, how)("a", current_version=StreamState.ANY)
    assert await mismatch(store, anchor) is None


class Looks:
    """A follower's, and how long it slept between them."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.recognition = Recognition("the follower", "rebuild it", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)


async def test_a_missing_event_is_looked_for_as_long_as_a_replica_may_lag(place: Place):
    looks = Looks()
    anchor = replace(await last_anchor(place.store), stream="missing")
    for _ in range(MISSING_LOOKS - 1):
        assert not await looks.recognition.passes(anchor, place.store)
        assert looks.recognition.problem is None
    for _ in range(2):
        assert not await looks.recognition.passes(anchor, place.store)
        problem = looks.recognition.problem
        assert problem is not None
        assert problem.startswith(
            "the checkpoint of the follower is another event store's: it was saved behind event "
        )
        assert problem.endswith("restored from a backup, rebuild it")
    assert looks.pauses == [*[1.0] * (MISSING_LOOKS - 1), LOOKS_AGAIN, LOOKS_AGAIN]
    await place.store.append("missing", events(), expected=NO_STREAM)
    assert await looks.recognition.passes(await last_anchor(place.store, "missing"), place.store)
    assert looks.recognition.problem is None


async def test_a_replica_that_lags_stops_nobody(place: Place, monkeypatch: pytest.MonkeyPatch):
    looks, anchor, read = Looks(), await last_anchor(place.store), place.store.read
    lagging = iter([True] * (MISSING_LOOKS - 1))

    async def lags(stream: str, **how: int) -> object:
        if next(lagging, False):
            raise StreamNotFoundError(stream)
        return await read(stream, **how)

    monkeypatch.setattr(place.store, "read", lags)
    while not await looks.recognition.passes(anchor, place.store):
        assert looks.recognition.problem is None
    assert looks.pauses == [1.0] * (MISSING_LOOKS - 1)


async def test_another_event_at_its_place_stops_it_at_once(place: Place):
    looks = Looks()
    await place.store.append("a", events(1), expected=0)
    copy = await place.restored()
    await copy.append("a", events(1), expected=0)
    assert not await looks.recognition.passes(await last_anchor(place.store), copy)
    assert looks.recognition.problem is not None
    assert looks.pauses == [LOOKS_AGAIN]
