"""Following for as long as the process lives."""

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from cml_workers.eventstore.following import FIRST_PAUSE, LONGEST_PAUSE, Following, backoff, follow_from
from cml_workers.eventstore.port import (
    CaughtUp,
    Checkpoint,
    StoreConfigurationError,
    StoredEvent,
    StoreUnavailableError,
)

AT = datetime(2030, 1, 2, tzinfo=UTC)
LOST = StoreUnavailableError("lost")


def event(position):
    return StoredEvent(uuid4(), "T", b"{}", b"{}", "s", 0, position, AT)


class ScriptedStore:
    """Plays a script at each ``follow``: items to hand over, errors to raise."""

    def __init__(self, *scripts):
        self._scripts = list(scripts)
        self.asked = []
        self.open = 0

    async def follow(self, *, after, prefix=""):
        self.asked.append((after, prefix))
        self.open += 1
        try:
            for step in self._scripts.pop(0):
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.open -= 1


class Follower:
    """Handles and saves, and counts the pauses. Gets one item at a time, unless ``most`` says otherwise."""

    def __init__(self, *, save_every=1, most=1):
        self.handled = []
        self.batches = []
        self.saved_position = None
        self.pauses = []
        self.following = Following()
        self._save_every = save_every
        self._most = most

    async def run(self, store, handle=None, prefix="p-"):
        await follow_from(
            store,
            self.saved,
            handle or self.handle,
            prefix=prefix,
            most=self._most,
            following=self.following,
            backoff=float,
            sleep=self.sleep,
        )

    async def saved(self):
        return self.saved_position

    async def handle(self, items):
        self.batches.append(len(items))
        for item in items:
            self.handled.append(item)
            if isinstance(item, StoredEvent) and len(self.handled) % self._save_every == 0:
                self.saved_position = item.position

    async def sleep(self, seconds):
        self.pauses.append(seconds)


async def test_items_are_handed_over_until_the_store_closes():
    items = [event("1"), Checkpoint("5"), CaughtUp()]
    follower, store = Follower(), ScriptedStore(items)
    await follower.run(store)
    assert follower.handled == items
    assert store.asked == [(None, "p-")]
    assert follower.pauses == []


async def test_what_is_at_hand_is_handed_over_together():
    items = [event(str(number)) for number in range(1, 8)]
    follower = Follower(most=3)
    await follower.run(ScriptedStore([*items, CaughtUp(), LOST], []))
    assert follower.handled == [*items, CaughtUp()]
    assert max(follower.batches) == 3
    assert follower.pauses == [1]  # the error comes behind what was delivered before it


async def test_little_is_handed_over_at_once():
    class Slow(ScriptedStore):
        async def follow(self, *, after, prefix=""):
            async for item in super().follow(after=after, prefix=prefix):
                yield item
                await asyncio.sleep(0.001)

    follower = Follower(most=100)
    await follower.run(Slow([event("1"), event("2"), event("3")]))
    assert follower.batches == [1, 1, 1]


async def test_a_lost_subscription_is_resumed_behind_the_saved_position():
    one, two, three = event("1"), event("2"), event("3")
    follower, store = Follower(save_every=2), ScriptedStore([one, two, three, LOST], [three])
    await follower.run(store)
    assert store.asked == [(None, "p-"), ("2", "p-")]
    assert follower.handled == [one, two, three, three]


async def test_pauses_grow_with_failures_in_a_row_and_start_again_after_an_item():
    follower, store = Follower(), ScriptedStore([LOST], [LOST], [LOST], [event("1"), LOST], [LOST], [])
    await follower.run(store)
    assert follower.pauses == [1, 2, 3, 1, 2]


async def test_what_is_known_of_a_follower():
    follower = Follower()
    seen = []

    async def handle(item):
        seen.append((follower.following.position, follower.following.caught_up, follower.following.attempts))

    await follower.run(
        ScriptedStore([event("1"), CaughtUp(), event("2"), LOST], [LOST], [Checkpoint("7"), CaughtUp()]),
        handle,
    )
    assert seen == [(None, False, 0), ("1", False, 0), ("1", True, 0), ("2", False, 2), ("7", False, 0)]
    assert follower.following == Following(position="7", last_event_at=AT, caught_up=True, attempts=0)


async def test_an_error_of_the_handler_ends_it_and_closes_the_subscription():
    async def handle(item):
        raise KeyError("poison")

    follower, store = Follower(), ScriptedStore([event("1"), event("2")])
    with pytest.raises(KeyError):
        await follower.run(store, handle)
    assert store.open == 0
    assert follower.following.position is None


async def test_a_handler_that_found_the_store_gone_gets_the_item_again():
    items = []

    async def handle(arrived):
        items.extend(arrived)
        if len(items) < 3:
            raise StoreUnavailableError("gone while reading")

    follower = Follower()
    await follower.run(ScriptedStore(*[[event("1")]] * 3), handle)
    assert len(items) == 3
    assert follower.pauses == [1, 2]


async def test_a_store_that_will_never_answer_is_not_asked_again():
    follower, store = Follower(), ScriptedStore([StoreConfigurationError("bad password")])
    with pytest.raises(StoreConfigurationError):
        await follower.run(store)


async def test_cancelling_closes_the_subscription():
    async def handle(item):
        await asyncio.sleep(60)

    store = ScriptedStore([event("1")])
    task = asyncio.create_task(Follower().run(store, handle))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.open == 0


def test_backoff_doubles_up_to_its_cap_and_half_of_it_is_jitter():
    assert [backoff(n, spread=lambda: 1.0) for n in (1, 2, 3)] == [
        FIRST_PAUSE,
        2 * FIRST_PAUSE,
        4 * FIRST_PAUSE,
    ]
    assert backoff(1_000_000, spread=lambda: 1.0) == LONGEST_PAUSE
    assert backoff(1_000_000, spread=lambda: 0.0) == LONGEST_PAUSE / 2
    assert FIRST_PAUSE / 2 <= backoff(1) <= FIRST_PAUSE
