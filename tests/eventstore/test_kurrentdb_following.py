"""Following KurrentDB: subscriptions break, and nothing is skipped."""

import asyncio
from contextlib import aclosing

import pytest

from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    StoredEvent,
    StoreUnavailableError,
)
from support.kurrentdb_followers import Tail, events, until


async def test_an_append_that_reconnects_does_not_end_a_follower(node, store):
    async with aclosing(store.follow(after=None)) as items:
        assert await anext(items) == CaughtUp()
        node.faults.unavailable = 1
        await store.append("a", events(), expected=NO_STREAM)
        item = await anext(items)
        assert isinstance(item, StoredEvent)
        assert item.stream == "a"


@pytest.mark.parametrize("how", ["drop_subscriptions", "end_subscriptions", "consumer_too_slow", "restart"])
async def test_a_subscription_that_breaks_says_so(node, store, how):
    async with aclosing(store.follow(after=None)) as items:
        assert await anext(items) == CaughtUp()
        if how == "restart":
            await node.restart()
        else:
            getattr(node, how)()
        with pytest.raises(StoreUnavailableError):
            async with asyncio.timeout(60):
                await anext(items)


@pytest.mark.parametrize("how", ["drop_subscriptions", "end_subscriptions", "consumer_too_slow"])
async def test_following_goes_on_without_skipping(node, store, how):
    tail = Tail(store, prefix="a")
    for n in range(60):
        await store.append("a", events(), expected=n - 1)
        if n % 15 == 7:
            await until(lambda: node.subscriptions == 1)
            getattr(node, how)()
    expected = [event.position for event in await store.read("a")]
    await until(lambda: tail.positions[-1:] == expected[-1:])
    await until(lambda: tail.following.caught_up)
    assert list(dict.fromkeys(tail.positions)) == expected
    assert tail.following.attempts == 0
    await tail.stop()


async def test_leaving_a_follower_leaves_no_subscription(node, store):
    for _ in range(3):
        async with aclosing(store.follow(after=None)) as items:
            await anext(items)
            assert node.subscriptions == 1
        await until(lambda: node.subscriptions == 0)


async def test_the_systems_own_events_are_not_followed(node, store, client):
    await store.append("a", events(), expected=NO_STREAM)
    await client.set_stream_metadata("a", metadata={"purpose": "test"})
    await store.append("b", events(), expected=NO_STREAM)
    seen = []
    async with aclosing(store.follow(after=None)) as items:
        async for item in items:
            if item == CaughtUp():
                break
            seen.append(item.stream)
    assert seen == ["a", "b"]


async def test_a_position_whose_record_was_scavenged_away_leaves_nothing_out(node, store):
    """The server's own subscription would leave out the first record behind it."""
    await store.append("kept", events(2), expected=NO_STREAM)
    await store.append("trimmed", events(3), expected=NO_STREAM)
    gone = (await store.read("trimmed"))[0].position
    await store.append("kept", events(2), expected=1)
    await store.trim("trimmed", 1)
    node.log.scavenge()
    async with aclosing(store.follow(after=gone, prefix="kept")) as items:
        found = [await anext(items) for _ in range(3)]
    assert found == [*(await store.read("kept", after=1)), CaughtUp()]
    async with aclosing(store.follow(after=gone)) as items:
        first = await anext(items)
    assert isinstance(first, StoredEvent)
    assert (first.stream, first.revision) == ("trimmed", 2)


async def test_where_the_record_behind_a_scavenged_one_is_followed_it_comes_once(node, store):
    await store.append("trimmed", events(2), expected=NO_STREAM)
    gone = (await store.read("trimmed"))[0].position
    await store.append("kept", events(3), expected=NO_STREAM)
    await store.trim("trimmed", 1)
    await store.append("trimmed", events(1), expected=1)
    node.log.scavenge()
    async with aclosing(store.follow(after=gone, prefix="kept")) as items:
        found = [await anext(items) for _ in range(4)]
    assert found == [*(await store.read("kept")), CaughtUp()]


async def test_the_trimmed_stream_is_described_once(node, store):
    await store.append("a", events(5), expected=NO_STREAM)
    for _ in range(3):
        await store.trim("a", 2)
    assert len(node.log.streams["$$a"]) == 1
