"""Why an operation waits: EC2's last answer, how often it was asked, and when it is asked next; without filling a stream."""

from datetime import timedelta

import pytest

from cml_contracts.events import OperationDelayed
from cml_contracts.results import ProblemCode
from cml_workers.domain.messages import AttemptDelayed, OperationSucceeded
from cml_workers.ec2_adapter.errors import (
    EC2AuthenticationException,
    EC2CapacityException,
    EC2Error,
    EC2ThrottledException,
    Remedy,
)
from support.given import NOW, instance
from support.given_adapter import Adapter, Given
from support.histories import REQUESTED, RUNNING, SECOND, STOP, TAG, UNKNOWN, WAITS

THROTTLED = EC2ThrottledException("slow down", remedy=Remedy.RETRY, retryable=True)
REFUSED_CREDENTIALS = EC2AuthenticationException("AuthFailure", remedy=Remedy.REFRESH, retryable=True)


def reasons(adapter: Adapter) -> list[tuple[ProblemCode, int]]:
    return [(each.problem.code, each.attempts) for each in adapter.reports(AttemptDelayed)]


@pytest.mark.parametrize("error", [THROTTLED, REFUSED_CREDENTIALS, UNKNOWN], ids=str)
async def test_nobody_could_see_why_an_operation_waits(given: Given, error: EC2Error):
    adapter = given(*REQUESTED).refusing("launch", error)
    assert await adapter.triggered() == WAITS
    (delay,) = adapter.reports(AttemptDelayed)
    assert (delay.operation_id, delay.problem, delay.attempts) == ("create", error.problem, 1)
    assert delay.next_at == NOW + SECOND
    await adapter.passes(10)  # after EC2 throttled, our own limit may hold the call back a little longer
    assert adapter.called("launch") == 2


async def test_what_does_not_wait_reports_its_outcome_and_nothing_else(given: Given):
    await given(*REQUESTED).then_reports(OperationSucceeded)


async def test_a_capacity_that_is_refused_for_good_is_no_delay(given: Given):
    adapter = given(*REQUESTED).refusing("launch", EC2CapacityException("none", retryable=True))
    await adapter.triggered()
    assert reasons(adapter) == []


async def test_hours_of_throttling_are_some_events_and_not_thousands(given: Given):
    adapter = given(*REQUESTED).refusing("launch", THROTTLED, times=10_000)
    await adapter.triggered()
    await adapter.passes(6 * 3600)
    attempts = [count for _, count in reasons(adapter)]
    assert attempts == [2**n for n in range(len(attempts))]
    assert 10 <= len(attempts) <= 12 < adapter.called("launch")


async def test_a_new_reason_is_reported_at_once_and_one_that_comes_and_goes_is_not(given: Given):
    adapter = given(*REQUESTED)
    for _ in range(400):
        adapter.refusing("launch", THROTTLED).refusing("launch", UNKNOWN)
    await adapter.triggered()
    await adapter.passes(3600)
    assert reasons(adapter)[:4] == [
        (ProblemCode.EC2_THROTTLED, 1),
        (ProblemCode.EC2_STATUS_CHECK, 2),
        (ProblemCode.EC2_THROTTLED, 3),
        (ProblemCode.EC2_STATUS_CHECK, 4),
    ]
    assert adapter.called("launch") > 100
    assert len(reasons(adapter)) <= 2 * 9


async def test_attempts_are_counted_on_by_whoever_takes_over(given: Given):
    delayed = OperationDelayed(
        operation_id="create", problem=THROTTLED.problem, attempts=16, next_at=NOW - timedelta(minutes=1)
    )
    adapter = given(*REQUESTED, delayed).refusing("launch", THROTTLED)
    await adapter.triggered()
    assert reasons(adapter) == [(ProblemCode.EC2_THROTTLED, 17)]


async def test_each_operation_of_a_worker_says_what_it_waits_for(given: Given):
    tag = TAG.model_copy(update={"operation_id": "tag"})
    adapter = given(*RUNNING, STOP, tag).observed(instance())
    adapter.refusing("stop", THROTTLED).refusing("add_tags", REFUSED_CREDENTIALS)
    await adapter.triggered()
    assert {each.operation_id: each.problem.code for each in adapter.reports(AttemptDelayed)} == {
        "the-operation": ProblemCode.EC2_THROTTLED,
        "tag": ProblemCode.EC2_AUTHENTICATION,
    }


async def test_a_reason_that_could_not_be_published_is_reported_with_the_next_attempt(given: Given):
    adapter = given(*REQUESTED).refusing("launch", THROTTLED, times=3)
    adapter.outbox.broken = 2
    assert await adapter.triggered() == WAITS
    await adapter.passes(30)
    assert reasons(adapter) == [(ProblemCode.EC2_THROTTLED, 3)]
