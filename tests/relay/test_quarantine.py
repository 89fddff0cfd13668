"""Events that the relay cannot publish: their workers wait, all others go on, and nothing comes out of order or is lost."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from cml_contracts.envelope import EventEnvelope
from cml_workers.bus.port import BusUnavailableError, Outgoing
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.following import follow_from
from cml_workers.eventstore.names import WORKER_STREAMS, stream_of
from cml_workers.eventstore.port import NO_STREAM, EventStore, Item, NewEvent, StoredEvent
from cml_workers.eventstore.quarantine import RELAY, Decision, Quarantine, What
from cml_workers.eventstore.relay_stream import begin_if_new, load_saved
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import append, load, published
from cml_workers.foundation.tasks import ended
from cml_workers.relay.checkpoint import RelayCheckpoint
from cml_workers.relay.relay import Relay
from support.broken import NAMES_OF_OTHERS, NOT_PUBLISHED, Mortal, append_raw, binary, newer_type, raw
from support.given import NOW, created, recorded
from support.relaying import no_longer_under_way

CREATED = created()
BROKEN = b'{"broken": NaN}'
TAKE_UP = Decision(What.TAKEN_UP, "ann", None, "it is repaired")
SKIP = Decision(What.SKIPPED, "ann", None, "of no use")


class Place:
    """A store, and what subscribers got of it from all relays that there were."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.published: list[str] = []
        self.away = False
        """RabbitMQ does not answer."""
        self.relay: Relay

    @asynccontextmanager
    async def process(self, store: EventStore | None = None) -> AsyncIterator[None]:
        """A relay as its role composes it, until the process is killed."""
        store = store or self.store

        async def publish(message: Outgoing, /) -> None:
            await asyncio.sleep(0)
            if self.away:
                raise BusUnavailableError("away")
            if isinstance(store, Mortal) and store.died:
                await asyncio.Event().wait()
            if message.exchange and message.exchange.name == "cml.events":
                self.published.append(message.message_id)

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(min(seconds, 0.01))

        checkpoint = RelayCheckpoint(store, new_id=uuid4, sleep=sleep)
        self.relay = relay = Relay(
            store=store,
            waiting=checkpoint.waiting,
            publish=publish,
            routed=no_longer_under_way,
            load=checkpoint.load,
            save=checkpoint.save,
            end=store.end,
            source="/test",
            now=lambda: NOW,
            sleep=sleep,
        )
        following = follow_from(store, relay.begin, relay.handle, prefix=WORKER_STREAMS, sleep=sleep)
        tasks = [asyncio.create_task(following), asyncio.create_task(relay.keep_saving(sleep))]
        try:
            yield
        finally:
            for task in tasks:
                await ended(task)
            await relay.end()

    async def worker(self, *events: NewEvent) -> str:
        """A new one, with these events behind its creation; its stream."""
        worker = Worker(uuid4())
        await append(self.store, worker, [(CREATED, recorded(worker, CREATED, NOW, "c").metadata)])
        stream = stream_of(worker.id)
        if events:
            await append_raw(self.store, stream, *events)
        return stream

    async def ids(self, *streams: str) -> list[str]:
        return [str(each.event_id) for stream in streams for each in await self.store.read(stream)]

    async def quarantine(self) -> Quarantine:
        quarantine = Quarantine(self.store, RELAY)
        await quarantine.load()
        return quarantine

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_out(self, ids: Sequence[str]) -> None:
        await self.until(lambda: {*ids} <= {*self.published})

    async def until_saved(self, position: str) -> None:
        async with asyncio.timeout(60):
            while (saved := await load_saved(self.store)) is None or saved.position != position:
                await asyncio.sleep(0.005)

    def first_seen(self, among: Sequence[str]) -> list[str]:
        """In which order each of these came first."""
        return [each for each in dict.fromkeys(self.published) if each in among]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    await begin_if_new(store, uuid4)
    yield Place(store)
    await store.close()


@pytest.mark.parametrize("kind", NOT_PUBLISHED)
async def test_a_broken_event_holds_its_worker_and_nobody_else(place: Place, kind: str):
    stuck = await place.worker(newer_type(), NOT_PUBLISHED[kind](), newer_type())
    other = await place.worker(newer_type())
    async with place.process():
        await place.until_out(await place.ids(other))
        await append_raw(place.store, stuck, newer_type())
        later = await append_raw(place.store, other, newer_type())
        await place.until_out(await place.ids(other))
        await place.until_saved(later[-1].position)  # it goes on
        assert place.relay.held.counts()["workers_held"] == 1
        warning = place.relay.held.warning()
        assert warning is not None
        assert f"{stuck}@2 at position" in warning
        assert place.relay.problem() is None
    assert place.published == place.first_seen(place.published)
    assert place.first_seen(await place.ids(stuck)) == (await place.ids(stuck))[:2]
    (case,) = (await place.quarantine()).undecided
    event = (await place.store.read(stuck))[2]
    assert (case.broken.stream, case.broken.revision) == (stuck, 2)
    assert (case.broken.position, case.broken.event_id) == (event.position, event.event_id)
    assert case.broken.reason


@pytest.mark.parametrize("name", NAMES_OF_OTHERS)
async def test_streams_of_others_are_left_out_and_counted(place: Place, name: str):
    await append_raw(place.store, f"{WORKER_STREAMS}{name}", binary(), raw("cml.worker.created.v1"))
    ours = await place.worker(newer_type())
    async with place.process():
        await place.until_out(await place.ids(ours))
        assert place.relay.held.counts()["events_not_ours"] == 2
        assert place.relay.held.warning() is None
        await place.until_saved((await place.store.read(ours))[-1].position)
    assert place.published == await place.ids(ours)
    assert (await place.quarantine()).cases == {}


async def test_a_store_with_streams_of_others_alone_is_a_new_one(tmp_path: Path):
    """Else the relay would miss a checkpoint that never was."""
    store = SqliteEventStore(tmp_path / "others.sqlite3")
    await append_raw(store, f"{WORKER_STREAMS}pool", binary())
    assert await begin_if_new(store, uuid4) is not None
    await store.close()


async def test_what_an_operator_skips_is_left_out_and_the_worker_catches_up(place: Place):
    stuck = await place.worker(raw("cml.broken.v1", BROKEN), newer_type(), newer_type())
    async with place.process():
        await place.until(lambda: place.relay.held.counts()["workers_held"])
        await (await place.quarantine()).decide(stuck, 1, SKIP)
        ids = await place.ids(stuck)
        expected = [ids[0], *ids[2:]]
        await place.until_out(expected)
        await place.until(lambda: not place.relay.held.counts()["workers_held"])
        await append_raw(place.store, stuck, newer_type())
        expected += (await place.ids(stuck))[-1:]
        await place.until_out(expected)
        await place.until_saved((await place.store.read(stuck))[-1].position)
        assert place.relay.held.warning() is None
    assert place.published == expected
    async with place.process():  # which follows again
        await append_raw(place.store, stuck, newer_type())
        expected += (await place.ids(stuck))[-1:]
        await place.until_out(expected)
    assert place.published == expected


async def test_what_was_not_published_before_the_broken_event_comes_first(place: Place):
    """The broken event was recorded while RabbitMQ was away, so the checkpoint lies before all events of the worker."""
    stuck = await place.worker(raw("cml.broken.v1", BROKEN), newer_type())
    place.away = True
    async with place.process():
        await place.until(lambda: place.relay.held.counts()["workers_held"])
        await place.relay.save()
    saved = await load_saved(place.store)
    assert saved is not None
    assert (saved.position, {*saved.waiting}) == (None, {stuck})
    await (await place.quarantine()).decide(stuck, 1, SKIP)
    place.away = False

    class Slow(Mortal):
        async def follow(self, *, after: str | None, prefix: str = "") -> AsyncGenerator[Item, None]:
            await asyncio.sleep(0.3)  # longer than it takes to read and publish what waits
            async for item in super().follow(after=after, prefix=prefix):
                yield item

    async with place.process(Slow(place.store, 10_000, late=True)):
        ids = await place.ids(stuck)
        await place.until_out([ids[0], ids[2]])
    assert place.published == [ids[0], ids[2]]


async def test_a_replica_that_lags_behind_what_has_passed_is_asked_again(place: Place):
    stuck = await place.worker(raw("cml.broken.v1", BROKEN), newer_type(), newer_type())

    class Lagging(Mortal):
        shown = 1

        async def read(
            self, stream: str, *, after: int = NO_STREAM, limit: int | None = None
        ) -> list[StoredEvent]:
            found = await super().read(stream, after=after, limit=limit)
            return [each for each in found if stream != stuck or each.revision <= self.shown]

    lagging = Lagging(place.store, 10_000, late=True)
    async with place.process(lagging):
        await place.until(lambda: place.relay.held.counts()["workers_held"])
        await (await place.quarantine()).decide(stuck, 1, SKIP)
        await asyncio.sleep(0.2)  # it may look a few times
        assert place.relay.held.counts()["workers_held"] == 1
        lagging.shown = 3
        ids = await place.ids(stuck)
        await place.until_out(ids[2:])
        await place.until(lambda: not place.relay.held.counts()["workers_held"])
    assert place.published == [ids[0], *ids[2:]]


async def test_what_is_taken_up_too_early_comes_into_quarantine_again(place: Place):
    stuck = await place.worker(raw("cml.broken.v1", BROKEN), newer_type())
    async with place.process():
        await place.until(lambda: place.relay.held.counts()["workers_held"])
        await (await place.quarantine()).decide(stuck, 1, TAKE_UP)
        async with asyncio.timeout(60):
            while (case := (await place.quarantine()).cases[stuck]).number < 2:
                await asyncio.sleep(0.005)
        assert case.decision is None
    assert place.published == (await place.ids(stuck))[:1]


async def test_of_several_broken_events_each_is_decided_about(place: Place):
    stuck = await place.worker(raw("cml.broken.v1", BROKEN), newer_type(), binary(), newer_type())
    ids = await place.ids(stuck)
    async with place.process():
        for revision in (1, 3):
            async with asyncio.timeout(60):
                while True:
                    quarantine = await place.quarantine()
                    if quarantine.holds(stuck) and quarantine.cases[stuck].broken.revision == revision:
                        break
                    await asyncio.sleep(0.005)
            await quarantine.decide(stuck, revision, SKIP)
        await place.until_out([ids[4]])
    assert place.published == [ids[0], ids[2], ids[4]]


def readable(patch: pytest.MonkeyPatch) -> None:
    """As a later version knows the event."""

    def shown(source: str, stored: StoredEvent) -> EventEnvelope:
        return published(source, replace(stored, data=b"{}") if stored.data == BROKEN else stored)

    patch.setattr("cml_workers.relay.relay.published", shown)


async def test_after_an_upgrade_it_goes_on_by_itself_in_order(place: Place, monkeypatch: pytest.MonkeyPatch):
    stuck = await place.worker(raw("cml.broken.v1", BROKEN), newer_type())
    other = await place.worker()
    async with place.process():
        await place.until(lambda: place.relay.held.counts()["workers_held"])
        await place.until_out(await place.ids(other))
        await place.until_saved((await place.store.read(other))[-1].position)
    await append_raw(place.store, stuck, newer_type())
    readable(monkeypatch)
    async with place.process():
        await place.until_out(await place.ids(stuck))
        await place.until(lambda: not place.relay.held.counts()["workers_held"])
    assert place.first_seen(await place.ids(stuck)) == await place.ids(stuck)
    case = (await place.quarantine()).cases[stuck]
    assert case.decision is not None
    assert (case.decision.what, case.decision.by) == (What.TAKEN_UP, "cml-workers")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("decision", [TAKE_UP, SKIP])
async def test_nothing_is_lost_or_out_of_order_wherever_the_process_dies(
    place: Place, decision: Decision, late: bool, monkeypatch: pytest.MonkeyPatch
):
    """At each call to the store: while it records the broken event, saves its checkpoint, and catches up."""
    streams = []
    for calls in range(2, 14):
        stuck = await place.worker(raw("cml.broken.v1", BROKEN), newer_type())
        streams.append(stuck)
        await self_destructing(place, calls, late=late)
        await append_raw(place.store, stuck, newer_type())
        async with place.process():
            await place.until(lambda: place.relay.held.counts()["workers_held"])
        await append_raw(place.store, stuck, newer_type())
        with monkeypatch.context() as patch:
            if decision is TAKE_UP:
                readable(patch)
            else:
                await (await place.quarantine()).decide(stuck, 1, SKIP)
            await self_destructing(place, calls, late=late)
            await append_raw(place.store, stuck, newer_type())
            ids = await place.ids(stuck)
            expected = ids if decision is TAKE_UP else [ids[0], *ids[2:]]
            async with place.process():
                await place.until_out(expected)
                await place.until(lambda: not place.relay.held.counts()["workers_held"])
                await place.until_saved((await place.store.read(stuck))[-1].position)
            assert place.first_seen(ids) == expected
            for stream in streams if decision is TAKE_UP else ():
                assert place.first_seen(await place.ids(stream)) == await place.ids(stream)


async def self_destructing(place: Place, calls: int, *, late: bool) -> None:
    """A process that dies at this call to the store, or has had time for all there is to do before."""
    mortal = Mortal(place.store, calls, late=late)
    async with place.process(mortal):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                while not mortal.died:
                    await asyncio.sleep(0.005)


async def test_two_relays_for_a_moment_lose_nothing_and_keep_the_order(place: Place):
    stuck = await place.worker(raw("cml.broken.v1", BROKEN), newer_type())
    async with place.process():
        first = place.relay
        async with place.process():
            await place.until(
                lambda: first.held.counts()["workers_held"] and place.relay.held.counts()["workers_held"]
            )
            assert len(await place.store.read("cml_quarantine-relay")) == 1
            await append_raw(place.store, stuck, newer_type())
            await (await place.quarantine()).decide(stuck, 1, SKIP)
            await append_raw(place.store, stuck, newer_type())
            ids = await place.ids(stuck)
            await place.until_out([ids[0], *ids[2:]])
        await append_raw(place.store, stuck, newer_type())
        ids = await place.ids(stuck)
        await place.until_out([ids[0], *ids[2:]])
    assert place.first_seen(ids) == [ids[0], *ids[2:]]


async def test_a_worker_whose_events_are_truncated_while_it_waits_can_be_left_out(place: Place):
    stuck = await place.worker(raw("cml.broken.v1", BROKEN), newer_type(), newer_type())
    other = await place.worker()
    async with place.process():
        await place.until(lambda: place.relay.held.counts()["workers_held"])
        await place.store.trim(stuck, 1)
        await (await place.quarantine()).decide(stuck, 1, TAKE_UP)
        async with asyncio.timeout(60):
            while not (case := (await place.quarantine()).cases[stuck]).broken.gone:
                await asyncio.sleep(0.005)
        assert "trimmed" in case.broken.reason
        await (await place.quarantine()).decide(stuck, 1, SKIP)
        await place.until(lambda: not place.relay.held.counts()["workers_held"])
        more = await append_raw(place.store, other, newer_type())
        await place.until_out([str(each.event_id) for each in more])
        assert place.relay.held.warning() is None


async def test_workers_that_were_held_are_saved_with_the_checkpoint(place: Place):
    stuck = await place.worker(binary(), newer_type())
    other = await place.worker()
    async with place.process():
        await place.until_saved((await place.store.read(other))[-1].position)
    saved = await load_saved(place.store)
    assert saved is not None
    assert {stream: (each.first, each.last) for stream, each in saved.waiting.items()} == {stuck: (1, 2)}
    assert json.loads((await place.store.last("cml_relay")).data)["waiting"] == {
        stuck: {"first": 1, "last": 2}
    }


async def test_a_worker_of_which_nothing_waits_is_like_any_other(place: Place):
    stream = await place.worker(newer_type())
    async with place.process():
        await place.until_out(await place.ids(stream))
    assert (await load(place.store, UUID(stream.removeprefix(WORKER_STREAMS)), upto=0)).exists
