"""The contract of the event store, which every adapter is held to: appending."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from cml_workers.eventstore.port import (
    NO_STREAM,
    NewEvent,
    StreamNotFoundError,
    WrongExpectedVersionError,
)
from support.event_stores import ODD_NAMES, event, events, ids


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


async def test_an_append_of_nothing_is_an_error(store, ours):
    with pytest.raises(ValueError, match="at least one"):
        await store.append(ours + "a", [], expected=NO_STREAM)
    with pytest.raises(StreamNotFoundError):
        await store.read(ours + "a")


@pytest.mark.parametrize("name", ["", "$all", "$ce-x", "lone \ud800"])
async def test_a_name_that_no_store_accepts_is_an_error(store, ours, name):
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


async def test_any_text_may_name_a_stream(store, ours):
    given_ = {ours + name: event() for name in ODD_NAMES}
    for name, happened in given_.items():
        await store.append(name, [happened], expected=NO_STREAM)
    for name, happened in given_.items():
        [stored] = await store.read(name)
        assert (stored.stream, stored.event_id) == (name, happened.event_id)
