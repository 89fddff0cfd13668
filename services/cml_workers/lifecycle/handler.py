"""Commands and reports: load, decide, append at the expected version, reply.

Deduplication has two parts. A *claim*, in a tiny stream of the command's own, binds its id to one body and one
worker for ever. The worker's stream says what became of the command, rejections and skips included, so that a
repetition finds the answer and is never decided a second time; a status update, which mostly changes nothing,
has its answer in the command's own stream.
"""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, assert_never
from uuid import NAMESPACE_URL, UUID, uuid5

import structlog

from cml_contracts.commands import COMMANDS, UpdateCMLWorkerStatus, WorkerCommand
from cml_contracts.events import CommandRejected, CommandSkipped, WorkerEvent
from cml_contracts.results import OperationResult, Outcome, Problem, ProblemCode
from cml_contracts.tokens import TOKEN_HEADER
from cml_workers.bus.codec import BadMessageError, identity, internal, read, reply, reply_address
from cml_workers.bus.port import (
    Ack,
    CallerRefusesError,
    DeadLetter,
    Message,
    Outgoing,
    Publish,
    Retry,
    Verdict,
)
from cml_workers.domain.authorization import UnauthorizedError, authorized_actor
from cml_workers.domain.decide import Ask, Lookup, NoChange, Record, Reject, already_so, decide, decide_report
from cml_workers.domain.history import EventMetadata, Recorded, ReplyAddress
from cml_workers.domain.messages import (
    MAX_INTERNAL_BODY,
    REPORTS,
    CommandMessage,
    ImageLookup,
    InstanceLookup,
    LookupAnswered,
    LookupRequested,
    LookupResult,
    Report,
    WorkerReport,
)
from cml_workers.domain.policy import Access, Policy
from cml_workers.domain.worker import Operation, Worker, settled_by
from cml_workers.eventstore.command_streams import answer_of, bind_answer, claim, fingerprint, load_claim
from cml_workers.eventstore.port import NO_STREAM, EventStore, NewEvent, WrongExpectedVersionError
from cml_workers.eventstore.worker_streams import Workers

log = structlog.get_logger(__name__)

REFUSALS = "cml_refused-"
REFUSED_TYPE = "cml.command.unauthorized.v1"
TRIES = 20
"""Lost races on one stream before the message is put aside for a second."""
UNSEEN_ATTEMPTS = 10
"""Attempts, a second apart, for which a replica of the store may lag behind what a message refers to."""

_NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers/event")
_TRACEPARENT = re.compile(r"[0-9a-f]{1,32}(-[0-9a-f]{1,32}){3}")
"""https://www.w3.org/TR/trace-context/#traceparent-header, in outline; anything else is left away."""


class UnclaimedError(Exception):
    """Nobody has claimed the command: it was never sent, or a replica of the store lags behind."""


Due = Callable[[Worker], Awaitable[Sequence[Outgoing]]]
"""What a message owes beside the replies that its events made due, given the worker after them."""


def _these(*outgoing: Outgoing) -> Due:
    async def due(_: Worker) -> Sequence[Outgoing]:
        return outgoing

    return due


@dataclass(frozen=True, slots=True)
class Append:
    """Record these events, then finish."""

    events: Sequence[WorkerEvent]
    due: Due = field(default_factory=_these)


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is recorded; send what is due."""

    due: Due = field(default_factory=_these)


Step = Append | Finish | Retry | DeadLetter
"""What is to be done about a message, given its worker."""


class Lifecycle:
    """Handles the commands and reports of all workers; knows nothing but what the streams tell."""

    def __init__(
        self,
        *,
        store: EventStore,
        publish: Publish,
        policy: Policy,
        access: Access,
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
    ) -> None:
        self._store = store
        self._workers = Workers(store)
        self._publish = publish
        self._policy = policy
        self._access = access
        self._now = now
        self._new_id = new_id

    async def on_command(self, message: Message) -> Verdict:
        """Decide a command that came from outside."""
        try:
            command_id = identity(message)
            command: WorkerCommand = read(message, COMMANDS)
        except BadMessageError as error:
            await self._refuse(message, error.problem)
            return DeadLetter(error.problem.detail, error.problem.code)
        with structlog.contextvars.bound_contextvars(
            command_id=command_id,
            correlation_id=message.correlation_id,
            command=command.TYPE,
            worker_id=str(command.worker(command_id)),
        ):
            user = message.user_id if self._access.enforced else None
            try:
                actor = authorized_actor(
                    command,
                    command_id,
                    user_id=message.user_id,
                    token=_text(message.headers.get(TOKEN_HEADER)),
                    access=self._access,
                    now=self._now(),
                )
            except UnauthorizedError as error:
                # Its token may have run out since: what was authorized once is not judged a second time.
                before = await load_claim(self._store, command_id) if user else None
                if before is None or (before.user, before.fingerprint) != (user, fingerprint(command)):
                    await self._audit(message, command, error.problem)
                    await self._refuse(message, error.problem)
                    return DeadLetter(error.problem.detail, error.problem.code)
                actor = before.actor
            accepted = CommandMessage(
                command_id=command_id,
                command=command,
                command_type=command.TYPE,
                correlation_id=message.correlation_id or command_id,
                actor=actor,
                user=user,
                traceparent=_traceparent(message.headers.get("traceparent")),
                reply=reply_address(message),
            )
            if not await claim(self._store, accepted):
                problem = _reused(command_id)
                await self._refuse(message, problem)
                return DeadLetter(problem.detail, problem.code)
            return await self._decide(accepted, attempt=message.attempt)

    async def on_report(self, message: Message) -> Verdict:
        """Record what the EC2 adapter did, saw or found."""
        try:
            report_id = identity(message)
            report: Report = read(message, REPORTS, limit=MAX_INTERNAL_BODY)
        except BadMessageError as error:
            return DeadLetter(error.problem.detail, error.problem.code)
        if isinstance(report, LookupAnswered):
            with structlog.contextvars.bound_contextvars(
                command_id=report.origin.command_id, worker_id=str(report.origin.worker_id)
            ):
                return await self._decide(report.origin, answered=report, attempt=message.attempt)

        with structlog.contextvars.bound_contextvars(worker_id=str(report.worker_id)):
            return await self._settle(report, report_id, message.attempt)

    async def _settle(self, report: WorkerReport, report_id: str, attempt: int) -> Verdict:
        def judge(worker: Worker) -> Step:
            decision = decide_report(report, worker)
            match decision:
                case Record(events):
                    return Append(events)
                case NoChange():
                    return Finish()
                case Reject(problem):
                    # A replica of the store that lags behind may not have the operation yet.
                    return Retry(1) if attempt < UNSEEN_ATTEMPTS else DeadLetter(problem.detail, problem.code)
            assert_never(decision)

        return await self._transact(report.worker_id, report_id, judge)

    async def _decide(
        self, message: CommandMessage, *, answered: LookupAnswered | None = None, attempt: int = 0
    ) -> Verdict:
        if isinstance(message.command, UpdateCMLWorkerStatus):
            return await self._decide_status(message, answered, attempt)

        def judge(worker: Worker) -> Step:
            operation = worker.operations.get(message.command_id)
            if operation is not None:
                return self._repeat(message, operation)
            finding = _still_true(answered, worker)
            decision = decide(message, worker, policy=self._policy, now=self._now(), finding=finding)
            match decision:
                case Record(events):
                    return Append(events)
                case NoChange(data):
                    return Append([_skipped(message, data)])
                case Reject():
                    return Append([_refused(message, decision)])
                case Ask(question):
                    return Finish(_these(_lookup(message, question)))
            assert_never(decision)

        return await self._transact(message.worker_id, message.command_id, judge, message)

    def _repeat(self, message: CommandMessage, operation: Operation) -> Step:
        """A command that was accepted before: the same reply again, as soon as there is one.

        While it is pending, its outcome will be sent to the address on record; only another address has to wait.
        """
        if operation.result is None and message.reply not in (None, operation.requested.reply):
            return Retry()
        return Finish(_these(*_replies(operation.result, message.reply)))

    async def _decide_status(
        self, message: CommandMessage, answered: LookupAnswered | None, attempt: int
    ) -> Verdict:
        """What EC2 shows becomes an event if it is news; the answer is bound before it is sent.

        Nobody but the first delivery to bind its answer decides what this command is told, now and later. What a
        lookup found is recorded whether or not another delivery has bound an answer: if an append of it timed
        out, it either is there now or can no longer come, and only then is it known which replies are due.
        """

        def judge(worker: Worker) -> Step:
            finding = _still_true(answered, worker)

            def shown(after: Worker) -> OperationResult:
                return _result(message, "succeeded", data=already_so(message, after, finding))

            decision = decide(message, worker, policy=self._policy, now=self._now(), finding=finding)
            match decision:
                case Record(events):
                    return Append(events, self._bound(message, shown))
                case NoChange():
                    return Finish(self._bound(message, shown))
                case Reject(problem, outcome):
                    rejected = _result(message, outcome, problem=problem)
                    return Finish(self._bound(message, lambda _: rejected))
                case Ask(question):
                    return Finish(self._bound_or_asked(message, question))
            assert_never(decision)

        try:
            return await self._transact(message.worker_id, message.command_id, judge, message)
        except UnclaimedError:
            if attempt < UNSEEN_ATTEMPTS:
                return Retry(1)  # a replica of the store that lags behind
            return DeadLetter(
                f"nobody sent the command {message.command_id!r}", ProblemCode.VALIDATION_FAILED
            )

    def _bound(self, message: CommandMessage, result: Callable[[Worker], OperationResult]) -> Due:
        async def due(worker: Worker) -> Sequence[Outgoing]:
            bound = await bind_answer(self._store, result(worker), self._new_id())
            if bound is None:
                raise UnclaimedError
            return _replies(bound, message.reply)

        return due

    def _bound_or_asked(self, message: CommandMessage, question: Lookup) -> Due:
        async def due(_: Worker) -> Sequence[Outgoing]:
            bound = await answer_of(self._store, message.command_id)
            return _replies(bound, message.reply) if bound else [_lookup(message, question)]

        return due

    async def _transact(
        self,
        worker_id: UUID,
        cause: str,
        judge: Callable[[Worker], Step],
        origin: CommandMessage | None = None,
    ) -> Verdict:
        """Take the worker at hand, judge, append at the expected version, and finish; all ways go through here.

        A worker that is kept may be old. An append shows that by its conflict; where nothing is appended, the
        newest is read first.
        """
        async with self._workers.turn(worker_id):
            worker = self._workers.at_hand(worker_id)
            read = worker is None
            if worker is None:
                worker = await self._workers.newest(worker_id)
            for _ in range(TRIES):
                step = judge(worker)
                if isinstance(step, Append):
                    try:
                        worker = await self._record(worker, step.events, cause=cause, origin=origin)
                        break
                    except WrongExpectedVersionError:
                        worker, read = await self._workers.newest(worker_id), True
                elif read:
                    break
                else:
                    worker, read = await self._workers.newest(worker_id), True
            else:
                return Retry(1)
        if isinstance(step, Retry | DeadLetter):
            return step
        return await self._finish(worker, cause, *await step.due(worker))

    async def _finish(self, worker: Worker, message_id: str, *due: Outgoing) -> Ack:
        """The only way in which the message of a worker is acknowledged: all that it caused is out.

        Which replies its events made due is read from the worker, never remembered: a delivery that finds the
        events there, as the one that appended them died or never learned of it, sends the same replies.
        ``due``: what else this delivery owes, e.g. a reply to an address that is not on record.

        Raises:
            BusUnavailableError: the message has to come again.
            CallerRefusesError: a caller does not take its reply; all others have theirs.
        """
        settled = settled_by(worker, message_id)
        recorded = [each for op in settled for each in _replies(op.result, op.requested.reply)]
        refused: CallerRefusesError | None = None
        for each in [*recorded, *(each for each in due if each not in recorded)]:
            try:
                await self._publish(each)
            except CallerRefusesError as error:
                refused = error
        if refused is not None:
            raise refused
        return Ack()

    async def _audit(self, message: Message, command: WorkerCommand, problem: Problem) -> None:
        """Keep for good that somebody tried; apart from the workers' streams, which strangers cannot fill."""
        log.warning("unauthorized", user=message.user_id, reason=problem.detail)
        attempt = {
            "command_id": message.message_id,
            "command_type": command.TYPE,
            "worker_id": str(command.worker(message.message_id or "")),
            "user": message.user_id,
            "claimed_actor": command.actor,
            "reason": problem.detail,
            "time": self._now().isoformat(),
        }
        event_id = self._new_id()
        refused = NewEvent(event_id, REFUSED_TYPE, json.dumps(attempt).encode(), b"{}")
        await self._store.append(f"{REFUSALS}{event_id}", [refused], expected=NO_STREAM)

    async def _record(
        self,
        worker: Worker,
        events: Sequence[WorkerEvent],
        *,
        cause: str,
        origin: CommandMessage | None = None,
    ) -> Worker:
        """Append the events and return the worker after them. Raises WrongExpectedVersionError.

        The event ids are new at every attempt: with ids that follow from the command, the store would take
        the append of a concurrent repetition for the first one's and answer both with success, and the
        second delivery would never learn that its reply is not on its way.
        """
        now = self._now()
        recorded = [
            Recorded(
                revision=worker.revision + 1 + index,
                event=event,
                metadata=_metadata(worker, event, now, self._new_id(), cause, origin),
            )
            for index, event in enumerate(events)
        ]
        worker = await self._workers.append(worker, recorded)
        log.info("recorded", events=[event.TYPE for event in events], cause=cause)
        return worker

    async def _refuse(self, message: Message, problem: Problem) -> None:
        result = OperationResult(command_id=message.message_id, outcome="rejected", problem=problem)
        for each in _replies(result, reply_address(message)):
            await self._publish(each)


def _metadata(
    worker: Worker,
    event: WorkerEvent,
    now: datetime,
    event_id: UUID,
    cause: str,
    origin: CommandMessage | None,
) -> EventMetadata:
    """An event of an operation is surrounded by what came with the command that asked for it."""
    operation_id = getattr(event, "operation_id", None)
    operation = worker.operations.get(operation_id) if operation_id else None
    if operation is not None:
        return operation.requested.model_copy(
            update={"event_id": event_id, "time": now, "causation_id": cause, "reply": None}
        )
    if origin is None:
        return EventMetadata(event_id=event_id, time=now, command_id=operation_id, causation_id=cause)
    of_command = operation_id in (None, origin.command_id)
    return EventMetadata(
        event_id=event_id,
        time=now,
        command_id=origin.command_id if of_command else operation_id,
        correlation_id=origin.correlation_id,
        causation_id=cause,
        actor=origin.actor,
        user=origin.user,
        reason=origin.command.reason,
        traceparent=origin.traceparent,
        reply=origin.reply if of_command else None,
    )


def _still_true(answered: LookupAnswered | None, worker: Worker) -> LookupResult | None:
    """What EC2 answered, unless a later event about the instance has overtaken it: then it is asked again."""
    if answered is None:
        return None
    question = answered.question
    if isinstance(question, InstanceLookup) and question.seen_revision < worker.observed_revision:
        return None
    return answered.finding


def _lookup(origin: CommandMessage, question: ImageLookup | InstanceLookup) -> Outgoing:
    request = LookupRequested(origin=origin, question=question)
    return internal(request, str(uuid5(_NAMESPACE, f"{origin.command_id}/lookup")), origin.correlation_id)


def _replies(result: OperationResult | None, address: ReplyAddress | None) -> list[Outgoing]:
    """The reply, if there is a result and somebody awaits it."""
    return [reply(result, address)] if result is not None and address is not None else []


def _refused(message: CommandMessage, rejected: Reject) -> CommandRejected:
    log.info("rejected", code=rejected.problem.code)
    return CommandRejected(
        operation_id=message.command_id,
        command_type=message.command_type,
        outcome=rejected.outcome,
        problem=rejected.problem,
    )


def _skipped(message: CommandMessage, data: Any) -> CommandSkipped:
    return CommandSkipped(operation_id=message.command_id, command_type=message.command_type, data=data)


def _result(
    message: CommandMessage, outcome: Outcome, *, data: Any = None, problem: Problem | None = None
) -> OperationResult:
    return OperationResult(
        command_id=message.command_id,
        worker_id=message.worker_id,
        outcome=outcome,
        data=data,
        problem=problem,
    )


def _reused(command_id: str) -> Problem:
    return Problem.of(
        ProblemCode.DUPLICATE_COMMAND,
        f"message_id {command_id!r} belongs to another command; take a new id for a new command",
    )


def _traceparent(header: object) -> str | None:
    return header if isinstance(header, str) and _TRACEPARENT.fullmatch(header) else None


def _text(header: object) -> str | None:
    return header if isinstance(header, str) and len(header) <= 1000 else None
