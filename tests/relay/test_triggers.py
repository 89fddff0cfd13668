"""Triggers that happen now do not wait for what was not published yet."""

import asyncio
from contextlib import aclosing

import pytest

from cml_contracts.events import StartRequested
from cml_workers.bus.port import BusUnavailableError, Outgoing
from cml_workers.eventstore.port import StoredEvent
from cml_workers.relay import progress, triggers
from cml_workers.runtime.role import background
from support.relaying import Service, ids


async def following_newest(service: Service) -> None:
    """As the second follower of the role."""
    newest = service.relay.triggers
    async with aclosing(service.store.follow(after=await newest.newest(), prefix="cml_worker-")) as items:
        async for item in items:
            await newest.handle_newest([item])


async def of_triggers(service: Service) -> list[StoredEvent]:
    return [each for each in await service.stored() if each.type == StartRequested.TYPE]


async def until_triggered(service: Service, number: int) -> None:
    async with asyncio.timeout(30):
        while len(service.triggers) < number:
            await asyncio.sleep(0.001)


async def test_a_trigger_does_not_wait_for_a_backlog(service: Service, monkeypatch: pytest.MonkeyPatch):
    """Which does not move at all here: nothing of it is confirmed."""
    monkeypatch.setattr(progress, "MOST", 4)

    async def stuck(message: Outgoing, /) -> None:
        if message.exchange and message.exchange.name == "cml.events":
            await asyncio.Event().wait()
        await service.outbox(message)

    await service.happen(10)
    service.publish = stuck
    async with (
        background(service.catch_up, "backlog"),
        background(lambda: following_newest(service), "newest"),
    ):
        await until_triggered(service, 1)
        before = len(service.triggers)
        assert before < 10
        async with asyncio.timeout(30):
            while service.relay.triggers._position is None:
                await asyncio.sleep(0.001)
        await service.happen(1)
        await until_triggered(service, before + 1)
        assert service.triggers[-1] == ids(await of_triggers(service))[-1]
        assert service.relay.counts()["events_under_way"] == 4


async def test_what_both_followers_take_is_published_once_and_passed_when_it_is_confirmed(service: Service):
    await service.happen(1)
    (event,) = await of_triggers(service)
    release = asyncio.Event()

    async def slow(message: Outgoing, /) -> None:
        await release.wait()
        await service.outbox(message)

    service.publish = slow
    await service.relay.triggers.handle_newest([event])
    await service.relay.handle(await service.stored())
    await asyncio.sleep(0)
    await service.relay.save()
    assert service.saved == []
    release.set()
    await service.settled()
    assert service.triggers == ids([event])
    await service.relay.save()
    assert service.saved == [event.position]


async def test_what_was_published_when_it_happened_is_not_published_again_when_the_backlog_comes_to_it(
    service: Service,
):
    await service.happen(2)
    events = await of_triggers(service)
    await service.relay.triggers.handle_newest(events[1:])
    await until_triggered(service, 1)
    await service.catch_up()
    assert sorted(service.triggers) == sorted(ids(events))
    assert sorted(service.published) == sorted(ids(await service.stored()))


async def test_what_is_forgotten_by_then_comes_again(service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triggers, "REMEMBERED", 1)
    await service.happen(2)
    first, second = await of_triggers(service)
    await service.relay.triggers.handle_newest([first, second])
    await until_triggered(service, 2)
    await service.catch_up()
    assert sorted(service.triggers) in (
        sorted(ids([first, first, second])),
        sorted(ids([first, second, second])),
        sorted(ids([first, first, second, second])),
    )


async def test_following_again_does_not_end_a_trigger_that_is_under_way(service: Service):
    await service.happen(1)
    (event,) = await of_triggers(service)
    failures = iter(range(3))
    release = asyncio.Event()

    async def fails(message: Outgoing, /) -> None:
        await release.wait()
        if next(failures, None) is not None:
            raise BusUnavailableError("planted")
        await service.outbox(message)

    service.publish = fails
    await service.relay.triggers.handle_newest([event])
    await asyncio.sleep(0)
    await service.relay.begin()
    release.set()
    await until_triggered(service, 1)
    assert service.triggers == ids([event])


async def test_while_rabbitmq_takes_nothing_no_more_than_so_many_are_kept(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(triggers, "MOST", 2)
    await service.happen(5)
    events = await of_triggers(service)
    release = asyncio.Event()

    async def stuck(message: Outgoing, /) -> None:
        await release.wait()
        await service.outbox(message)

    service.publish = stuck
    await service.relay.triggers.handle_newest(events)
    release.set()
    await until_triggered(service, 2)
    assert sorted(service.triggers) == sorted(ids(events[:2]))
    await service.catch_up()  # the other follower has them all
    assert sorted(service.triggers) == sorted(ids(events))


async def test_it_begins_at_the_end_and_goes_on_behind_what_was_taken(service: Service):
    await service.happen(2)
    newest = service.relay.triggers
    assert await newest.newest() == await service.store.end()
    await service.happen(1)
    last = (await service.stored())[-1]
    await newest.handle_newest([last])
    await service.happen(1)
    assert await newest.newest() == last.position
