"""What the projector counts in the read model now and then."""

from datetime import timedelta

import pytest
from prometheus_client import Gauge

from cml_contracts.events import TerminationRequested, WorkerTerminated
from cml_workers.foundation.metrics import READ_MODEL_EVENTS, WORKERS
from cml_workers.readmodels.workers.counting import COUNTED, Survey
from cml_workers.sql.errors import DatabaseUnavailableError
from cml_workers.sql.port import T, Work
from support.given import NOW
from support.projecting import CREATED, LAUNCH, LAUNCHED, Projected

LATER = timedelta(minutes=20)


def shown(gauge: Gauge) -> dict[tuple[str, ...], float]:
    (family,) = gauge.collect()
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


def survey(projected: Projected, deadline: timedelta) -> Survey:
    return Survey(projected.database, dead_letters=three_letters, now=lambda: NOW + LATER, deadline=deadline)


async def three_letters() -> int:
    return 3


async def test_workers_by_status_and_the_age_of_open_operations(projected: Projected):
    ended = TerminationRequested(operation_id="end"), WorkerTerminated(operation_id="end")
    await projected.workers(2, CREATED, LAUNCH)
    await projected.workers(3, CREATED, LAUNCH, LAUNCHED)
    await projected.workers(1, CREATED, LAUNCH, LAUNCHED, *ended)
    await projected.catch_up()
    for deadline, overdue in ((LATER + timedelta(seconds=1), 0), (LATER - timedelta(seconds=1), 2)):
        counting = survey(projected, deadline)
        await counting.look(usable=True)
        assert counting.counts() == {
            "dead_letters_waiting": 3,
            "operations_open": 2,
            "operations_oldest_seconds": LATER.total_seconds(),
            "operations_overdue": overdue,
        }
    expected = {(status,): 0 for status in COUNTED} | {("PENDING",): 2, ("RUNNING",): 3}
    assert shown(WORKERS) == expected  # no TERMINATED: there are more and more of them


async def test_without_workers_all_is_zero(projected: Projected):
    await projected.catch_up()
    counting = survey(projected, LATER)
    await counting.look(usable=True)
    assert set(counting.counts().items()) - {("dead_letters_waiting", 3)} == {
        (f"operations_{name}", 0) for name in ("open", "oldest_seconds", "overdue")
    }
    assert shown(WORKERS) == {(status,): 0 for status in COUNTED}


async def test_how_far_a_rebuild_has_come(projected: Projected):
    await projected.workers(4, CREATED, LAUNCH)
    await projected.catch_up()
    counting = survey(projected, LATER)
    await counting.look(usable=True)
    assert shown(READ_MODEL_EVENTS) == {("workers", "active"): 8, ("workers", "building"): 0}
    begun = await projected.generations.begin()
    await projected.generations.write(begun, {}, "1", events=5)
    await counting.look(usable=True)
    assert shown(READ_MODEL_EVENTS) == {("workers", "active"): 8, ("workers", "building"): 5}


async def test_what_is_not_known_is_not_shown(projected: Projected, monkeypatch: pytest.MonkeyPatch):
    """Neither while nothing answers queries, nor while the database does not answer; a zero would say that all is well."""

    async def gone(_work: Work[T]) -> T:
        raise DatabaseUnavailableError("planted")

    await projected.workers(1, CREATED, LAUNCH)
    await projected.catch_up()
    counting = survey(projected, LATER)
    await counting.look(usable=True)
    await counting.look(usable=False)
    assert (counting.counts(), shown(WORKERS)) == ({"dead_letters_waiting": 3}, {})
    await counting.look(usable=True)
    assert counting.counts()["operations_open"] == 1
    monkeypatch.setattr(projected.database, "read", gone)
    with pytest.raises(DatabaseUnavailableError):
        await counting.look(usable=True)
    assert (counting.counts(), shown(WORKERS), shown(READ_MODEL_EVENTS)) == ({}, {}, {})
