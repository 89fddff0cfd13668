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
