"""The relay: in order, confirmed, at least once."""

import asyncio
import json
from itertools import count

import pytest

from cml_contracts.envelope import EventEnvelope
from cml_contracts.events import StartRequested
from cml_workers.bus.port import BusUnavailableError, NotTakenError, Outgoing
from cml_workers.eventstore.anchor import Anchor
from cml_workers.eventstore.names import worker_of
from cml_workers.eventstore.port import StoreUnavailableError
from cml_workers.relay import in_order, progress
from cml_workers.relay.relay import SAVE_AFTER
from support.relaying import CREATED, Service, ids


async def test_every_event_is_published_in_order_as_a_cloudevent(service: Service):
    await service.happen(3)
    await service.catch_up()
    sent = service.outbox.on("cml.events")
    stored = await service.stored()
    for stream in {each.stream for each in stored}:
        envelopes = [EventEnvelope.from_cloudevent(json.loads(message.body)) for message in sent]
        own = [each for each in envelopes if each.worker_id == worker_of(stream)]
        assert [(each.type, each.revision) for each in own] == [(CREATED.TYPE, 0), (StartRequested.TYPE, 1)]
        assert [each.id for each in own] == [each.event_id for each in stored if each.stream == stream]
    assert sorted(service.published) == sorted(ids(stored))
    first = sent[0]
    assert (first.routing_key, first.type) == (CREATED.TYPE, CREATED.TYPE)
    assert first.content_type == "application/cloudevents+json"
    assert "reply_to" not in first.body.decode()


async def test_a_trigger_goes_to_our_own_exchange_as_well(service: Service):
    await service.happen(2)
    await service.catch_up()
    triggers = [each for each in await service.stored() if each.type == StartRequested.TYPE]
    assert service.triggers == ids(triggers)
    (first, _), sent = service.outbox.on("cml.triggers"), service.outbox.on("cml.events")
    assert first.body == next(each.body for each in sent if each.message_id == service.triggers[0])
    # Two messages with one id on one channel: the library would take the answer to one for the other's.
    assert not {each.message_id for each in sent} & {
        each.message_id for each in service.outbox.on("cml.triggers")
    }


async def test_an_event_that_is_not_confirmed_is_published_again_before_the_next(service: Service):
    await service.happen(1)
    created, _ = await service.stored()
    failures = iter(range(3))

    async def fails(message: Outgoing, /) -> None:
        if message.message_id == str(created.event_id) and next(failures, None) is not None:
            raise BusUnavailableError("planted")
        await service.outbox(message)

    service.publish = fails
    await service.catch_up()
    assert service.published == ids(await service.stored())
    assert service.pauses == [0.1, 0.2, 0.4]


async def test_a_worker_whose_event_is_not_confirmed_keeps_its_order_and_nobody_waits_for_it(
    service: Service,
):
    await service.happen(3)
    items = await service.stored()
    stuck, *others = dict.fromkeys(item.stream for item in items)
    released = asyncio.Event()

    async def slow(message: Outgoing, /) -> None:
        if str(worker_of(stuck)) in message.body.decode() and not released.is_set():
            raise BusUnavailableError("planted")
        await service.outbox(message)

    service.publish = slow
    await service.relay.handle(items)
    of = {stream: ids([each for each in items if each.stream == stream]) for stream in (stuck, *others)}
    async with asyncio.timeout(30):
        while len(service.published) < 4 or service.relay.problem() is None:
            await asyncio.sleep(0)
    assert {*service.published} == {each for stream in others for each in of[stream]}
    assert service.relay.problem() == "events are not published: planted"
    await service.relay.save()
    assert service.saved == []
    released.set()
    await service.settled()
    assert service.published[4:] == of[stuck]
    for stream in others:
        assert [each for each in service.published if each in of[stream]] == of[stream]
    assert service.relay.problem() is None
    await service.relay.save()
    assert service.saved == [items[-1].position]


async def test_what_a_library_cancels_is_not_taken_for_published(service: Service):
    """As the AMQP library does with whoever waits for a confirm when it gives the connection up."""
    await service.happen(2)
    items = await service.stored()
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.set_exception(asyncio.CancelledError())
    lost = {("cml.events", ids(items)[0]), ("cml.triggers", f"{ids(items)[1]}.trigger")}

    async def cut_off_once(message: Outgoing, /) -> None:
        assert message.exchange
        if (place := (message.exchange.name, message.message_id)) in lost:
            lost.remove(place)
            await cancelled
        await service.outbox(message)

    service.publish = cut_off_once
    await service.relay.handle(items)
    await service.settled()
    assert not lost
    assert {*service.published} == {*ids(items)}
    assert len(service.triggers) == 2


async def test_nothing_is_skipped_after_a_crash_and_little_is_repeated(service: Service):
    await service.happen(100)
    for items in (1, 30, 120, 20):
        await service.catch_up(items=items)
        if items == 120:
            await service.relay.save()
        await service.relay.end()
        service.restarted()
    await service.catch_up()
    first_seen = {*service.published}
    # Every death but the one right behind a saved checkpoint repeats what was published since; each with its own id.
    assert len(service.published) == len(first_seen) + 1 + 30 + 20
    bodies = {(message.message_id, message.body) for message in service.outbox.on("cml.events")}
    assert len(bodies) == len(first_seen) == 200
    assert first_seen == {*ids(await service.stored())}


async def test_who_follows_again_forgets_what_was_under_way(service: Service):
    """The store is read again from the checkpoint, so that what was under way comes again, in order; triggers stay under way."""
    await service.happen(2)
    items = await service.stored()

    published: list[Outgoing] = []
    timed_out = asyncio.Event()

    async def stuck(message: Outgoing, /) -> None:
        published.append(message)
        await timed_out.wait()
        raise BusUnavailableError("planted")

    service.publish = stuck
    await service.relay.handle(items)
    async with asyncio.timeout(30):
        while len(published) < 4:  # of each worker the first event, and its trigger
            await asyncio.sleep(0)
    service.publish = service.outbox
    assert await service.relay.begin() is None
    assert service.relay.counts()["events_under_way"] == 0
    await service.relay.handle(items)
    timed_out.set()
    await service.settled()
    assert sorted(service.published) == sorted(ids(items))
    for stream in {each.stream for each in items}:
        own = ids([each for each in items if each.stream == stream])
        assert [each for each in service.published if each in own] == own


async def test_the_checkpoint_is_never_ahead_of_what_is_confirmed(service: Service):
    await service.happen(1)
    await service.catch_up(items=1)
    assert service.saved == []
    await service.relay.save()
    assert len(service.saved) == 1
    service.outbox.sent.clear()
    await service.catch_up()
    assert len(service.published) == 1


async def test_what_is_under_way_is_bounded(service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "MOST", 3)
    await service.happen(4)
    confirmed = asyncio.Semaphore(0)

    async def one_by_one(message: Outgoing, /) -> None:
        await confirmed.acquire()
        await service.outbox(message)

    service.publish = one_by_one
    handling = asyncio.create_task(service.relay.handle(await service.stored()))
    async with asyncio.timeout(30):
        while service.relay.counts()["events_under_way"] < 3:
            await asyncio.sleep(0)
    for _ in range(20):  # it takes no more, however long it may
        await asyncio.sleep(0)
    assert service.relay.counts()["events_under_way"] == 3
    assert not handling.done()
    for _ in range(12):
        confirmed.release()
    await handling
    await service.settled()
    assert len(service.published) == 8


async def test_many_workers_side_by_side_keep_their_order_whatever_is_refused_or_lost(service: Service):
    await service.happen(60)
    items = await service.stored()
    number, tried = count(), set[str]()

    async def unreliable(message: Outgoing, /) -> None:
        """Each event fails once, or not at all, in one of three ways."""
        for _ in range(next(number) % 7):
            await asyncio.sleep(0)
        first_time = message.message_id not in tried
        tried.add(message.message_id)
        how = next(number) % 4 if first_time else 0
        if how == 1:
            raise BusUnavailableError("it did not arrive")
        await service.outbox(message)
        if how == 2:
            raise BusUnavailableError("it arrived, and its confirm did not")
        if how == 3 and message.exchange and message.exchange.name == "cml.events":
            raise NotTakenError("one queue does not take it")

    service.publish = unreliable
    await service.relay.handle(items)
    await service.settled()
    for stream in {each.stream for each in items}:
        own = ids([each for each in items if each.stream == stream])
        seen = [own.index(each) for each in service.published if each in own]
        assert seen == sorted(seen), "an event was sent behind one that might be lost"
        assert {*seen} == {0, 1}
    assert service.relay.counts() == {"events_under_way": 0, "events_given_up": 0}


async def test_of_so_many_workers_events_are_sent_at_once_and_triggers_do_not_wait_for_them(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(in_order, "AT_ONCE", 3)
    await service.happen(6)
    items = await service.stored()
    sent: list[str] = []
    confirmed = asyncio.Event()

    async def slow(message: Outgoing, /) -> None:
        if message.exchange and message.exchange.name == "cml.events":
            sent.append(message.message_id)
            await confirmed.wait()
        await service.outbox(message)

    service.publish = slow
    handling = asyncio.create_task(service.relay.handle(items))
    for _ in range(50):
        await asyncio.sleep(0)
    assert sent == ids([each for each in items if each.revision == 0][:3])
    assert service.triggers == ids([each for each in items if each.revision == 1][:2])
    assert not handling.done()
    confirmed.set()
    await handling
    await service.settled()
    assert sorted(service.published) == sorted(ids(items))


async def test_the_last_events_are_saved_though_nothing_comes_after_them(service: Service):
    """Until then a crash would publish them again, however long ago they were published."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    saving = asyncio.create_task(service.relay.keep_saving(sleep))
    await service.happen(1)
    first, second = await service.stored()
    for event in (first, second):
        await service.relay.handle([event])
        async with asyncio.timeout(10):
            while service.saved[-1:] != [event.position]:
                await asyncio.sleep(0)
    assert slept == [SAVE_AFTER, SAVE_AFTER]
    saving.cancel()


async def test_what_is_published_while_a_checkpoint_is_saved_is_saved_next(service: Service):
    await service.happen(1)
    first, second = await service.stored()
    save, release = service.relay._save, asyncio.Event()

    async def slow(position: str | None, anchor: Anchor | None) -> None:
        await release.wait()
        await save(position, anchor)

    service.relay._save = slow
    await service.relay.handle([first])
    await service.settled()
    saving = asyncio.create_task(service.relay.save())
    await asyncio.sleep(0)
    await service.relay.handle([second])
    await service.settled()
    release.set()
    await saving
    await service.relay.save()
    await service.relay.save()
    assert service.saved == [first.position, second.position]


async def test_who_cannot_save_follows_again(service: Service):
    await service.happen(1)
    first, second = await service.stored()
    save = service.relay._save

    async def fails(_: str | None, _anchor: Anchor | None) -> None:
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
    await service.relay.begin()
    await service.relay.handle([first])
    async with asyncio.timeout(10):
        while service.saved != [first.position]:
            await asyncio.sleep(0)
    assert not saving.done()
    saving.cancel()


async def test_a_bug_in_publishing_ends_the_role_and_not_only_what_is_behind_it(service: Service):
    async def broken(_: Outgoing, /) -> None:
        raise RuntimeError("a bug")

    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    service.publish = broken
    saving = asyncio.create_task(service.relay.keep_saving(sleep))
    await service.happen(1)
    await service.relay.handle(await service.stored())
    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="a bug"):
            await saving
