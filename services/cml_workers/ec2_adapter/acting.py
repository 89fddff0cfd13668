"""One attempt at one operation, and what is made of its end.

Whatever is not known yet is attempted again with the same parameters and token. A definite error is a refusal: it is
recorded first, so that nobody tries again, and becomes the operation's failure when no attempt that may have got
through has shown its effect.
"""

from collections.abc import Mapping
from datetime import timedelta

import structlog

from cml_contracts.events import (
    LaunchRequested,
    TagsUpdateRequested,
    TerminationRequested,
)
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.messages import AttemptRefused, OperationFailed, OperationSucceeded
from cml_workers.ec2_adapter.attempts import Report, Turn
from cml_workers.ec2_adapter.errors import EC2Exception, OutcomeUnknownError, Remedy
from cml_workers.ec2_adapter.instances import Gone, Instances
from cml_workers.ec2_adapter.launch import is_launched, launch
from cml_workers.ec2_adapter.power import POWERS, is_switched, is_terminated, switch, terminate
from cml_workers.ec2_adapter.retry_policy import Rule
from cml_workers.ec2_adapter.tags import are_updated, update_tags
from cml_workers.ec2_adapter.tenure import NotYet, Tenure
from cml_workers.foundation.tracing import (
    ATTEMPT,
    COMMAND,
    INSTANCE,
    PROBLEM,
    REGION,
    STATUS,
    Attributes,
    past,
    span,
)

log = structlog.get_logger(__name__)

Final = LaunchRequested | TerminationRequested
"""What no call that comes late can undo: a launch has its token, and after a termination there is nothing."""


class Acting:
    """Attempts operations and reports."""

    def __init__(self, here: Instances, tenure: Tenure, rules: Mapping[Remedy, Rule]) -> None:
        self._here = here
        self._tenure = tenure
        self._rules = rules

    async def act(self, turn: Turn, *, suspect: bool, remind: bool) -> None:
        """Go on with the operation until it is reported.

        ``suspect``: another process may have had the message; ``remind``: the report may have been lost, send it again.

        Raises:
            NotYet: it has to go on later; InTransition: when the instance has moved.
            BusUnavailableError: the report is not confirmed; go on soon.
        """
        attempt = turn.attempt
        known = attempt.report
        if known is not None and (turn.operation.refusal is None or not isinstance(known, AttemptRefused)):
            # It is on its way; acting again would undo its meaning. Where it may have been lost, it is sent again.
            if remind or not attempt.confirmed:
                await self._here.reports.outcome(turn, known)
            return
        self._suspect(turn, suspect=suspect)
        about, parent = _about(turn), turn.operation.requested.traceparent
        if attempt.waits_since is not None:
            past("wait", about, since=attempt.waits_since, until=self._here.now(), parent=parent)
            attempt.waits_since = None
        with span("attempt", about, parent=parent) as attempting:
            report = await self._attempt(turn)
            refused = None if isinstance(report, OperationSucceeded) else report.problem.code
            attempting.put({PROBLEM: refused})
            await self._report(turn, report)

    async def _report(self, turn: Turn, report: Report) -> None:
        if isinstance(report, OperationFailed):
            await turn.lease.renew()  # nothing may have shown its effect meanwhile
        elif not turn.lease.is_certain and not await self._counts(turn, report):
            raise NotYet
        await self._here.reports.outcome(turn, report)

    @staticmethod
    async def _counts(turn: Turn, report: Report) -> bool:
        """Whether it does though it took EC2 long to answer, or the process was paused: while the operation is pending."""
        if isinstance(report, AttemptRefused) and not turn.lease.is_held:
            return False
        return turn.operation.command_id in (await turn.lease.newest()).operations

    def _suspect(self, turn: Turn, *, suspect: bool) -> None:
        """An operation from before this tenure, or a message that somebody else had, may have been acted on already.

        Raises NotYet while it is too early to act on it.
        """
        before = self._tenure.is_before(turn.operation.requested.time)
        if before or suspect:
            attempt = turn.attempt
            attempt.uncertain_since = attempt.uncertain_since or self._here.now()
            attempt.unanswered = True
        if before and self._tenure.is_young:
            raise NotYet

    async def _attempt(self, turn: Turn) -> Report:
        attempt, refusal = turn.attempt, turn.operation.refusal
        try:
            if refusal is not None:
                return await self._after_refusal(turn, refusal)
            done = await self._carry_out(turn)
        except Gone:
            return await self._gone(turn)
        except OutcomeUnknownError as error:
            log.warning("outcome unknown, asking again", cause=str(error))
            attempt.unanswered = True
            if refusal is None:
                attempt.uncertain_since = self._here.now()
            raise NotYet(error.problem) from error
        except EC2Exception as error:
            return await self._judge(turn, error)
        # Until it is reported: whatever an attempt after this one is answered, this one did it.
        attempt.uncertain_since = self._here.now()
        if attempt.unanswered and not isinstance(turn.intent, Final):
            # Published before the report: whoever dies in between, it is there.
            await self._here.reports.recheck(turn.worker.id)
        return done

    async def _carry_out(self, turn: Turn) -> OperationSucceeded:
        intent, here = turn.intent, self._here
        match intent:
            case LaunchRequested():
                return await launch(turn, intent.launch, here)
            case TerminationRequested():
                return await terminate(turn, here)
            case TagsUpdateRequested():
                return await update_tags(turn, intent, here)
            case _:
                return await switch(turn, POWERS[type(intent)], here)

    async def _is_done(self, turn: Turn) -> OperationSucceeded | None:
        """Whether an attempt got through, as far as EC2 shows; nothing is changed."""
        intent, here = turn.intent, self._here
        match intent:
            case LaunchRequested():
                return await is_launched(turn, intent.launch, here)
            case TerminationRequested():
                return await is_terminated(turn, here)
            case TagsUpdateRequested():
                return await are_updated(turn, intent, here)
            case _:
                return await is_switched(turn, POWERS[type(intent)], here)

    async def _after_refusal(self, turn: Turn, refusal: Problem) -> Report:
        """The failure, unless an attempt before it may have got through: then what EC2 shows decides.

        Raises:
            NotYet: it may still show.
            EC2Error: it cannot be looked at; an uncertain operation does not fail before it was.
        """
        since = turn.attempt.uncertain_since
        if since is not None:
            done = await self._is_done(turn)
            if done is not None:
                log.warning("refused, but done before")
                return done
            if self._here.now() - since < self._patience(turn):
                raise NotYet
        return self._failed(turn, refusal)

    def _patience(self, turn: Turn) -> timedelta:
        """How long an attempt with an unknown outcome may still show its effect."""
        launching = isinstance(turn.intent, LaunchRequested)
        return self._here.visibility_grace if launching else self._here.settling

    async def _judge(self, turn: Turn, error: EC2Exception) -> AttemptRefused:
        """The refusal, if it is final. Raises NotYet if the operation is to be attempted again."""
        rule = self._rules[error.remedy]
        if rule.refresh_credentials:
            await self._here.calls.refresh(turn.worker.aws_region)
        age = self._here.now() - turn.operation.requested.time
        if age < rule.final_after or turn.operation.refusal is not None:
            log.warning("EC2 refused, trying again", code=error.aws_code, cause=str(error))
            raise NotYet(error.problem) from error
        if rule.uncertain:
            turn.attempt.uncertain_since = turn.attempt.uncertain_since or self._here.now()
        log.warning("EC2 refused for good", code=error.aws_code, cause=str(error))
        return AttemptRefused(
            worker_id=turn.worker.id,
            operation_id=turn.operation.command_id,
            problem=error.problem,
            generation=turn.generation,
        )

    async def _gone(self, turn: Turn) -> OperationFailed:
        await self._here.reports.observed(turn.worker, None)
        instance_id = turn.worker.instance.instance_id if turn.worker.instance else "?"
        return self._failed(
            turn,
            Problem.of(
                ProblemCode.EC2_INSTANCE_NOT_FOUND,
                f"instance {instance_id} of worker {turn.worker.id} no longer exists",
            ),
        )

    @staticmethod
    def _failed(turn: Turn, problem: Problem) -> OperationFailed:
        return OperationFailed(
            worker_id=turn.worker.id,
            operation_id=turn.operation.command_id,
            problem=problem,
            generation=turn.generation,
        )


def _about(turn: Turn) -> Attributes:
    worker = turn.worker
    return {
        ATTEMPT: turn.attempt.unsuccessful + 1,
        COMMAND: turn.operation.kind.command.TYPE,
        REGION: worker.aws_region,
        STATUS: worker.status,
        INSTANCE: worker.instance.instance_id if worker.instance else None,
    }
