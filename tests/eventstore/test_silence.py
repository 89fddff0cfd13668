"""A follower that gets nothing: at the end of the store, or behind a subscription that is silent."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import uuid4

from structlog.testing import capture_logs

from cml_workers.eventstore.following import Following, follow_from
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import NO_STREAM, CaughtUp, Item, NewEvent, StoredEvent
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.runtime.role import STALLED, lag, not_following, utc_now
from support.kurrentdb_standin import KurrentDbStandIn
from support.tcp_proxy import TcpProxy, Trap
from support.unreliable import GoneError, Unreliable

QUIET = 0.2


class Scripted:
    """A store that gives these items, one list at each ``follow``, and then nothing, without an end."""

    def __init__(self, *scripts: list[Item]) -> None:
        self.scripts = list(scripts)
        self.asked: list[str | None] = []

    async def follow(self, *, after: str | None, prefix: str = "") -> AsyncIterator[Item]:
        self.asked.append(after)
        for item in self.scripts.pop(0) if self.scripts else ():
            yield item
        await asyncio.Event().wait()


def event(position: str, stream: str = "s", revision: int = 0) -> StoredEvent:
    return StoredEvent(uuid4(), "T", b"{}", b"{}", stream, revision, position, utc_now())


@asynccontextmanager
async def follower(
    store: object, *, following: Following | None = None, **options: object
) -> AsyncIterator[list[Item]]:
    handled: list[Item] = []

    async def saved() -> str | None:
        return None

    async def handle(items: object) -> None:
        handled.extend(items)  # type: ignore[arg-type]

    task = asyncio.create_task(
        follow_from(store, saved, handle, **{"quiet": QUIET, **options}, following=following)  # type: ignore[arg-type]
    )
    try:
        yield handled
    finally:
        assert not task.done() or task.exception() is None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_silent_subscription_is_replaced_behind_the_last_item():
    one, two = event("1"), event("2", revision=1)
    store, following = Scripted([one], [], [two, CaughtUp()]), Following()
    with capture_logs() as logs:
        async with follower(store, following=following) as handled:
            await until(lambda: len(handled) == 3)
    assert handled == [one, two, CaughtUp()]
    assert store.asked[:3] == [None, "1", "1"]
    assert following.caught_up
    assert logs == []  # most silence is that of a quiet system


async def test_a_follower_that_waits_for_its_handler_is_not_silent():
    store = Scripted([event(str(number), revision=number) for number in range(5)])
    handling = asyncio.Event()

    async def slowly(_items: object) -> None:
        await handling.wait()

    async def saved() -> None:
        return None

    task = asyncio.create_task(follow_from(store, saved, slowly, quiet=0.05, most=1))  # type: ignore[arg-type]
    await asyncio.sleep(0.5)
    assert store.asked == [None]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_at_the_end_of_a_real_store_silence_is_confirmed_again_and_again(tmp_path):
    store, following = SqliteEventStore(tmp_path / "events.sqlite3"), Following()
    await store.append("s", [NewEvent(uuid4(), "T", b"{}", b"{}")], expected=NO_STREAM)
    async with follower(store, following=following) as handled:
        await until(lambda: handled.count(CaughtUp()) >= 3)
        assert len([each for each in handled if isinstance(each, StoredEvent)]) == 1
        assert lag(following) == 0
        assert not_following(following) is None
    await store.close()


async def test_a_connection_to_kurrentdb_that_is_silent_delays_no_event():
    """Neither an event nor an error comes; the client itself would notice it after twenty seconds or more."""
    node = KurrentDbStandIn()
    await node.start()
    async with TcpProxy(node.port) as network:
        following = KurrentDbEventStore(f"esdb://127.0.0.1:{network.port}?tls=false")
        writing = KurrentDbEventStore(node.uri)
        async with follower(following) as handled:
            await until(lambda: CaughtUp() in handled)
            armed = network.arm(Trap(b"of-the-silence", "client", "silence", seconds=3600))
            for number in range(3):
                data = f'"of-the-silence {number}"'.encode()
                await writing.append("s", [NewEvent(uuid4(), "T", data, b"{}")], expected=number - 1)
            await armed.fired.wait()
            async with asyncio.timeout(10):
                await until(lambda: len([each for each in handled if isinstance(each, StoredEvent)]) == 3)
        assert [each.revision for each in handled if isinstance(each, StoredEvent)] == [0, 1, 2]
        network.heal()
        await following.close()
        await writing.close()
    await node.stop()


async def test_in_an_outage_a_follower_waits_and_goes_on_with_the_others():
    part, following = Unreliable(), Following()
    one = event("1")

    class Store(Scripted):
        async def follow(self, *, after: str | None, prefix: str = "") -> AsyncIterator[Item]:
            part.use()
            async for item in super().follow(after=after, prefix=prefix):
                yield item

    store = Store([one])
    part.works = False
    with capture_logs() as logs:
        async with follower(store, following=following, outages=part.outages) as handled:
            await until(part.dependency.problem)
            await asyncio.sleep(0.3)
            assert store.asked == []
            part.works = True
            await until(lambda: handled == [one])
    assert [each["event"].partition(":")[0] for each in logs] == ["outage begins", "outage ends"]
    assert following.attempts == 0


async def test_a_failure_that_is_no_outage_is_tried_again_after_a_pause():
    part = Unreliable()
    pauses: list[float] = []
    one = event("1")

    class Store(Scripted):
        async def follow(self, *, after: str | None, prefix: str = "") -> AsyncIterator[Item]:
            if len(pauses) < 3:
                raise GoneError("of this subscription")
            async for item in super().follow(after=after, prefix=prefix):
                yield item

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async with follower(Store([one]), outages=part.outages, backoff=float, sleep=sleep) as handled:
        await until(lambda: handled == [one])
    assert pauses == [1, 2, 3]


async def test_a_follower_is_judged_by_its_last_progress():
    now = asyncio.get_running_loop().time()
    limit = STALLED.total_seconds()
    assert not_following(Following()) is None
    assert not_following(Following(attempts=50, moved_at=now - limit / 2)) is None
    stalled = not_following(Following(moved_at=now - limit - 1))
    assert stalled is not None
    assert "neither an event nor the end came" in stalled
    failing = not_following(Following(attempts=50, moved_at=now - limit - 1))
    assert failing is not None
    assert "failed 50 times" in failing


async def test_a_follower_that_lags_and_moves_says_so_and_is_fine():
    now = asyncio.get_running_loop().time()
    a_year_ago = utc_now() - timedelta(days=365)
    following = Following(last_event_at=a_year_ago, moved_at=now, event_at=now)
    assert not_following(following) is None
    assert lag(following) > 3600 * 24 * 364
