"""What this process knows of attempts at operations that are not settled yet: nothing of it is in the stream.

It is kept by operation and generation, as a second launch under the same operation is another attempt, and is forgotten as
soon as the stream shows the operation settled. Whoever becomes the leader without it takes every older operation for
uncertain (``tenure.py``), so it may be lost at any time.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from typing import get_args
from uuid import UUID

from cml_contracts.events import Intent, LaunchRequested
from cml_contracts.instance import Ec2Instance
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.messages import AttemptRefused, OperationFailed, OperationSucceeded
from cml_workers.domain.worker import Operation, Worker
from cml_workers.ec2_adapter.tenure import Lease

MOST_WORKERS = 10_000
"""Workers of which attempts are known at most; a backstop, as what is settled is forgotten."""

Report = OperationSucceeded | AttemptRefused | OperationFailed
"""What is reported of an operation."""
Key = tuple[str, int]

_INTENTS: tuple[type[Intent], ...] = get_args(Intent)


@dataclass(slots=True)
class Attempt:
    """``uncertain_since``: since then an attempt may have got through, so that a refusal of a later one says nothing.

    ``unanswered``: a call was not answered, or may not have been: EC2 may carry it out late.
    ``report``: what was reported and is not seen in the stream yet; ``confirmed``: by the broker.
    ``waits_since``: since when it waits for the next attempt.
    ``unsuccessful``: attempts that EC2 did not carry out. Their ``reasons`` are reported once until ``unsuccessful`` has doubled.
    """

    uncertain_since: datetime | None = None
    unanswered: bool = False
    report: Report | None = None
    confirmed: bool = False
    unsuccessful: int = 0
    reasons: set[ProblemCode] = field(default_factory=set)
    waits_since: datetime | None = None
    _doubled_at: int = 1

    def fails(self, problem: Problem) -> bool:
        """One more attempt was unsuccessful; whether that is to be reported: a stream must not fill with reasons."""
        self.unsuccessful += 1
        if self.unsuccessful >= self._doubled_at:
            self._doubled_at = 2 * self.unsuccessful
            self.reasons.clear()
        return problem.code not in self.reasons

    @property
    def is_uncertain(self) -> bool:
        return self.uncertain_since is not None

    @property
    def is_done(self) -> bool:
        return isinstance(self.report, OperationSucceeded)

    def reported(self, report: Report) -> None:
        """It is remembered before it is sent: a report that was not confirmed may have arrived."""
        self.report, self.confirmed = report, False


@dataclass(frozen=True, slots=True)
class Turn:
    """One attempt at an operation, on what the stream showed when the lease began.

    ``seen``: the instance as the poller saw it just now; None if something else brought this about.
    """

    worker: Worker
    operation: Operation
    intent: Intent
    attempt: Attempt
    lease: Lease
    seen: Ec2Instance | None = None

    @property
    def instance(self) -> Ec2Instance:
        """The instance as it was seen last."""
        instance = self.seen or self.worker.instance
        assert instance is not None  # noqa: S101 - every operation but a launch has one
        return instance

    def succeeded(self, instance: Ec2Instance | None, warning: str | None = None) -> OperationSucceeded:
        """The report that it is done."""
        return OperationSucceeded(
            worker_id=self.worker.id,
            operation_id=self.operation.command_id,
            seen_revision=self.worker.observed_revision,
            instance=instance,
            warning=warning,
            generation=self.generation,
        )

    @property
    def generation(self) -> int | None:
        """The number of the launch; None for what is no launch."""
        return generation(self.operation) or None


@dataclass(eq=False)
class Attempts:
    """The attempts of all workers."""

    _of: OrderedDict[UUID, dict[Key, Attempt]] = field(default_factory=OrderedDict)

    def at(self, worker: Worker, operation: Operation) -> Attempt:
        """What is known of the attempts at this operation."""
        known = self._of.setdefault(worker.id, {})
        self._of.move_to_end(worker.id)
        if len(self._of) > MOST_WORKERS:
            self._of.popitem(last=False)
        attempt = known.get(_key(operation))
        if attempt is None:
            attempt = known[_key(operation)] = Attempt(
                unsuccessful=operation.delay.attempts if operation.delay else 0,
                waits_since=operation.delay.last_at if operation.delay else None,
            )
        return attempt

    def keep_pending(self, worker: Worker) -> None:
        """Forget what the worker's state shows as settled."""
        known = self._of.get(worker.id)
        if known is None:
            return
        pending = {_key(operation) for operation in worker.pending(*_INTENTS)}
        kept = {key: attempt for key, attempt in known.items() if key in pending}
        if kept and not worker.terminated:
            self._of[worker.id] = kept
        else:
            del self._of[worker.id]

    def forget(self, worker_id: UUID) -> None:
        """Forget a worker that has ended: no event of it comes that would show that."""
        self._of.pop(worker_id, None)

    def clear(self) -> None:
        """Forget everything, as another process may act."""
        self._of.clear()


def generation(operation: Operation) -> int:
    """The number of the launch; 0 for what is no launch."""
    return operation.intent.launch.generation if isinstance(operation.intent, LaunchRequested) else 0


def _key(operation: Operation) -> Key:
    return operation.command_id, generation(operation)
