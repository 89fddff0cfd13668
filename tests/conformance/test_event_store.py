"""The contract of the event store, held by every adapter; where a real KurrentDB can be had, by that one as well."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    Checkpoint,
    EventStore,
    NewEvent,
    StoreConfigurationError,
    StoredEvent,
    StoreUnavailableError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)
from cml_workers.eventstore.sqlite import SqliteEventStore
from support.kurrentdb import may_be_had
from support.kurrentdb_standin import KurrentDbStandIn

Item = StoredEvent | Checkpoint | CaughtUp

KINDS = ["sqlite", "kurrentdb-standin", *(["kurrentdb"] if may_be_had() else [])]


class Place:
    """Where events are kept; every ``opened`` store looks at the same ones."""

    def __init__(self, kind: str, folder: Path, resources: AsyncExitStack, server: str | None = None) -> None:
        self._kind = kind
        self._server = server
        self._folder = folder
        self._resources = resources
        self._node: KurrentDbStandIn | None = None

    async def opened(self) -> EventStore:
        store = await self._new()
        self._resources.push_async_callback(store.close)
        return store

    async def _new(self) -> EventStore:
        match self._kind:
            case "sqlite":
                return SqliteEventStore(self._folder / "events.db")
            case "kurrentdb-standin":
                if self._node is None:
                    self._node = KurrentDbStandIn()
                    await self._node.start()
                    self._resources.push_async_callback(self._node.stop)
                return KurrentDbEventStore(self._node.uri)
            case _:
                assert self._server is not None
                return KurrentDbEventStore(self._server)


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    """The kind of store, and the address of a server for it."""
    return request.param, request.getfixturevalue("kurrentdb_uri") if request.param == "kurrentdb" else None


@pytest.fixture
async def place(server: tuple[str, str | None], tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as resources:
        yield Place(server[0], tmp_path, resources, server[1])


@pytest.fixture
async def store(place: Place) -> EventStore:
    return await place.opened()


@pytest.fixture
def ours() -> str:
    """What all names in a test begin with: a server may hold the streams of others."""
    return f"test-{uuid4().hex}-"


def event(
    type_: str = "Happened", data: bytes = b'{"n": 1}', metadata: bytes = b'{"by": "test"}'
) -> NewEvent:
    return NewEvent(uuid4(), type_, data, metadata)


def events(count: int) -> list[NewEvent]:
    return [event() for _ in range(count)]


def ids(items: Sequence[NewEvent | StoredEvent | Item]) -> list[UUID]:
    return [item.event_id for item in items if isinstance(item, NewEvent | StoredEvent)]


async def followed(
    store: EventStore, until: Callable[[list[Item]], bool], *, prefix: str, after: str | None = None
) -> list[Item]:
    """What a follower is given, until it is enough."""
    seen: list[Item] = []
    async with asyncio.timeout(60), aclosing(store.follow(after=after, prefix=prefix)) as items:
        async for item in items:
            seen.append(item)
            if until(seen):
                break
    return seen


def count(number: int) -> Callable[[list[Item]], bool]:
    return lambda seen: len(ids(seen)) == number


def caught_up(seen: list[Item]) -> bool:
    return isinstance(seen[-1], CaughtUp)


# Appending


async def test_revisions_start_at_0_and_have_no_gaps(store, ours):
    assert await store.append(ours + "a", events(1), expected=NO_STREAM) == 0
    assert await store.append(ours + "a", events(3), expected=0) == 3
    assert await store.append(ours + "a", events(1), expected=3) == 4
    assert [stored.revision for stored in await store.read(ours + "a")] == [0, 1, 2, 3, 4]


async def test_an_event_is_stored_as_it_was_given(store, ours):
    given_ = NewEvent(uuid4(), "Größe.v1", '{"ß": "\\u0000 \U0001f600"}'.encode(), b"{}")
    await store.append(ours + "a", [given_], expected=NO_STREAM)

    [stored] = await store.read(ours + "a")

    assert (stored.event_id, stored.type, stored.data, stored.metadata) == (
        given_.event_id,
        given_.type,
        given_.data,
        given_.metadata,
    )
    assert (stored.stream, stored.revision) == (ours + "a", 0)
    assert stored.recorded_at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - stored.recorded_at) < timedelta(minutes=1)


@pytest.mark.parametrize("expected", [-2, -17])
async def test_any_version_is_no_expectation(store, ours, expected):
    with pytest.raises(ValueError, match="expected version"):
        await store.append(ours + "a", events(1), expected=expected)


async def test_an_append_of_nothing_is_refused(store, ours):
    with pytest.raises(ValueError, match="at least one"):
        await store.append(ours + "a", [], expected=NO_STREAM)
    with pytest.raises(StreamNotFoundError):
        await store.read(ours + "a")


@pytest.mark.parametrize("name", ["", "$all", "$ce-x", "lone \ud800"])
async def test_a_name_that_no_store_takes_is_refused(store, ours, name):
    with pytest.raises(ValueError, match=r"cannot name|surrogates"):
        await store.append(name, events(1), expected=NO_STREAM)
    with pytest.raises(ValueError, match=r"cannot name|surrogates"):
        await store.append(ours + "a", [event(type_=name)], expected=NO_STREAM)


@pytest.mark.parametrize("expected", [NO_STREAM, 0, 2, 100])
async def test_another_revision_is_a_conflict_and_nothing_is_stored(store, ours, expected):
    there = events(2)
    await store.append(ours + "a", there, expected=NO_STREAM)

    with pytest.raises(WrongExpectedVersionError):
        await store.append(ours + "a", events(2), expected=expected)

    assert ids(await store.read(ours + "a")) == ids(there)


async def test_a_missing_stream_has_no_revision_0(store, ours):
    with pytest.raises(WrongExpectedVersionError):
        await store.append(ours + "a", events(1), expected=0)
    with pytest.raises(StreamNotFoundError):
        await store.read(ours + "a")


async def test_a_conflict_leaves_the_appends_beside_it_alone(store, ours):
    outcomes = await asyncio.gather(
        *(store.append(f"{ours}{n}", events(1), expected=n % 2 - 1) for n in range(20)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [int, WrongExpectedVersionError] * 10


async def test_one_of_many_wins(store, ours):
    outcomes = await asyncio.gather(
        *(store.append(ours + "a", events(2), expected=NO_STREAM) for _ in range(10)), return_exceptions=True
    )
    assert outcomes.count(1) == 1
    assert sum(isinstance(outcome, WrongExpectedVersionError) for outcome in outcomes) == 9
    assert len(await store.read(ours + "a")) == 2


async def test_a_repeated_append_is_the_first_one(store, ours):
    first, second = events(2), events(2)
    await store.append(ours + "a", first, expected=NO_STREAM)
    assert await store.append(ours + "a", first, expected=NO_STREAM) == 1
    await store.append(ours + "a", second, expected=1)

    assert await store.append(ours + "a", first, expected=NO_STREAM) == 1
    assert await store.append(ours + "a", second, expected=1) == 3
    assert ids(await store.read(ours + "a")) == ids(first + second)


async def test_the_same_append_twice_at_once_is_one(store, ours):
    same = events(2)
    assert (
        await asyncio.gather(*(store.append(ours + "a", same, expected=NO_STREAM) for _ in range(8)))
        == [1] * 8
    )
    assert ids(await store.read(ours + "a")) == ids(same)


async def test_a_repetition_through_another_store_is_known(store, place, ours):
    first = events(2)
    await store.append(ours + "a", first, expected=NO_STREAM)
    assert await (await place.opened()).append(ours + "a", first, expected=NO_STREAM) == 1


async def test_a_partial_overlap_is_a_conflict(store, ours):
    a, b, c = events(3)
    await store.append(ours + "a", [a, b], expected=NO_STREAM)
    for partly in ([a, c], [c, b], [b, a], [a, b, c], [b]):
        with pytest.raises(WrongExpectedVersionError):
            await store.append(ours + "a", partly, expected=NO_STREAM)
    with pytest.raises(WrongExpectedVersionError):
        await store.append(ours + "a", [b, c], expected=0)
    assert ids(await store.read(ours + "a")) == ids([a, b])


async def test_a_cancelled_append_can_be_repeated(store, ours):
    same = events(1)
    for loops in range(5):
        task = asyncio.create_task(store.append(ours + "a", same, expected=NO_STREAM))
        for _ in range(loops):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert await store.append(ours + "a", same, expected=NO_STREAM) == 0
    assert ids(await store.read(ours + "a")) == ids(same)


ODD_NAMES = ["nul\0", "nul\0\0more", "%", "_", ".*", "a|b", "(", "[a]", "\\d", "^$", "é", "e\u0301", "\U0010ffff", "'", '"', " ", "\n", "x" * 500]  # fmt: skip


async def test_any_text_may_name_a_stream(store, ours):
    given_ = {ours + name: event() for name in ODD_NAMES}
    for name, happened in given_.items():
        await store.append(name, [happened], expected=NO_STREAM)
    for name, happened in given_.items():
        [stored] = await store.read(name)
        assert (stored.stream, stored.event_id) == (name, happened.event_id)


# Reading


async def test_reading_starts_behind_a_revision_and_stops_at_the_limit(store, ours):
    all_ = events(5)
    await store.append(ours + "a", all_, expected=NO_STREAM)

    assert ids(await store.read(ours + "a", after=1)) == ids(all_[2:])
    assert ids(await store.read(ours + "a", limit=2)) == ids(all_[:2])
    assert ids(await store.read(ours + "a", after=0, limit=3)) == ids(all_[1:4])
    assert await store.read(ours + "a", after=4) == []
    assert await store.read(ours + "a", after=100) == []


async def test_a_missing_stream_is_an_error_of_its_own(store, ours):
    with pytest.raises(StreamNotFoundError):
        await store.read(ours + "a")
    with pytest.raises(StreamNotFoundError):
        await store.read(ours + "a", after=3)


async def test_a_limit_is_at_least_1(store, ours):
    with pytest.raises(ValueError, match="below 1"):
        await store.read(ours + "a", limit=0)


async def test_what_was_appended_is_read_at_once_by_others(store, place, ours):
    other = await place.opened()
    for revision in range(10):
        await store.append(ours + "a", events(1), expected=revision - 1)
        assert len(await other.read(ours + "a")) == revision + 1


# Following


async def test_a_follower_gets_all_streams_in_the_order_of_commit(store, ours):
    appended = []
    for n in range(12):
        appended += (some := events(2))
        await store.append(f"{ours}{n % 3}", some, expected=n // 3 * 2 - 1)

    seen = await followed(store, count(24), prefix=ours)

    assert ids(seen) == ids(appended)


async def test_a_followed_event_is_the_one_that_is_read(store, ours):
    await store.append(ours + "a", events(3), expected=NO_STREAM)
    seen = await followed(store, count(3), prefix=ours)
    assert [item for item in seen if isinstance(item, StoredEvent)] == await store.read(ours + "a")


async def test_a_follower_starts_behind_its_position(store, place, ours):
    for n in range(4):
        await store.append(ours + "a", events(1), expected=n - 1)
    stored = await store.read(ours + "a")
    other = await place.opened()
    for n in range(3):
        assert ids(await followed(other, count(3 - n), prefix=ours, after=stored[n].position)) == ids(
            stored[n + 1 :]
        )
    assert ids(await followed(other, caught_up, prefix=ours, after=stored[3].position)) == []


async def test_a_follower_learns_that_it_caught_up_and_then_gets_what_is_new(store, place, ours):
    writer = await place.opened()
    old, new = events(2), events(2)
    await store.append(ours + "a", old, expected=NO_STREAM)
    seen: list[Item] = []
    async with asyncio.timeout(60), aclosing(store.follow(after=None, prefix=ours)) as items:
        async for item in items:
            seen.append(item)
            if len(seen) == 3:
                await writer.append(ours + "b", new, expected=NO_STREAM)
            if len(ids(seen)) == 4:
                break
    assert seen[2] == CaughtUp()
    assert ids(seen) == ids(old + new)


async def test_many_followers_each_get_all(store, ours):
    tasks = [asyncio.create_task(followed(store, count(20), prefix=ours)) for _ in range(5)]
    happened = events(20)
    for n, one in enumerate(happened):
        await store.append(ours + "a", [one], expected=n - 1)
    assert [ids(seen) for seen in await asyncio.gather(*tasks)] == [ids(happened)] * 5


@pytest.mark.parametrize("name", ODD_NAMES[:-1])
async def test_a_prefix_means_itself(store, ours, name):
    inside, exact = event(), event()
    await store.append(f"{ours}a{name}b", [inside], expected=NO_STREAM)
    await store.append(f"{ours}aXb", events(1), expected=NO_STREAM)
    await store.append(f"x-{ours}a{name}b", events(1), expected=NO_STREAM)
    await store.append(f"{ours}a{name}", [exact], expected=NO_STREAM)
    seen = await followed(store, count(2), prefix=f"{ours}a{name}")
    assert ids(seen) == ids([inside, exact])


async def test_without_a_prefix_all_events_come(store, ours):
    happened = events(2)
    await store.append(ours + "a", happened[:1], expected=NO_STREAM)
    await store.append("other-" + ours, happened[1:], expected=NO_STREAM)
    seen = await followed(store, caught_up, prefix="")
    assert ids(happened)[-1] in ids(seen)
    assert ids(happened)[0] in ids(seen)


async def test_a_checkpoint_comes_where_matching_events_are_rare(store, ours):
    for n in range(10):
        await store.append(f"other-{ours}{n}", events(100), expected=NO_STREAM)
    seen = await followed(store, lambda seen: isinstance(seen[-1], Checkpoint), prefix=ours)
    checkpoint = seen[-1]
    assert isinstance(checkpoint, Checkpoint)

    late = event()
    await store.append(ours + "a", [late], expected=NO_STREAM)

    assert ids(await followed(store, count(1), prefix=ours, after=checkpoint.position)) == ids([late])


async def test_a_backlog_of_thousands_comes_complete(store, ours):
    for n in range(25):
        await store.append(f"{ours}{n}", events(100), expected=NO_STREAM)
    seen = await followed(store, caught_up, prefix=ours)
    places = [(item.stream, item.revision) for item in seen if isinstance(item, StoredEvent)]
    assert places == [(f"{ours}{n}", revision) for n in range(25) for revision in range(100)]


@pytest.mark.parametrize("position", ["", "elsewhere", "-1", "C:1", "1e3", "99999999999999999999"])
async def test_a_position_of_another_store_is_refused(store, ours, position):
    with pytest.raises(StoreConfigurationError, match="position"):
        await followed(store, count(1), prefix=ours, after=position)


async def test_a_follower_can_be_cancelled(store, ours):
    task = asyncio.create_task(followed(store, count(1), prefix=ours))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.ping()


# Opening and closing


async def test_a_store_that_answers_can_be_pinged(store):
    await store.ping()


async def test_closing_ends_followers_without_an_error(store, ours):
    tasks = [asyncio.create_task(followed(store, lambda _: False, prefix=ours)) for _ in range(2)]
    await store.append(ours + "a", events(1), expected=NO_STREAM)
    await asyncio.sleep(0.1)
    await store.close()
    for seen in await asyncio.gather(*tasks):
        assert len(ids(seen)) == 1


async def test_a_closed_store_takes_no_more_calls(store, ours):
    await store.append(ours + "a", events(1), expected=NO_STREAM)
    await store.close()
    await store.close()
    for call in (
        store.append(ours + "a", events(1), expected=0),
        store.read(ours + "a"),
        store.ping(),
    ):
        with pytest.raises(StoreUnavailableError, match="closed"):
            await call
    assert await followed(store, count(1), prefix=ours) == []


async def test_a_store_never_used_can_be_closed(store):
    await store.close()


async def test_closing_during_appends_leaves_none_waiting(store, place, ours):
    tasks = [
        asyncio.create_task(store.append(f"{ours}{n}", events(1), expected=NO_STREAM)) for n in range(50)
    ]
    await asyncio.sleep(0)
    await store.close()
    async with asyncio.timeout(60):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {int, StoreUnavailableError}
    again = await place.opened()
    for n, outcome in enumerate(outcomes):
        if outcome == 0:
            assert len(await again.read(f"{ours}{n}")) == 1


# Any sequence of calls, against a model

STREAMS = ("a", "ab", "b%")
appends = st.tuples(st.sampled_from(STREAMS), st.integers(-1, 4), st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))  # fmt: skip


@pytest.mark.parametrize("kind", ["sqlite", "kurrentdb-standin"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(appends, max_size=15), prefix=st.sampled_from(["", "a", "ab", "b%", "%"]))
async def test_any_appends_end_as_in_a_plain_list(kind, calls, prefix):
    log: list[tuple[str, UUID]] = []
    with TemporaryDirectory() as folder:
        async with AsyncExitStack() as resources:
            store = await Place(kind, Path(folder), resources).opened()
            live = asyncio.create_task(
                followed(store, lambda seen: ids(seen)[-1:] == [UUID(int=99)], prefix=prefix)
            )
            for stream, expected, numbers in calls:
                there = [id_ for name, id_ in log if name == stream]
                # An id belongs to a stream and a place, as those of our events do.
                new = [
                    NewEvent(UUID(int=number + 10 * place), "T", b"{}", b"{}")
                    for place, number in enumerate(numbers, start=expected + 1)
                ]
                try:
                    last = await store.append(stream, new, expected=expected)
                except WrongExpectedVersionError:
                    assert expected != len(there) - 1
                    assert there[expected + 1 :][: len(new)] != ids(new)
                    continue
                assert last == expected + len(new)
                if expected == len(there) - 1:
                    log += [(stream, id_) for id_ in ids(new)]
                else:
                    assert there[expected + 1 :][: len(new)] == ids(new)
            await store.append(prefix or "z", [NewEvent(UUID(int=99), "T", b"{}", b"{}")], expected=len([1 for name, _ in log if name == prefix]) - 1)  # fmt: skip
            log.append((prefix or "z", UUID(int=99)))

            matching = [id_ for name, id_ in log if name.startswith(prefix)]
            assert ids(await live) == matching
            seen = await followed(store, count(len(matching)), prefix=prefix)
            positions = [item.position for item in seen if isinstance(item, StoredEvent)]
            for n in range(0, len(matching) - 1, 3):
                rest = await followed(store, count(len(matching) - n - 1), prefix=prefix, after=positions[n])
                assert ids(rest) == matching[n + 1 :]
