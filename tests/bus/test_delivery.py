"""The delivery policy: what becomes of a message, by how its handling ended."""

import pytest

from cml_workers.bus.delivery import MAX_FAULTS, Requeue, Settlement, settle
from cml_workers.bus.port import (
    Ack,
    BusUnavailableError,
    CallerRefusesError,
    DeadLetter,
    Retry,
    UnroutableError,
    Verdict,
)
from cml_workers.bus.topology import DEAD_LETTER_QUEUE, HANDLED, LIFECYCLE_COMMANDS, PROJECTOR_QUERIES
from cml_workers.foundation.failures import ConfigurationError

WORK, QUERIES = LIFECYCLE_COMMANDS, PROJECTOR_QUERIES
BROKEN = DeadLetter("no JSON", "ValidationFailed")


@pytest.mark.parametrize("queue", HANDLED, ids=lambda queue: queue.name)
@pytest.mark.parametrize("verdict", [Ack(), BROKEN])
def test_a_final_verdict_stands(queue, verdict: Verdict):
    assert settle(queue, verdict, attempt=3, faults=2).verdict == verdict


@pytest.mark.parametrize(
    ("asked", "attempt", "delay"),
    [
        (None, 0, 1),
        (None, 4, 1),
        (None, 5, 5),
        (None, 14, 5),
        (None, 15, 30),
        (None, 999, 30),
        (1, 99, 1),
        (2, 0, 5),
        (30, 0, 30),
        (31, 0, 30),
    ],
)
def test_a_retry_waits_longer_from_attempt_to_attempt_or_as_long_as_asked(asked, attempt, delay):
    assert settle(WORK, Retry(asked), attempt=attempt, faults=0).verdict == Retry(delay)


@pytest.mark.parametrize(
    "error", [BusUnavailableError("x"), ConnectionError("x"), ConfigurationError("x"), UnroutableError("x")]
)
def test_what_is_not_the_messages_fault_never_counts_against_it(error: Exception):
    settled = settle(WORK, error, attempt=10_000, faults=MAX_FAULTS - 1)
    assert settled.verdict == Retry(30)
    assert settled.faults == MAX_FAULTS - 1


def test_a_message_that_fails_again_and_again_becomes_a_dead_letter():
    error = RuntimeError("a bug")
    faults = 0
    for _ in range(MAX_FAULTS - 1):
        settled = settle(WORK, error, attempt=0, faults=faults)
        assert settled.verdict == Retry(1)
        assert settled.faults == faults + 1
        faults = settled.faults
    last = settle(WORK, error, attempt=0, faults=faults).verdict
    assert isinstance(last, DeadLetter)
    assert last.cause == "HandlerFailed"
    assert str(error) in last.reason


def test_a_reply_that_its_caller_refuses_is_tried_again_and_then_dropped():
    faults = 0
    for _ in range(MAX_FAULTS - 1):
        settled = settle(WORK, CallerRefusesError("full"), attempt=0, faults=faults)
        assert settled.verdict == Retry(1)
        faults = settled.faults
    assert settle(WORK, CallerRefusesError("full"), attempt=0, faults=faults).verdict == Ack()
    assert settle(QUERIES, CallerRefusesError("full"), attempt=0, faults=0).verdict == Ack()


def test_what_has_no_retry_queue_goes_back_to_its_own_or_is_kept_at_once():
    for cause in (ConnectionError(), BusUnavailableError("its reply was not confirmed"), Retry(30)):
        assert settle(QUERIES, cause, attempt=0, faults=0) == Settlement(Requeue(), 0)
    assert isinstance(settle(QUERIES, RuntimeError(), attempt=0, faults=0).verdict, DeadLetter)


def test_the_dead_letter_queue_is_the_last_resort():
    settled = settle(DEAD_LETTER_QUEUE, RuntimeError(), attempt=0, faults=10 * MAX_FAULTS)
    assert settled.verdict == Retry(1)
