"""Subscribers whose queues do not take events: nobody else waits for them, and what they lack is said."""

import asyncio
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from cml_workers.bus.port import BusUnavailableError, NotTakenError, Outgoing
from cml_workers.bus.probes import PROBE
from cml_workers.relay import subscribers
from cml_workers.relay.subscribers import NEAR, PAUSES, TROUBLE
from support.relaying import CREATED, Service, ids


class Broker:
    """A broker that routes to a healthy queue and to one that refuses or hangs; ``healthy``: what the first one has."""

    def __init__(self) -> None:
        self.healthy: list[str] = []
        self.refuses = self.hangs = self.away = self.minority = False
        self.asked = 0
        self.written: set[str] = set()
        """What this connection has written."""
        self.writes = asyncio.Event()
        """Clear while the connection takes nothing, as its buffer is full."""
        self.writes.set()
        self.lost: list[asyncio.Future[None]] = []

    async def __call__(self, message: Outgoing, /) -> None:
        assert message.exchange
        if self.away:
            raise BusUnavailableError("no connection")
        if message is PROBE and self.minority:
            raise BusUnavailableError("not confirmed within 15 s")
        if message.exchange.name != "cml.events":
            return
        if message.behind and message.behind not in self.written:
            raise BusUnavailableError("the event before it may be lost")
        await self.writes.wait()
        self.healthy.append(message.message_id)
        self.written.add(message.message_id)
        await asyncio.sleep(0)
        if self.refuses:
            raise NotTakenError("a queue is full")
        if self.hangs:
            confirmed = asyncio.get_running_loop().create_future()
            self.lost.append(confirmed)
            await asyncio.wait((confirmed,))
            confirmed.result()

    async def routed(self, message: Outgoing, /) -> bool:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise BusUnavailableError("no connection")
        return message.message_id in self.written

    def close(self) -> None:
        """The connection is lost: whoever waits for a confirm learns it."""
        self.away = True
        for confirmed in self.lost:
            if not confirmed.done():
                confirmed.set_exception(BusUnavailableError("the connection was closed"))


@pytest.fixture
def broker(service: Service, monkeypatch: pytest.MonkeyPatch) -> Broker:
    monkeypatch.setattr(subscribers, "PATIENCE", 0.02)
    service.publish = broker = Broker()
    service.routed = broker.routed
    return broker


def firsts(found: list[str]) -> list[str]:
    return list(dict.fromkeys(found))


async def test_an_event_that_a_queue_refuses_is_tried_again_given_up_and_said(
    service: Service, broker: Broker
):
    await service.happen(1)
    created, started = await service.stored()
    broker.refuses = True
    with capture_logs() as logged:
        await service.relay.handle([created])
        await service.settled()
    assert broker.healthy == ids([created]) * (1 + len(PAUSES))
    assert service.pauses == list(PAUSES)
    assert service.relay.counts() == {"events_under_way": 0, "events_given_up": 1}
    (given_up,) = [each for each in logged if each["event"] == "event given up for a subscriber"]
    assert (given_up["event_id"], given_up["revision"]) == (str(created.event_id), 0)
    warning = service.relay.subscribers.warning() or ""
    assert warning.startswith("1 events were given up since 2026-")
    assert f"{CREATED.TYPE} of worker {given_up['worker_id']}, event {created.event_id}" in warning
    assert service.relay.problem() is None  # it is no fault of ours

    await service.relay.handle([started])  # by now it is known: one try is enough, and nobody waits
    await service.settled()
    assert broker.healthy[-2:] == ids([created, started])
    assert service.pauses == list(PAUSES)
    assert (service.relay.subscribers.warning() or "").startswith("2 events were given up")
    await service.relay.save()
    assert service.saved == [started.position]


async def test_a_queue_that_refuses_for_a_moment_gets_everything_in_order(service: Service, broker: Broker):
    await service.happen(2)
    items = await service.stored()
    broker.refuses = True
    taken: list[str] = []

    async def moment(message: Outgoing, /) -> None:
        if len(service.pauses) >= 2:
            broker.refuses = False
        await broker(message)
        if message.exchange and message.exchange.name == "cml.events":
            taken.append(message.message_id)

    service.publish = moment
    await service.relay.handle(items)
    await service.settled()
    for stream in {each.stream for each in items}:
        own = ids([each for each in items if each.stream == stream])
        assert [each for each in taken if each in own] == own
        assert [each for each in firsts(broker.healthy) if each in own] == own
    assert service.relay.counts()["events_given_up"] == 0
    assert service.relay.subscribers.warning() is None


async def test_behind_an_event_that_one_queue_keeps_waiting_all_others_get_theirs(
    service: Service, broker: Broker, monkeypatch: pytest.MonkeyPatch
):
    await service.happen(50)
    items = await service.stored()
    broker.hangs = True
    await service.relay.handle(items)
    async with asyncio.timeout(30):
        while len(broker.lost) < len(items):
            await asyncio.sleep(0.001)
    assert broker.asked >= 50
    assert sorted(broker.healthy) == sorted(ids(items))  # each once
    for stream in {each.stream for each in items}:
        own = ids([each for each in items if each.stream == stream])
        assert [each for each in broker.healthy if each in own] == own
    await service.relay.save()
    assert service.saved == []  # none is confirmed or given up
    for confirmed in broker.lost:
        confirmed.set_result(None)
    await service.settled()
    assert service.relay.counts()["events_given_up"] == 0
    assert service.relay.subscribers.warning() is None


@pytest.mark.parametrize("troubled", [False, True])
async def test_no_event_is_sent_behind_one_that_has_not_reached_the_broker(
    service: Service, broker: Broker, monkeypatch: pytest.MonkeyPatch, *, troubled: bool
):
    """An event that is published is not on its way yet: its connection may take nothing, or its process stand."""
    monkeypatch.setattr(subscribers, "ASKED_AGAIN", 0.001)
    await service.happen(2)
    items = await service.stored()
    if troubled:
        broker.refuses = True
        await service.relay.handle(items[2:])
        await service.settled()
        broker.refuses = False
        broker.healthy.clear()
    broker.hangs = True
    broker.writes.clear()
    await service.relay.handle(items[:2])
    async with asyncio.timeout(30):
        while broker.asked < 20:
            await asyncio.sleep(0.001)
    assert broker.healthy == []
    broker.writes.set()
    async with asyncio.timeout(30):
        while len(broker.healthy) < 2:
            await asyncio.sleep(0.001)
    assert broker.healthy == ids(items[:2])


async def test_an_event_that_stays_unconfirmed_is_given_up(
    service: Service, broker: Broker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(subscribers, "LATE", 0.05)
    await service.happen(1)
    broker.hangs = True
    await service.catch_up()
    assert service.relay.counts() == {"events_under_way": 0, "events_given_up": 2}
    assert "not confirmed within 0.05 s" in (service.relay.subscribers.warning() or "")


@pytest.mark.parametrize("how", ["refuses", "hangs"])
async def test_nothing_is_given_up_while_the_cluster_has_no_majority(
    service: Service, broker: Broker, monkeypatch: pytest.MonkeyPatch, how: str
):
    """No queue takes anything then, of whatever kind; and what the node that we are connected to keeps for them may be lost with it."""
    monkeypatch.setattr(subscribers, "LATE", 0.01)
    await service.happen(1)
    setattr(broker, how, True)
    broker.minority = True
    await service.relay.handle(await service.stored())
    async with asyncio.timeout(30):
        while len(broker.healthy) < 10:
            await asyncio.sleep(0.001)
    assert len(set(broker.healthy)) == 1, "the next event might be kept where this one is lost"
    assert service.relay.counts() == {"events_under_way": 2, "events_given_up": 0}
    assert service.relay.subscribers.warning() is None
    broker.refuses = broker.hangs = False
    for confirmed in broker.lost:
        if not confirmed.done():
            confirmed.set_result(None)
    broker.minority = False
    await service.settled()
    assert service.relay.counts()["events_given_up"] == 0


@pytest.mark.parametrize("troubled", [False, True])
async def test_what_is_refused_before_the_majority_returns_is_tried_once_more(
    service: Service, broker: Broker, *, troubled: bool
):
    """A queue may refuse at once what a healthy one has not taken yet, and loses, as its node has no majority."""
    await service.happen(2)
    items = await service.stored()
    broker.refuses = True
    if troubled:
        await service.relay.handle(items[2:3])
        await service.settled()
        broker.healthy.clear()
    last = 1 if troubled else 1 + len(PAUSES)

    async def returns(message: Outgoing, /) -> None:
        try:
            await broker(message)
        except NotTakenError:
            if len(broker.healthy) == last:
                service.at += 2 * NEAR
                broker.refuses = False
            raise

    service.publish = returns
    await service.relay.handle(items[:1])
    await service.settled()
    assert broker.healthy == ids(items[:1]) * (last + 1)
    assert service.relay.counts()["events_given_up"] == int(troubled)


async def test_what_was_not_confirmed_when_the_connection_was_lost_is_published_again_in_order(
    service: Service, broker: Broker
):
    """The queues that had it may have lost it with the broker."""
    await service.happen(1)
    items = await service.stored()
    broker.hangs = True
    await service.relay.handle(items)
    async with asyncio.timeout(30):
        while len(broker.healthy) < 2 or len(service.relay.subscribers._late) < 2:
            await asyncio.sleep(0.001)
    broker.close()
    async with asyncio.timeout(30):
        while service.relay.problem() is None:
            await asyncio.sleep(0.001)
    assert service.relay.counts() == {"events_under_way": 2, "events_given_up": 0}
    broker.hangs = broker.away = False
    await service.settled()
    assert broker.healthy == ids(items) * 2


async def test_no_event_is_sent_behind_one_that_was_lost_with_the_connection(
    service: Service, broker: Broker
):
    """The next connection is there, and it is not noticed yet that the first event has no confirm."""
    await service.happen(1)
    items = await service.stored()
    broker.hangs = True
    await service.relay.handle(items[:1])
    async with asyncio.timeout(30):
        while not service.relay.subscribers._late:
            await asyncio.sleep(0.001)
    broker.written.clear()
    await service.relay.handle(items[1:])
    await asyncio.sleep(0.1)
    assert broker.healthy == ids(items[:1])
    broker.close()
    broker.hangs = broker.away = False
    await service.settled()
    assert broker.healthy == ids([items[0], *items])


async def test_a_broker_that_does_not_answer_is_no_subscribers_fault(service: Service, broker: Broker):
    """It does not say what it has routed either, so nothing is given up, however long it takes."""
    await service.happen(1)

    thawed = False

    async def answers() -> None:
        if not thawed:
            await asyncio.sleep(0.03)
            raise BusUnavailableError("not confirmed within 15 s")

    async def frozen(message: Outgoing, /) -> None:
        await answers()
        await broker(message)

    async def routed(message: Outgoing, /) -> bool:
        await answers()
        return await broker.routed(message)

    service.publish, service.routed = frozen, routed
    await service.relay.handle(await service.stored())
    async with asyncio.timeout(30):
        while len(service.pauses) < 20:
            await asyncio.sleep(0.001)
    assert service.relay.counts() == {"events_under_way": 2, "events_given_up": 0}
    assert service.relay.subscribers.warning() is None
    assert service.relay.problem() is not None
    thawed = True
    await service.settled()
    assert firsts(broker.healthy) == ids(await service.stored())


async def test_what_is_taken_again_is_said_no_longer(service: Service, broker: Broker):
    await service.happen(3)
    items = await service.stored()
    created = [each for each in items if each.type == CREATED.TYPE]
    broker.refuses = True
    await service.relay.handle(created[:1])
    await service.settled()
    broker.refuses = False
    await service.relay.handle(created[1:2])
    await service.settled()
    assert service.relay.subscribers.warning()  # it may be a queue that takes one now and then
    service.at += TROUBLE + timedelta(seconds=1)
    await service.relay.handle([each for each in items if each not in created])
    await service.settled()
    assert service.relay.subscribers.warning()  # those were of another type
    await service.relay.handle(created[2:])
    await service.settled()
    assert service.relay.subscribers.warning() is None
    assert service.relay.counts()["events_given_up"] == 1
