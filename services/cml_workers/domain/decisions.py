"""What a rule answers, and how it says no."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cml_contracts.events import (
    WorkerEvent,
)
from cml_contracts.results import Outcome, Problem, ProblemCode
from cml_workers.domain.messages import Lookup, LookupResult


@dataclass(frozen=True, slots=True)
class Record:
    """These events happen; never none."""

    events: Sequence[WorkerEvent]


@dataclass(frozen=True, slots=True)
class NoChange:
    """What is asked for is so already, or is known; ``data``: of the reply to a command.

    ``news``: what EC2 showed meanwhile, to be recorded all the same.
    """

    data: Any = None
    news: Sequence[WorkerEvent] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """EC2 has to be asked before this can be decided."""

    lookup: Lookup


@dataclass(frozen=True, slots=True)
class Reject:
    """Nothing happens. ``failed`` instead of ``rejected``: it cannot be done as AWS is set up; ``news``: likewise."""

    problem: Problem
    outcome: Outcome = "rejected"
    news: Sequence[WorkerEvent] = ()


Decision = Record | NoChange | Ask | Reject


class RejectedError(Exception):
    """How a rule says no, wherever it stands; ``decide`` and ``decide_report`` answer with its decision."""

    def __init__(self, problem: Problem, outcome: Outcome = "rejected") -> None:
        super().__init__(problem.detail)
        self.decision = Reject(problem, outcome)


class LookupNeededError(Exception):
    """How a rule says that it needs EC2's answer; ``decide`` answers with its decision."""

    def __init__(self, lookup: Lookup) -> None:
        super().__init__(type(lookup).__name__)
        self.decision = Ask(lookup)


class IdTakenError(Exception):
    """Another user has used the command's id first: it has to be judged under an id of its own."""


def answer_to(lookup: Lookup, looked_up: LookupResult | None) -> LookupResult:
    """What EC2 answered. Raises LookupNeededError where it has not been asked, RejectedError where it said why it cannot."""
    if looked_up is None:
        raise LookupNeededError(lookup)
    if looked_up.problem:
        raise RejectedError(looked_up.problem, "failed")
    return looked_up


def rejected(code: ProblemCode, detail: str, *, retryable: bool = False) -> RejectedError:
    """A rule of ours says no."""
    return RejectedError(Problem.of(code, detail, retryable=retryable))


def failed(code: ProblemCode, detail: str, *, retryable: bool = False) -> RejectedError:
    """It cannot be done as AWS is set up."""
    return RejectedError(Problem.of(code, detail, retryable=retryable), "failed")
