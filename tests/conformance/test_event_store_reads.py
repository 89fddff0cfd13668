"""The contract of the event store, which every adapter is held to: reading, opening and closing, and any sequence of calls."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cml_workers.eventstore.port import (
    NO_STREAM,
    NewEvent,
    StoredEvent,
    StoreUnavailableError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)
from support.event_stores import Place, count, events, followed, ids


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


STREAMS = ("a", "ab", "b%")


appends = st.tuples(st.sampled_from(STREAMS), st.integers(-1, 4), st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))  # fmt: skip


@pytest.mark.parametrize("kind", ["sqlite", "kurrentdb-standin"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(appends, max_size=15), prefix=st.sampled_from(["", "a", "ab", "b%", "%"]))
async def test_any_appends_end_as_in_a_plain_list(kind, calls, prefix):
    log: list[tuple[str, UUID]] = []
    with TemporaryDirectory() as folder:
        async with AsyncExitStack() as resources:
            store = await Place(kind, Path(folder), resources, shared=False).opened()
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


async def test_the_last_event_of_a_stream(store, ours):
    with pytest.raises(StreamNotFoundError):
        await store.last(ours + "a")
    first, second = events(2)
    await store.append(ours + "a", [first], expected=NO_STREAM)
    await store.append(ours + "ab", events(3), expected=NO_STREAM)
    assert (await store.last(ours + "a")).event_id == first.event_id
    await store.append(ours + "a", [second], expected=0)
    found = await store.last(ours + "a")
    assert (found.event_id, found.revision) == (second.event_id, 1)
    assert found == (await store.read(ours + "a", after=0))[0]


async def test_a_trimmed_stream_keeps_its_last_events_and_its_revisions(store, place, ours):
    await store.append(ours + "a", events(10), expected=NO_STREAM)
    await store.append(ours + "b", events(10), expected=NO_STREAM)
    await store.trim(ours + "a", 3)
    for revision in range(10, 15):
        await store.append(ours + "a", events(1), expected=revision - 1)
    await store.trim(ours + "a", 3)
    other = await place.opened()
    for reader in (store, other):
        assert [each.revision for each in await reader.read(ours + "a", after=11)] == [12, 13, 14]
        assert (await reader.last(ours + "a")).revision == 14
        for after in (NO_STREAM, 10):
            with pytest.raises(StreamDeletedError):
                await reader.read(ours + "a", after=after)
        assert len(await reader.read(ours + "b")) == 10
    with pytest.raises(WrongExpectedVersionError):
        await store.append(ours + "a", events(1), expected=NO_STREAM)


async def test_a_stream_of_fewer_events_loses_none_when_it_is_trimmed(store, ours):
    await store.append(ours + "a", events(2), expected=NO_STREAM)
    await store.trim(ours + "a", 2)
    await store.trim(ours + "a", 5)
    assert len(await store.read(ours + "a")) == 2
    with pytest.raises(ValueError, match="at least one event"):
        await store.trim(ours + "a", 0)


async def test_a_follower_goes_on_from_a_position_that_was_trimmed_away(store, ours):
    await store.append(ours + "a", events(5), expected=NO_STREAM)
    trimmed = (await store.read(ours + "a"))[2].position
    await store.append(ours + "b", events(2), expected=NO_STREAM)
    await store.trim(ours + "a", 1)
    seen = await followed(store, count(2), prefix=ours + "b", after=trimmed)
    assert ids(seen) == ids(await store.read(ours + "b"))
