"""Followers notice what a subscription leaves out, and read it from the stream."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from kurrentdbclient import AsyncKurrentDBClient

from cml_workers.eventstore import gaps
from cml_workers.eventstore.following import follow_from
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.names import WORKER_STREAMS, stream_of
from cml_workers.eventstore.port import NO_STREAM, StreamNotFoundError
from cml_workers.readmodels.runner import Runner
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.queries import operation
from support.kurrentdb_followers import Tail, events, until
from support.kurrentdb_standin import KurrentDbStandIn
from support.projecting import CREATED, LAUNCH, LAUNCHED, TAGS, Projected, a_database
from support.relaying import Service, ids

Follow = Callable[[str | None], Tail]


@pytest.fixture
async def follow(store: KurrentDbEventStore) -> AsyncIterator[Follow]:
    """From a saved position, for as long as the test lasts."""
    tails: list[Tail] = []

    def start(saved: str | None) -> Tail:
        tails.append(Tail(store, prefix="w-", saved=saved))
        return tails[-1]

    yield start
    for tail in tails:
        await tail.stop()


async def caught_up(tail: Tail) -> list[tuple[str, int]]:
    await until(lambda: tail.following.caught_up)
    return tail.places


async def test_what_is_left_out_behind_a_saved_position_is_filled_in(
    node: KurrentDbStandIn, store: KurrentDbEventStore, follow: Follow
):
    """As after a scavenge, and from a wrong checkpoint."""
    for revision in range(6):
        await store.append("w-a", events(), expected=revision - 1)
        await store.append("w-b", events(), expected=revision - 1)
    saved = (await store.read("w-a"))[2].position
    node.faults.leave_out = frozenset({("w-b", 2), ("w-a", 3), ("w-a", 4)})
    tail = follow(saved)
    places = await caught_up(tail)
    assert [place for place in places if place[0] == "w-a"] == [("w-a", n) for n in (3, 4, 5)]
    assert [place for place in places if place[0] == "w-b"] == [("w-b", n) for n in (2, 3, 4, 5)]
    steps = zip([saved, *tail.positions], tail.positions, strict=False)
    assert not any(store.is_after(before, position) for before, position in steps)


async def test_what_is_left_out_of_the_beginning_is_filled_in(
    node: KurrentDbStandIn, store: KurrentDbEventStore, follow: Follow
):
    await store.append("w-a", events(3), expected=NO_STREAM)
    node.faults.leave_out = frozenset({("w-a", 0), ("w-a", 1)})
    assert await caught_up(follow(None)) == [("w-a", 0), ("w-a", 1), ("w-a", 2)]


async def test_what_is_left_out_of_a_live_subscription_is_filled_in(
    node: KurrentDbStandIn, store: KurrentDbEventStore, follow: Follow
):
    tail = follow(None)
    await store.append("w-a", events(2), expected=NO_STREAM)
    await until(lambda: len(tail.places) == 2)
    node.faults.leave_out = frozenset({("w-a", 2)})
    await store.append("w-a", events(2), expected=1)
    await until(lambda: len(tail.places) >= 4)
    assert tail.places == [("w-a", n) for n in range(4)]


async def test_what_was_delivered_before_is_no_gap(
    store: KurrentDbEventStore, follow: Follow, monkeypatch: pytest.MonkeyPatch
):
    """However few streams are remembered."""
    monkeypatch.setattr(gaps, "MOST_STREAMS", 1)
    tail = follow(None)
    for revision in range(4):
        for stream in ("w-a", "w-b", "w-c"):
            await store.append(stream, events(), expected=revision - 1)
            place = stream, revision
            await until(partial(tail.places.__contains__, place))
    assert len(tail.places) == 12
    saved = (await store.read("w-a"))[1].position
    assert len(await caught_up(follow(saved))) == 8


async def test_what_an_operator_has_truncated_is_not_waited_for(
    store: KurrentDbEventStore, client: AsyncKurrentDBClient, follow: Follow
):
    await store.append("w-a", events(3), expected=NO_STREAM)
    await store.append("w-b", events(1), expected=NO_STREAM)
    await client.set_stream_metadata("w-a", metadata={"$tb": 3})
    tail = follow((await store.read("w-b"))[0].position)
    await store.append("w-a", events(1), expected=2)
    await until(lambda: tail.places)
    assert tail.places == [("w-a", 3)]


async def test_a_replica_that_lags_is_asked_again(
    node: KurrentDbStandIn,
    store: KurrentDbEventStore,
    follow: Follow,
    monkeypatch: pytest.MonkeyPatch,
):
    await store.append("w-a", events(2), expected=NO_STREAM)
    node.faults.leave_out = frozenset({("w-a", 0)})
    read, lags = store.read, iter(range(2))

    async def lagging(stream: str, **how: int) -> object:
        if next(lags, None) is not None:
            raise StreamNotFoundError(stream)
        return await read(stream, **how)

    monkeypatch.setattr(store, "read", lagging)
    tail = follow(None)
    await until(lambda: len(tail.places) >= 2)
    assert tail.places == [("w-a", 0), ("w-a", 1)]


async def test_the_relay_publishes_what_the_store_leaves_out_in_its_place(
    node: KurrentDbStandIn, store: KurrentDbEventStore
):
    service = Service(store)
    await service.happen(2)
    stored = await service.stored()
    node.faults.leave_out = frozenset({(stored[0].stream, 0)})
    relay = service.relay
    task = asyncio.create_task(follow_from(store, relay.begin, relay.handle, prefix=WORKER_STREAMS))
    await until(lambda: len(service.published) == 4)
    task.cancel()
    for stream in {each.stream for each in stored}:
        own = ids([each for each in stored if each.stream == stream])
        assert [each for each in service.published if each in own] == own
    await relay.end()


async def test_the_read_model_has_what_the_store_leaves_out(
    node: KurrentDbStandIn, store: KurrentDbEventStore, tmp_path: Path
):
    """The launch is an operation of its own, of which no later event says that it was requested."""
    async with a_database("sqlite", tmp_path) as database:
        projected = Projected(store, database)
        (worker_id,) = await projected.workers(1, CREATED)
        await projected.catch_up()
        await projected.record(worker_id, LAUNCH, LAUNCHED)
        await projected.record(worker_id, *TAGS)
        node.faults.leave_out = frozenset((stream_of(worker_id), revision) for revision in (1, 2))
        runner = Runner(model=WORKERS_VIEW, store=store, database=database)
        task = asyncio.create_task(runner.run())
        await until(lambda: runner.following.caught_up)
        task.cancel()
        found = await operation(database, f"create/{worker_id}")
        assert found is not None
        assert found.result is not None
        active = await projected.active()
        assert active.events == 5
