"""What the adapter publishes: reports on operations and instances, and reminders to itself.

The id of a report follows from what it says, so that a repetition is recognised.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from uuid import NAMESPACE_URL, UUID, uuid5

import structlog

from cml_contracts.instance import Ec2Instance
from cml_contracts.results import Problem
from cml_workers.bus.codec import internal
from cml_workers.bus.port import BusUnavailableError, Publish, UnroutableError
from cml_workers.domain.messages import (
    AttemptDelayed,
    AttemptRefused,
    InstanceObserved,
    LookupAnswered,
    Reminder,
    Report,
)
from cml_workers.domain.worker import Worker
from cml_workers.ec2_adapter.attempts import Report as OperationReport
from cml_workers.ec2_adapter.attempts import Turn, generation
from cml_workers.foundation.tracing import TRACEPARENT

log = structlog.get_logger(__name__)

NOBODY = UUID(int=0)
"""The worker that a reminder names which is only meant to arrive."""

_NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers/report")


class Reports:
    """Publishes; every method but ``announce``, ``recheck`` and ``delayed`` raises BusUnavailableError if it is not confirmed."""

    def __init__(
        self, publish: Publish, now: Callable[[], datetime], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._publish = publish
        self._now = now
        self._sleep = sleep

    async def announce(self) -> None:
        """Trigger the leader, so that it knows that it is; until it does, what fails is only reported later."""
        try:
            await self._send(Reminder(worker_id=NOBODY), f"{self._now().isoformat()}/call")
        except (BusUnavailableError, UnroutableError) as error:
            log.warning("no reminder arrives; are exchanges and queues as they should be?", cause=str(error))

    async def outcome(self, turn: Turn, report: OperationReport) -> None:
        """Report, and remember it: until the stream shows it the operation looks pending, and must not be attempted again."""
        turn.attempt.reported(report)
        kind = "refusal" if isinstance(report, AttemptRefused) else "outcome"
        operation = turn.operation
        await self._send(report, f"{turn.worker.id}/{operation.command_id}/{generation(operation)}/{kind}")
        turn.attempt.confirmed = True

    async def delayed(self, turn: Turn, problem: Problem, next_at: datetime) -> None:
        """Report what the operation waits for, if that is news; where it is not confirmed, the next attempt's report is."""
        attempt, operation = turn.attempt, turn.operation
        if not attempt.fails(problem):
            return
        report = AttemptDelayed(
            worker_id=turn.worker.id,
            operation_id=operation.command_id,
            problem=problem,
            attempts=attempt.unsuccessful,
            next_at=next_at,
            generation=turn.generation,
        )
        with suppress(BusUnavailableError):
            await self._send(
                report,
                f"{turn.worker.id}/{operation.command_id}/{generation(operation)}/{next_at.isoformat()}",
                operation.requested.traceparent,  # its attempt is over
            )
            attempt.reasons.add(problem.code)

    async def observed(self, worker: Worker, instance: Ec2Instance | None) -> None:
        """Report how EC2 shows the instance; None: it is gone."""
        report = InstanceObserved(
            worker_id=worker.id, seen_revision=worker.observed_revision, instance=instance
        )
        await self._send(report, f"{worker.id}/{worker.observed_revision}/{report.model_dump_json()}")

    async def answered(self, answer: LookupAnswered, request_id: str | None) -> None:
        """Answer a lookup request."""
        await self._send(answer, f"{request_id}/answer")

    async def remind(self, worker_id: UUID) -> None:
        """Have the leader look at the worker, as this process will not do it any more."""
        await self._send(Reminder(worker_id=worker_id), f"{worker_id}/{self._now().isoformat()}/handed over")

    async def recheck(self, worker_id: UUID) -> None:
        """Have the leader compare the instance; whoever that is, and however long it takes to publish that."""
        since = self._now()
        log.warning("a call may be carried out late; the instance will be rechecked")
        while True:
            try:
                recheck = Reminder(worker_id=worker_id, recheck_since=since)
                return await self._send(recheck, f"{worker_id}/{since.isoformat()}/recheck")
            except BusUnavailableError:
                await self._sleep(1.0)

    async def _send(self, report: Report | Reminder, identity: str, traceparent: str | None = None) -> None:
        message = internal(report, str(uuid5(_NAMESPACE, identity)))
        if traceparent is not None:
            message = replace(message, headers={**message.headers, TRACEPARENT: traceparent})
        await self._publish(message)
