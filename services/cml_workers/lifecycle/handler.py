"""Commands and reports: load, decide, append at the expected version, reply.

The worker's stream says what became of each command that named it, rejections and no-ops included, so that a repetition
finds its result there and is never decided a second time. The id of a command that brings a worker into being is bound
to its body first, in a stream of its own (``eventstore/command_streams.py``). A status update asks EC2: a repetition
is answered by what EC2 shows then.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import assert_never
from uuid import UUID

import structlog
from pydantic import ValidationError

from cml_contracts.commands import (
    COMMANDS,
    CreateCMLWorker,
    ImportCMLWorker,
    UpdateCMLWorkerStatus,
    WorkerCommand,
)
from cml_contracts.results import OperationResult, Problem, ProblemCode
from cml_contracts.tokens import TOKEN_HEADER
from cml_workers.bus.codec import BadMessageError, identity, read, reply_address
from cml_workers.bus.headers import OPERATOR_HEADER
from cml_workers.bus.port import (
    Ack,
    DeadLetter,
    Message,
    Outgoing,
    Publish,
    Retry,
    Verdict,
)
from cml_workers.domain.authorization import UnauthorizedError, authorized_actor, check_owner
from cml_workers.domain.decide import already_so, decide
from cml_workers.domain.decisions import Ask, Decision, IdTakenError, NoChange, Record, Reject
from cml_workers.domain.history import Redrive, ReplyAddress, described, fingerprint, is_anothers
from cml_workers.domain.ledger import Entry, Ledger
from cml_workers.domain.messages import (
    MAX_INTERNAL_BODY,
    REPORTS,
    CommandMessage,
    InstanceLookup,
    InstanceObserved,
    Lookup,
    LookupAnswered,
    LookupResult,
    Report,
    WorkerReport,
)
from cml_workers.domain.operations import ids_of, of_user
from cml_workers.domain.policy import Access, Policy
from cml_workers.domain.reports import decide_report
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.command_streams import check_id, load_record
from cml_workers.eventstore.lookup_records import is_recorded, record_lookup
from cml_workers.eventstore.port import EventStore
from cml_workers.eventstore.worker_streams import UNSEEN_ATTEMPTS
from cml_workers.foundation.ids import bind
from cml_workers.foundation.tracing import TRACEPARENT, as_traceparent
from cml_workers.lifecycle.counting import count_unrecorded
from cml_workers.lifecycle.denials import Denials
from cml_workers.lifecycle.limits import Limits
from cml_workers.lifecycle.replies import (
    lookup_request,
    rejected,
    replies,
    result_of,
    skipped,
)
from cml_workers.lifecycle.sightings import Sightings
from cml_workers.lifecycle.transactions import (
    Append,
    Compare,
    Due,
    Duplicate,
    Finish,
    Judge,
    Step,
    Transactions,
    these,
)

log = structlog.get_logger(__name__)

CREATING = (CreateCMLWorker, ImportCMLWorker)
"""Commands that bring a worker into being."""
NOT_RECORDED = (
    "lifecycle has recorded no such command that waits for this lookup, so nothing is done; who has sent one, e.g. to an "
    "earlier version, has to send it again"
)


class Lifecycle:
    """Handles the commands and reports of all workers; knows nothing but the streams."""

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
        self._transactions = Transactions(store=store, publish=publish, now=now, new_id=new_id)
        self._denials = Denials(store, now=now, new_id=new_id)
        self._publish = publish
        self._policy = policy
        self._sightings = Sightings()
        self._access = access
        self._limits = Limits(worker=access.of_worker, user=access.of_user, now=now)
        self._now = now
        self._new_id = new_id

    async def on_command(self, message: Message) -> Verdict:
        """Decide a command that came from outside."""
        address: ReplyAddress | None = None
        try:
            address = reply_address(message, own=self._access.enforced)
            command_id = identity(message)
            command: WorkerCommand = read(message, COMMANDS)
            redrive = _redrive(message)
        except BadMessageError as error:
            await self._answer(message, address, error.problem)
            return DeadLetter(error.problem.detail, error.problem.code)
        user = message.user_id if self._access.enforced else None
        bind(
            command=command.TYPE,
            command_id=command_id,
            correlation_id=message.correlation_id,
            worker_id=command.worker(command_id),
        )
        try:
            actor = authorized_actor(
                command,
                command_id,
                body=message.body,
                user_id=message.user_id,
                token=_token(message.headers.get(TOKEN_HEADER)),
                access=self._access,
                now=message.received_at or self._now(),
            )
        except UnauthorizedError as error:
            # Its token may have expired since: what was authorized once is not judged a second time.
            before = await self._authorized_before(command, command_id, user) if user else None
            if before is None:
                await self._audit(command, command_id, message.user_id, error.problem, redrive)
                await self._answer(message, address, error.problem)
                return DeadLetter(error.problem.detail, error.problem.code)
            (actor,) = before
        accepted = CommandMessage(
            command_id=command_id,
            command=command,
            command_type=command.TYPE,
            correlation_id=message.correlation_id or command_id,
            actor=actor,
            user=user,
            traceparent=as_traceparent(message.headers.get(TRACEPARENT)),
            reply=address,
            redrive=redrive,
        )
        with self._limits.counted(accepted.worker_id, message.user_id) as excess:
            if excess is not None and not await self._is_recorded(accepted):
                return await self._throttle(accepted, excess)
            return await self._decide(accepted)

    async def _is_recorded(self, message: CommandMessage) -> bool:
        return await self._own(message.command, message.command_id, message.sender) is not None

    async def _own(self, command: WorkerCommand, command_id: str, user: str | None) -> Entry | None:
        """What became of the user's command under this id; None if it was never recorded."""
        for each in _ids(command_id, user):
            entry = await self._transactions.entry(command.worker(each), each)
            if entry is not None and not is_anothers(entry.requested.sender, user):
                return entry
        return None

    async def _throttle(self, message: CommandMessage, excess: str) -> Verdict:
        """Nothing is recorded of it, so that it may come again; if nobody learns of that, it comes again by itself."""
        if message.reply is None:
            return Retry()
        problem = Problem.of(ProblemCode.THROTTLED, excess, retryable=True)
        log.info("command answered", outcome="rejected", code=problem.code, reason=problem.detail)
        await self._refuse(message, problem)
        return Ack()

    async def _refuse(self, message: CommandMessage, problem: Problem) -> None:
        result = result_of(message, "rejected", problem=problem)
        for each in replies(result, message.reply):
            await self._publish(each)
        count_unrecorded(message.command_type, result, None, self._now())

    async def _authorized_before(
        self, command: WorkerCommand, command_id: str, user: str
    ) -> tuple[str | None] | None:
        """The actor for whom this very command of the user was authorized before; None if it was not."""
        entry = await self._own(command, command_id, user)
        if entry is not None and entry.requested.fingerprint is not None:
            first = entry.requested
            same = (first.user, first.fingerprint) == (user, fingerprint(command))
            return (first.actor,) if same else None
        for each in _ids(command_id, user):
            record = await load_record(self._store, each)
            if record and (record.user, record.fingerprint) == (user, fingerprint(command)):
                return (record.actor,)
        return None

    async def on_report(self, message: Message) -> Verdict:
        """Record what the EC2 adapter did, saw or found."""
        try:
            report_id = identity(message)
            report: Report = read(message, REPORTS, limit=MAX_INTERNAL_BODY)
        except BadMessageError as error:
            return DeadLetter(error.problem.detail, error.problem.code)
        if isinstance(report, LookupAnswered):
            bind(worker_id=report.origin.worker_id, **ids_of(report.origin.operation_id))
            if not await self._waits_for(report):
                # A replica of the store that lags behind may not have the record yet.
                return (
                    Retry(1) if message.attempt < UNSEEN_ATTEMPTS else DeadLetter(NOT_RECORDED, "NotRecorded")
                )
            return await self._decide(report.origin, answered=report)
        bind(worker_id=report.worker_id)
        if not isinstance(report, InstanceObserved):
            bind(**ids_of(report.operation_id))
        return await self._settle(report, report_id, message.attempt)

    async def _waits_for(self, answered: LookupAnswered) -> bool:
        """Whether its command was accepted. A status update is answered and changes nothing but what EC2 shows, so it is not recorded."""
        if isinstance(answered.origin.command, UpdateCMLWorkerStatus):
            return True
        return await is_recorded(self._store, answered.origin, answered.lookup)

    async def _settle(self, report: WorkerReport, report_id: str, attempt: int) -> Verdict:
        def judge(worker: Worker, ledger: Ledger | None) -> Step:
            decision = decide_report(report, worker, known=ledger.entries if ledger else ())
            match decision:
                case Record(events):
                    return Append(events)
                case NoChange():
                    return Finish()
                case Reject(problem):
                    # A replica of the store that lags behind may not have the operation yet.
                    return Retry(1) if attempt < UNSEEN_ATTEMPTS else DeadLetter(problem.detail, problem.code)
            assert_never(decision)

        about = None if isinstance(report, InstanceObserved) else report.operation_id
        return await self._transactions.transact(report.worker_id, report_id, judge, about=about)

    async def _decide(self, message: CommandMessage, *, answered: LookupAnswered | None = None) -> Verdict:
        is_status = isinstance(message.command, UpdateCMLWorkerStatus)
        judge = (self._judge_status if is_status else self._judge_command)(message, answered)
        try:
            verdict = await self._transactions.transact(
                message.worker_id, message.operation_id, judge, origin=message
            )
            unauthorized = ProblemCode.UNAUTHORIZED
            denied = verdict if isinstance(verdict, DeadLetter) and verdict.cause == unauthorized else None
            if denied and isinstance(message.command, CREATING):
                await check_id(self._store, message)
        except IdTakenError:
            # What is recorded under the id stays, so it is taken whenever the command comes again.
            own = message.model_copy(update={"taken": True})
            bind(worker_id=own.worker_id, **ids_of(own.operation_id))
            return await self._decide(own, answered=answered)
        if denied:
            problem = Problem.of(unauthorized, denied.reason)
            await self._audit(message.command, message.command_id, message.user, problem, message.redrive)
            await self._refuse(message, problem)
        return verdict

    def _denied(self, message: CommandMessage, worker: Worker) -> DeadLetter | None:
        """Nothing of it is recorded in the worker's stream, which is not theirs."""
        try:
            check_owner(message.command, message.actor, worker, self._access.ownership)
        except UnauthorizedError as error:
            return DeadLetter(error.problem.detail, error.problem.code)
        return None

    def _judge_command(self, message: CommandMessage, answered: LookupAnswered | None) -> Judge:
        creates = isinstance(message.command, CREATING)

        def judge(worker: Worker, ledger: Ledger | None) -> Step:
            if ledger and _is_taken(message, ledger):
                raise IdTakenError
            entry = ledger.entries.get(message.operation_id) if ledger else None
            if entry is not None:
                if entry.requested.user and message.user not in (None, entry.requested.user):
                    return Duplicate()  # whoever learns an id gets no result of another's command by it
                repeat = _repeat(message, entry)
                before = entry.requested.fingerprint
                if before is None:
                    return Compare(repeat)
                return repeat if before == fingerprint(message.command) else Duplicate()
            if denied := self._denied(message, worker):
                return denied
            decision = self._decision(message, worker, _still_true(answered, worker))
            match decision:
                case Record(events):
                    return Append(events, binds=creates)
                case NoChange(data, news):
                    return Append([*news, skipped(message, data)], checks=creates)
                case Reject(news=news):
                    return Append([*news, rejected(message, decision)], checks=creates)
                case Ask(lookup):
                    return Finish(self._asking(message, lookup))
            assert_never(decision)

        return judge

    def _decision(self, message: CommandMessage, worker: Worker, looked_up: LookupResult | None) -> Decision:
        now = self._now()
        worker = self._sightings.applied(worker)
        decision = decide(message, worker, policy=self._policy, now=now, looked_up=looked_up)
        unchanged = isinstance(decision, NoChange) and not decision.news
        if self._policy.observation_age and unchanged and looked_up and looked_up.instance:
            self._sightings.saw(worker, now)
        return decision

    def _judge_status(self, message: CommandMessage, answered: LookupAnswered | None) -> Judge:
        """What EC2 shows becomes an event if it is news, and is the answer."""

        def judge(worker: Worker, _: Ledger | None) -> Step:
            # Who comes with an answer was not denied when it was asked, or nobody ever asked, as it is not recorded: then nobody
            # is to be named for the attempt.
            if answered is None and (denied := self._denied(message, worker)):
                return denied
            looked_up = _still_true(answered, worker)

            answer = result_of(message, "succeeded")

            async def shown(after: Worker) -> Sequence[Outgoing]:
                data = already_so(message, after, looked_up)
                return replies(answer.model_copy(update={"data": data}), message.reply)

            decision = self._decision(message, worker, looked_up)
            match decision:
                case Record(news) | NoChange(news=news):
                    return Append(news, shown, answer=answer) if news else Finish(shown, answer)
                case Reject(problem, outcome):
                    refused = result_of(message, outcome, problem=problem)

                    async def refusal(_: Worker) -> Sequence[Outgoing]:
                        log.info(
                            "command answered", outcome=outcome, code=problem.code, reason=problem.detail
                        )
                        return replies(refused, message.reply)

                    return Finish(refusal, refused)
                case Ask(lookup):
                    return Finish(these(lookup_request(message, lookup)))
            assert_never(decision)

        return judge

    def _asking(self, message: CommandMessage, lookup: Lookup) -> Due:
        """The lookup request is due, once it is recorded which command waits for it: as it was sent."""
        asking = message.model_copy(update={"taken": False})

        async def due(_: Worker) -> Sequence[Outgoing]:
            await record_lookup(self._store, asking, lookup, self._new_id())
            return (lookup_request(asking, lookup),)

        return due

    async def _audit(
        self,
        command: WorkerCommand,
        command_id: str,
        user: str | None,
        problem: Problem,
        redrive: Redrive | None,
    ) -> None:
        """Keep for good that somebody tried; apart from the workers' streams, which strangers cannot fill."""
        attempt = {
            "command_id": command_id,
            "command_type": command.TYPE,
            "worker_id": str(command.worker(command_id)),
            "user": user,
            "claimed_actor": command.actor,
            "reason": problem.detail,
            "time": self._now().isoformat(),
            **({"redrive": redrive.model_dump()} if redrive else {}),
        }
        await self._denials.record(attempt)

    async def _answer(self, message: Message, address: ReplyAddress | None, problem: Problem) -> None:
        rejected = OperationResult(command_id=message.message_id, outcome="rejected", problem=problem)
        for each in replies(rejected, address):
            await self._publish(each)
        count_unrecorded(message.type, rejected, None, self._now())


def _ids(command_id: str, user: str | None) -> Iterable[str]:
    """What a user's command may be recorded under."""
    return dict.fromkeys((of_user(command_id, user), command_id))


def _is_taken(message: CommandMessage, ledger: Ledger) -> bool:
    """Whether another user has used the id first for this worker, or it was found taken before."""
    if message.taken or message.sender is None:
        return False
    first = ledger.entries.get(message.command_id)
    return message.own_id in ledger.entries or (
        first is not None and is_anothers(first.requested.sender, message.sender)
    )


def _repeat(message: CommandMessage, entry: Entry) -> Finish | Retry:
    """A command that was accepted before: the same reply again, as soon as there is one.

    While it is pending, its outcome will be sent to the address on record; only another address has to wait.
    """
    if entry.result is None and message.reply not in (None, entry.requested.reply):
        return Retry()
    return Finish(these(*replies(entry.result, message.reply)))


def _still_true(answered: LookupAnswered | None, worker: Worker) -> LookupResult | None:
    """What EC2 answered, unless a later event about the instance made it stale, or it is of another: then it is asked again."""
    if answered is None:
        return None
    lookup = answered.lookup
    if isinstance(lookup, InstanceLookup) and (
        lookup.seen_revision < worker.observed_revision
        or (worker.instance and worker.instance.instance_id != lookup.instance_id)
    ):
        return None
    return answered.looked_up


def _redrive(message: Message) -> Redrive | None:
    """The operator who sent it again. Raises BadMessageError."""
    header = message.headers.get(OPERATOR_HEADER)
    if header is None:
        return None
    try:
        return Redrive.model_validate_json(str(header))
    except ValidationError as error:
        raise BadMessageError(f"the header {OPERATOR_HEADER} cannot be read: {described(error)}") from error


def _token(header: object) -> str | None:
    """Without one the sender acts in its own name. What is there and is no text is a token that is not valid."""
    return header if header is None or isinstance(header, str) else ""
