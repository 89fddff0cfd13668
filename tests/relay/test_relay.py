"""The relay: in order, confirmed, at least once."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from cml_contracts.envelope import EventEnvelope
from cml_contracts.events import StartRequested
from cml_workers.bus.port import BusUnavailableError, Outgoing
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.port import CaughtUp, StoredEvent, StoreUnavailableError
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import append, load, worker_of
from cml_workers.relay.relay import SAVE_AFTER, SAVE_EVERY, Relay
from support.buses import Outbox
from support.given import NOW, created, recorded

CREATED = created()


class Service:
    """The relay with a real store, its checkpoint in a list."""

    def __init__(self, store: SqliteEventStore) -> None:
        self.store = store
        self.outbox = Outbox()
        self.saved: list[str] = []
        self.pauses: list[float] = []
        self.relay = self.restarted()

    def restarted(self) -> Relay:
        async def save(position: str) -> None:
            self.saved.append(position)

        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        self.relay = Relay(publish=self.outbox, save=save, source="/test", sleep=sleep)
        return self.relay

    async def happen(self, workers: int) -> None:
        for _ in range(workers):
            worker = Worker(uuid4())
            await append(self.store, worker, [(CREATED, recorded(worker, CREATED, NOW, "c").metadata)])
            worker = await load(self.store, worker.id)
            start = StartRequested(operation_id="start")
            await append(self.store, worker, [(start, recorded(worker, start, NOW, "c").metadata)])

    async def catch_up(self, *, items: int | None = None) -> None:
        seen = 0
        after = self.saved[-1] if self.saved else None
        async for item in self.store.follow(after=after, prefix="cml_worker-"):
            await self.relay.handle([item])
            seen += 1
            if isinstance(item, CaughtUp) or seen == items:
                return

    @property
    def published(self) -> list[str]:
        return [message.message_id for message in self.outbox.sent]


async def until_caught_up(store: SqliteEventStore) -> AsyncIterator[StoredEvent]:
    async for item in store.follow(after=None, prefix="cml_worker-"):
        if isinstance(item, CaughtUp):
            return
        if isinstance(item, StoredEvent):
            yield item


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    yield Service(store)
    await store.close()


async def test_every_event_is_published_in_order_as_a_cloudevent(service: Service):
    await service.happen(3)
    await service.catch_up()
    envelopes = [EventEnvelope.from_cloudevent(json.loads(message.body)) for message in service.outbox.sent]
    assert [(each.type, each.revision) for each in envelopes] == [
        (CREATED.TYPE, 0),
        (StartRequested.TYPE, 1),
    ] * 3
    stored = [item async for item in until_caught_up(service.store)]
    assert [each.worker_id for each in envelopes] == [worker_of(each.stream) for each in stored]
    assert service.published == [str(each.event_id) for each in stored]
    assert [each.id for each in envelopes] == [each.event_id for each in stored]
    first = service.outbox.sent[0]
    assert (first.routing_key, first.type) == (CREATED.TYPE, CREATED.TYPE)
    assert first.exchange is not None
    assert first.exchange.name == "cml.events"
    assert first.content_type == "application/cloudevents+json"
    assert "reply_to" not in first.body.decode()


async def test_an_event_that_is_not_confirmed_is_published_again_before_the_next(service: Service):
    await service.happen(2)
    service.outbox.broken = 3
    await service.catch_up()
    stored = [str(item.event_id) async for item in until_caught_up(service.store)]
    assert service.published == stored
    assert service.pauses == [0.1, 0.2, 0.4]


async def test_a_worker_whose_event_is_not_confirmed_keeps_its_order_and_nobody_else(service: Service):
    await service.happen(3)
    items = [item async for item in until_caught_up(service.store)]
    stuck, *others = dict.fromkeys(item.stream for item in items)
    publish, released = service.outbox, asyncio.Event()

    async def slow(message: Outgoing, /) -> None:
        if str(worker_of(stuck)) in message.body.decode() and not released.is_set():
            raise BusUnavailableError("planted")
        await publish(message)

    async def sleep(_: float) -> None:
        if len(service.published) == 4:
            released.set()
        await asyncio.sleep(0)

    service.relay._publish, service.relay._sleep = slow, sleep
    await service.relay.handle(items)
    of = {
        stream: [str(each.event_id) for each in items if each.stream == stream] for stream in (stuck, *others)
    }
    assert {*service.published[:4]} == {each for stream in others for each in of[stream]}
    assert service.published[4:] == of[stuck]
    for stream in others:
        assert [each for each in service.published if each in of[stream]] == of[stream]


async def test_what_a_library_cancels_is_not_taken_for_published(service: Service):
    """As the AMQP library does with whoever waits for a confirm when it gives the connection up."""
    await service.happen(2)
    items = [item async for item in until_caught_up(service.store)]
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.set_exception(asyncio.CancelledError())
    lost = iter([items[0].event_id])
    publish = service.outbox

    async def cut_off_once(message: Outgoing, /) -> None:
        if message.message_id == str(next(lost, None)):
            await cancelled
        await publish(message)

    service.relay._publish = cut_off_once
    with pytest.raises(BusUnavailableError):
        await service.relay.handle(items)
    assert service.saved == []
    await service.relay.handle(items)
    assert {str(each.event_id) for each in items} <= {*service.published}
    await service.relay.save()
    assert service.saved == [items[-1].position]


async def test_nothing_is_skipped_after_a_crash_and_little_is_repeated(service: Service):
    await service.happen(SAVE_EVERY)
    for items in (1, 30, SAVE_EVERY, 20):
        await service.catch_up(items=items)
        service.restarted()
    await service.catch_up()
    first_seen = list(dict.fromkeys(service.published))
    # Every death but the one right behind a saved checkpoint repeats what was published since; each with its own id.
    assert len(service.published) == len(first_seen) + 1 + 30 + 20
    bodies = {(message.message_id, message.body) for message in service.outbox.sent}
    assert len(bodies) == len(first_seen)
    service.restarted()
    service.saved.clear()
    service.outbox.sent.clear()
    await service.catch_up()
    assert first_seen == service.published
    assert len(first_seen) == 2 * SAVE_EVERY


async def test_the_checkpoint_is_never_ahead_of_what_is_confirmed(service: Service):
    await service.happen(1)
    await service.catch_up(items=1)
    assert service.saved == []
    await service.relay.save()
    assert len(service.saved) == 1
    service.outbox.sent.clear()
    await service.catch_up()
    assert len(service.published) == 1


async def test_the_last_events_are_saved_though_nothing_comes_after_them(service: Service):
    """Until then a crash would publish them again, however long ago they were published."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    saving = asyncio.create_task(service.relay.keep_saving(sleep))
    await service.happen(1)
    first, second = [item async for item in until_caught_up(service.store)]
    for event in (first, second):
        await service.relay.handle([event])
        async with asyncio.timeout(10):
            while service.saved[-1:] != [event.position]:
                await asyncio.sleep(0)
    assert slept == [SAVE_AFTER, SAVE_AFTER]
    saving.cancel()


async def test_what_is_published_while_a_checkpoint_is_saved_is_saved_next(service: Service):
    await service.happen(1)
    first, second = [item async for item in until_caught_up(service.store)]
    save, release = service.relay._save, asyncio.Event()

    async def slow(position: str) -> None:
        await release.wait()
        await save(position)

    service.relay._save = slow
    await service.relay.handle([first])
    saving = asyncio.create_task(service.relay.save())
    await asyncio.sleep(0)
    await service.relay.handle([second])
    release.set()
    await saving
    await service.relay.save()
    await service.relay.save()
    assert service.saved == [first.position, second.position]


async def test_a_checkpoint_that_is_not_saved_has_the_store_followed_again(service: Service):
    """Whether it was is not known, so what was saved is read again."""
    await service.happen(1)
    first, second = [item async for item in until_caught_up(service.store)]
    save = service.relay._save

    async def fails(_: str) -> None:
        raise StoreUnavailableError("planted")

    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    service.relay._save = fails
    saving = asyncio.create_task(service.relay.keep_saving(sleep))
    await service.relay.handle([first])
    async with asyncio.timeout(10):
        while service.relay._not_saved is None:
            await asyncio.sleep(0)
    with pytest.raises(StoreUnavailableError, match="planted"):
        await service.relay.handle([second])
    service.relay._save = save
    await service.relay.handle([first])
    async with asyncio.timeout(10):
        while service.saved != [first.position]:
            await asyncio.sleep(0)
    assert not saving.done()
    saving.cancel()
