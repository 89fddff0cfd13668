"""What a rejected command may be replied, in every situation that the rules lead into."""

import pytest

from cml_contracts.commands import CreateCMLWorker, ImportCMLWorker
from cml_contracts.events import LaunchRequested, TerminationRequested
from cml_contracts.results import ProblemCode
from cml_workers.domain.operations import is_adoption
from support.walk import Step, walk

REJECTED = [step for step in walk() if step.rejected]


def _of(code: ProblemCode) -> list[Step]:
    return [step for step in REJECTED if step.rejected and step.rejected.code is code]


def _may_be_sent_again(step: Step) -> bool:
    """What is under way ends; a termination, and a worker that exists, do not make room."""
    worker = step.worker
    importing = isinstance(step.message, ImportCMLWorker) and any(map(is_adoption, worker.operations))
    creating = isinstance(step.message, CreateCMLWorker | ImportCMLWorker)
    occupied = creating and worker.exists and not importing
    ending = bool(worker.pending(TerminationRequested)) and not worker.pending(LaunchRequested)
    return not (occupied or ending)


@pytest.mark.parametrize("code", [ProblemCode.CONFLICT, ProblemCode.WORKER_NOT_FOUND])
def test_what_comes_too_early_says_that_it_may_be_sent_again(code: ProblemCode):
    steps = _of(code)
    assert {_may_be_sent_again(step) for step in steps} == ({True, False} if code == "Conflict" else {True})
    for step in steps:
        assert step.rejected
        assert step.rejected.retryable is _may_be_sent_again(step), (step.message, step.worker)


def test_what_is_final_does_not_say_so():
    for code in (ProblemCode.WORKER_TERMINATED, ProblemCode.NO_INSTANCE, ProblemCode.VALIDATION_FAILED):
        assert not any(step.rejected and step.rejected.retryable for step in _of(code))
    assert _of(ProblemCode.WORKER_TERMINATED)
    assert _of(ProblemCode.NO_INSTANCE)
