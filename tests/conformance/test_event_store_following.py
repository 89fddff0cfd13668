"""The contract of the event store, which every adapter is held to: following."""

import asyncio
from contextlib import aclosing

import pytest

from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    Checkpoint,
    Item,
    StoreConfigurationError,
    StoredEvent,
)
from support.event_stores import ODD_NAMES, caught_up, count, event, events, followed, ids


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


async def test_the_end_is_behind_what_is_stored_and_before_what_comes(store, ours):
    before = await store.end()
    await store.append(ours + "a", events(2), expected=NO_STREAM)
    end = await store.end()
    stored = await store.read(ours + "a")
    assert before is None or store.is_after(stored[0].position, before)
    assert not store.is_after(stored[-1].position, end)
    await store.append(ours + "a", new := events(1), expected=1)
    assert ids(await followed(store, count(1), prefix=ours, after=end)) == ids(new)


async def test_a_follower_learns_that_it_caught_up_and_then_gets_what_is_new(store, place, ours):
    writer = await place.opened()
    old, new = events(2), events(2)
    await store.append(ours + "a", old, expected=NO_STREAM)
    seen: list[Item] = []
    async with asyncio.timeout(60), aclosing(store.follow(after=None, prefix=ours)) as items:
        async for item in items:
            if isinstance(item, Checkpoint):  # of what others have appended
                continue
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
    """From our first one on: of those before there may be any number."""
    first, *happened = events(3)
    await store.append(ours + "a", [first], expected=NO_STREAM)
    begin = (await store.last(ours + "a")).position
    await store.append(ours + "a", happened[:1], expected=0)
    await store.append("other-" + ours, happened[1:], expected=NO_STREAM)

    def have_come(seen: list[Item]) -> bool:
        return set(ids(happened)) <= set(ids(seen))

    seen = await followed(store, have_come, prefix="", after=begin)
    assert [each for each in ids(seen) if each in ids(happened)] == ids(happened)
    assert first.event_id not in ids(seen)


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
async def test_a_position_of_another_store_is_an_error_of_configuration(store, ours, position):
    with pytest.raises(StoreConfigurationError, match="position"):
        await followed(store, count(1), prefix=ours, after=position)


async def test_a_follower_can_be_cancelled(store, ours):
    task = asyncio.create_task(followed(store, count(1), prefix=ours))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.ping()
