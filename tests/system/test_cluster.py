"""What the run on a cluster says of subscribers and waits; the run itself is `make test-cluster`."""

import contextlib
import time
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from cml_contracts.envelope import EventEnvelope
from system.cluster.subscribers import Subscriber
from system.cluster.waits import Waits

WORKER = UUID(int=1)


def event(revision: int) -> EventEnvelope:
    return EventEnvelope(
        id=uuid4(),
        source="test",
        type="cml.worker.created.v1",
        worker_id=WORKER,
        revision=revision,
        time=datetime(2026, 1, 2, tzinfo=UTC),
        data={},
    )


def subscriber(*came: EventEnvelope, keeps: bool) -> Subscriber:
    return Subscriber("it", contextlib.nullcontext, keeps, {each.id: each for each in came})  # type: ignore[arg-type]


def test_only_a_queue_that_keeps_every_event_must_have_got_every_event():
    first, second = event(0), event(1)
    stored = {each.id: each.time for each in (first, second)}
    assert subscriber(first, second, keeps=True).wrong(stored) == []
    assert subscriber(first, keeps=True).wrong(stored) == ["4: it did not get these events: 1 of 00:00:00"]
    assert subscriber(first, keeps=False).wrong(stored) == []


@pytest.mark.parametrize("keeps", [True, False])
def test_the_events_of_a_worker_come_first_in_their_order(keeps: bool):
    first, second = event(0), event(1)
    wrong = subscriber(second, first, keeps=keeps).wrong({each.id: each.time for each in (first, second)})
    assert wrong == [f"4: it got event 0 of worker {WORKER} too late"]


def test_what_a_lost_consumer_may_not_have_got_may_come_behind_later_events():
    """RabbitMQ gives what is new to the next consumer, before it takes back what the lost one had."""
    first, second = event(0), event(1)
    it = subscriber(second, first, keeps=True)
    it.sent_again.add(first.id)
    assert it.wrong({each.id: each.time for each in (first, second)}) == []
    assert (
        it.counts() == "2 events, 0 of them again; 1 came first as sent again, 1 of these behind later ones"
    )


def test_what_was_sent_again_in_its_place_is_not_counted_as_late():
    first, second = event(0), event(1)
    it = subscriber(first, second, keeps=True)
    it.sent_again |= {first.id, second.id}
    assert (
        it.counts() == "2 events, 0 of them again; 2 came first as sent again, 0 of these behind later ones"
    )


async def test_the_longest_wait_counts_and_who_still_waits_is_named():
    waits = Waits("node killed")
    now = time.monotonic()
    waits.over("queries", "one", now - 3)
    waits.over("queries", "two", now - 1)
    assert 3 <= waits.longest["node killed"]["queries"] < 60
    assert await waits.all_since(now - 4, 0) == []
    assert await waits.all_since(now - 2, 0) == ["queries of one"]
