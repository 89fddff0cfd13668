"""Carries out open intents on EC2, one at a time for each worker, and reports what happened.

A message only wakes: what to do is read from the worker's stream, so stale and repeated messages are harmless.
Whatever is not known yet is tried again with the same parameters and token. A definite error is a refusal: it is
recorded first, so that nobody tries again, and becomes the operation's failure when no attempt that may have got
through has shown its effect.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, assert_never
from uuid import NAMESPACE_URL, UUID, uuid5

import structlog

from cml_contracts.envelope import EventEnvelope
from cml_contracts.events import (
    Intent,
    LaunchRequested,
    StartFailed,
    StartRequested,
    StopFailed,
    StopRequested,
    TagsUpdateRequested,
    TerminationFailed,
    TerminationRequested,
)
from cml_contracts.instance import DEPLOYMENT_TAG, WORKER_TAG, Ec2Instance, InstanceState, LaunchParameters
from cml_contracts.results import Problem, ProblemCode
from cml_workers.bus.codec import BadMessageError, internal, read
from cml_workers.bus.port import (
    Ack,
    BusUnavailableError,
    DeadLetter,
    Message,
    Publish,
    Retry,
    UnroutableError,
    Verdict,
)
from cml_workers.domain.messages import (
    MAX_INTERNAL_BODY,
    AttemptRefused,
    ImageLookup,
    InstanceLookup,
    InstanceObserved,
    LookupAnswered,
    LookupRequested,
    LookupResult,
    OperationFailed,
    OperationSucceeded,
    Reminder,
    Report,
)
from cml_workers.domain.worker import Operation, Worker
from cml_workers.ec2_adapter.errors import (
    EC2Exception,
    EC2InstanceOperationException,
    OutcomeUnknownError,
    Remedy,
)
from cml_workers.ec2_adapter.next_action import Act, Watch, next_actions
from cml_workers.ec2_adapter.port import Ec2
from cml_workers.eventstore.port import EventStore
from cml_workers.eventstore.worker_streams import Workers

log = structlog.get_logger(__name__)

TRANSIENT = timedelta(minutes=2)
"""How long parameters that were created a moment ago may be unknown to EC2."""
STUBBORN = timedelta(minutes=10)
"""How long an instance may refuse an operation for its state before that is final."""
SETTLING = timedelta(minutes=1)
"""How long an attempt with an unknown outcome may still show its effect on an existing instance."""
LOOKUP_ATTEMPTS = 8
FRESH = timedelta(seconds=20)
"""How long what was read from the stream may be acted on, at most. It must be shorter than the broker bears with a
process that stands still (two heartbeats or more; RabbitMQ's is a minute), after which another one acts."""
TAKEOVER = timedelta(seconds=3)
"""How long who became the active one leaves older intents alone: what the one before it reported last must be seen,
also where a store that changes its leader shows an old state for a moment."""
NOBODY = UUID(int=0)
"""The worker that a reminder names which is only meant to arrive."""
RESUME_WATCHING = frozenset({StartFailed.TYPE, StopFailed.TYPE, TerminationFailed.TYPE})
"""Events after which an unsettled instance is watched again: the operation that ended by them came before that."""
REMEMBERED = 10_000
"""Reported outcomes kept until the stream shows them."""
UNSEEN_ATTEMPTS = 10
"""Seconds, and attempts, that a replica of the store may lag behind the event that woke us."""

_NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers/report")


T = TypeVar("T")
Outcome = OperationSucceeded | AttemptRefused | OperationFailed
Final = LaunchRequested | TerminationRequested
"""What no later call can undo: a launch has its token, and after a termination there is nothing."""


class NotYet(Exception):  # noqa: N818 - a state of affairs, not an error
    """The instance is not ready for the operation; look again later."""


class Gone(Exception):  # noqa: N818 - likewise
    """EC2 does not know the instance, asked twice, after the grace for new instances."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One attempt at an operation, on what the stream told at ``read_at``."""

    worker: Worker
    operation: Operation
    intent: Intent
    read_at: datetime


class Executor:
    """The one that acts on AWS. One instance at a time is active in a deployment (single active consumer)."""

    def __init__(
        self,
        *,
        store: EventStore,
        ec2: Ec2,
        publish: Publish,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        visibility_grace: timedelta = timedelta(minutes=5),
        authentication_grace: timedelta = timedelta(minutes=1),
        fresh: timedelta = FRESH,
        takeover: timedelta = TAKEOVER,
    ) -> None:
        self._workers = Workers(store)
        self._ec2 = ec2
        self._publish = publish
        self._now = now
        self._sleep = sleep
        self._visibility_grace = visibility_grace
        self._authentication_grace = authentication_grace
        self._fresh_for = fresh
        self._takeover = takeover
        self._active_since: datetime | None = None
        """The first wake-up since we were connected: until then another may have been the active one."""
        self._in_doubt: dict[str, datetime] = {}
        self._unanswered: set[str] = set()
        """Operations of which a call was not answered, or may not have been: EC2 may carry it out late."""
        self._reported: OrderedDict[str, Outcome] = OrderedDict()
        self._confirmed: set[str] = set()
        """Those of the reported operations whose report the broker has confirmed."""

    async def call(self) -> None:
        """Wake the active one, so that it knows that it is; until it does, what fails is only reported later."""
        try:
            await self._tell(Reminder(worker_id=NOBODY), f"{self._now().isoformat()}/call")
        except (BusUnavailableError, UnroutableError) as error:
            log.warning("no reminder arrives; are exchanges and queues as they should be?", cause=str(error))

    def disconnected(self) -> None:
        """The broker has lost us, and another may act: whatever is open is a stranger's to us."""
        self._active_since = datetime.max.replace(tzinfo=UTC)
        self._reported.clear()
        self._confirmed.clear()

    def connected(self) -> None:
        """What is requested after our next wake-up is ours, until the connection is lost."""
        self._active_since = None

    async def on_wake(self, message: Message) -> Verdict:
        """Do what the worker's stream says is owed."""
        if self._active_since is None:
            self._active_since = self._now()
        try:
            worker_id, revision, recheck_since = _woken(message)
            resumes = message.type in RESUME_WATCHING
        except (BadMessageError, ValueError, AttributeError, TypeError, RecursionError) as error:
            return DeadLetter(
                f"neither a reminder nor a CloudEvent of a worker: {type(error).__name__}",
                ProblemCode.VALIDATION_FAILED,
            )
        with structlog.contextvars.bound_contextvars(worker_id=str(worker_id), instance_id=None):
            async with self._workers.turn(worker_id):
                read_at = self._now()
                worker = await self._workers.newest(worker_id)
                if revision is not None and worker.revision < revision:
                    if message.attempt < UNSEEN_ATTEMPTS:
                        return Retry(1)  # a replica of the store that lags behind
                    return DeadLetter(
                        f"worker {worker.id} has no event {revision}; the last is {worker.revision}",
                        ProblemCode.VALIDATION_FAILED,
                    )
                if worker.instance is not None:
                    structlog.contextvars.bind_contextvars(instance_id=worker.instance.instance_id)
                again = False
                for action in next_actions(worker):
                    match action:
                        case Act(operation, intent):
                            turn = Turn(worker, operation, intent, read_at)
                            again |= not await self._act(turn, message)
                            log.debug("acted", operation=operation.command_id, again=again)
                        case Watch() if resumes or revision in (None, worker.observed_revision):
                            again |= not await self._watch(worker)
                        case Watch():
                            pass  # the event that showed the instance unsettled has a watch of its own
                        case _:
                            assert_never(action)
                if recheck_since is not None:
                    again |= not await self._recheck(worker, recheck_since, read_at)
                # The next reminder comes by itself; an event does not, nor does a recheck.
                lasting = revision is not None or recheck_since is not None
                return Retry() if again and lasting else Ack()

    # -- acting -------------------------------------------------------------------------------------------

    async def _act(self, turn: Turn, message: Message) -> bool:
        """Carry out an intent and report; False: to be continued."""
        operation = turn.operation
        known = self._reported.get(operation.command_id)
        if known is not None and (operation.refusal is None or not isinstance(known, AttemptRefused)):
            # It is on its way; acting again would undo its meaning. Where it may have been lost, it is sent again.
            if operation.command_id not in self._confirmed or message.type == Reminder.TYPE:
                await self._report_outcome(turn, known)
            return True
        if self._suspect(operation, message):
            return False
        report: Outcome | None
        with structlog.contextvars.bound_contextvars(command_id=operation.command_id):
            try:
                if operation.refusal is None:
                    report = await self._carry_out(turn)
                    # Until it is reported: whatever an attempt after this one is told, this one did it.
                    self._in_doubt[operation.command_id] = self._now()
                    if operation.command_id in self._unanswered and not isinstance(turn.intent, Final):
                        # Published before the report: whoever dies in between, it is there.
                        await self._recheck_later(turn.worker.id)
                else:
                    report = await self._after_refusal(turn, operation.refusal)
            except NotYet:
                return False
            except Gone:
                report = await self._gone(turn.worker, operation)
            except OutcomeUnknownError as error:
                log.warning("outcome unknown, asking again", cause=str(error))
                self._unanswered.add(operation.command_id)
                if operation.refusal is None:
                    self._in_doubt[operation.command_id] = self._now()
                return False
            except EC2Exception as error:
                report = await self._judge(turn, error)
            if report is None or (
                not isinstance(report, OperationSucceeded) and not self._fresh(turn.read_at)
            ):
                return False
            await self._report_outcome(turn, report)
            return True

    async def _report_outcome(self, turn: Turn, report: Outcome) -> None:
        """Report, and remember it: until the stream shows it the intent looks open, and must not be acted on again.

        It is remembered first, as a report that was not confirmed may have arrived.
        """
        operation_id = turn.operation.command_id
        self._reported[operation_id] = report
        self._confirmed.discard(operation_id)
        if len(self._reported) > REMEMBERED:
            forgotten, _ = self._reported.popitem(last=False)
            self._confirmed.discard(forgotten)
            self._in_doubt.pop(forgotten, None)
            self._unanswered.discard(forgotten)
        refused = isinstance(report, AttemptRefused)
        await self._tell(report, f"{turn.worker.id}/{operation_id}/{'refusal' if refused else 'outcome'}")
        self._confirmed.add(operation_id)

    def _suspect(self, operation: Operation, message: Message) -> bool:
        """An intent from before our time, or a message somebody else had, may have been acted on already.

        True: it is too early to act on it.
        """
        since = self._active_since
        # None: the connection was lost and is back since we were woken.
        before_us = since is None or operation.requested.time < since
        if before_us or message.redelivered:
            self._in_doubt.setdefault(operation.command_id, self._now())
            self._unanswered.add(operation.command_id)
        return before_us and (since is None or self._now() - since < self._takeover)

    def _fresh(self, read_at: datetime) -> bool:
        return self._now() - read_at < self._fresh_for

    def _still_ours(self, read_at: datetime) -> None:
        """Before every effect. Raises NotYet if the process stood still: the stream has to be read anew."""
        if not self._fresh(read_at):
            raise NotYet

    async def _carry_out(self, turn: Turn) -> OperationSucceeded:
        intent = turn.intent
        match intent:
            case LaunchRequested():
                return _done(turn, await self._launch(turn, intent.launch))
            case StartRequested():
                return _done(turn, await self._start(turn))
            case StopRequested():
                return _done(turn, await self._stop(turn))
            case TerminationRequested():
                return await self._terminate(turn)
            case TagsUpdateRequested():
                return _done(turn, await self._tag(turn, intent))
        assert_never(intent)

    async def _after_refusal(self, turn: Turn, refusal: Problem) -> Outcome:
        """The failure, unless an attempt before it may have got through: then what is there to be seen decides.

        Raises:
            NotYet: it may still show.
            EC2Exception: it cannot be looked at; an operation in doubt does not fail before it was.
        """
        doubtful_since = self._in_doubt.get(turn.operation.command_id)
        if doubtful_since is not None:
            done = await self._look(turn)
            if done is not None:
                log.warning("refused, but done before")
                return done
            if self._now() - doubtful_since < self._patience(turn.intent):
                raise NotYet
        return OperationFailed(
            worker_id=turn.worker.id, operation_id=turn.operation.command_id, problem=refusal
        )

    def _patience(self, intent: Intent) -> timedelta:
        """How long an attempt with an unknown outcome may still show its effect."""
        launching = isinstance(intent, LaunchRequested)
        return self._visibility_grace if launching else min(SETTLING, self._visibility_grace)

    async def _look(self, turn: Turn) -> OperationSucceeded | None:
        """Whether the intent is fulfilled, as far as EC2 shows; nothing is done."""
        intent = turn.intent
        if isinstance(intent, LaunchRequested):
            launched = await self._launched(intent.launch)
            return _done(turn, launched) if launched else None
        instance = await self._see(turn.worker)
        match intent:
            case StartRequested():
                fulfilled = instance.state in (InstanceState.PENDING, InstanceState.RUNNING)
            case StopRequested():
                fulfilled = instance.state in (InstanceState.STOPPING, InstanceState.STOPPED)
            case TerminationRequested():
                if instance.state is InstanceState.SHUTTING_DOWN:
                    raise NotYet
                fulfilled = instance.state is InstanceState.TERMINATED
            case TagsUpdateRequested():
                tags = await self._ec2.tags(instance.aws_region, instance.instance_id)
                instance = instance.model_copy(update={"tags": tags})
                fulfilled = intent.tags.items() <= tags.items()
            case _:
                assert_never(intent)
        return _done(turn, instance) if fulfilled else None

    async def _launch(self, turn: Turn, launch: LaunchParameters) -> Ec2Instance:
        """Launch under the stored token; where answers keep failing to come, see whether it was done before."""
        self._still_ours(turn.read_at)
        try:
            return await self._ec2.launch(launch)
        except OutcomeUnknownError:
            if turn.operation.command_id not in self._in_doubt:
                raise
            launched = await self._launched(launch)
            if launched is None:
                raise
            log.warning("adopted what was launched before", instance_id=launched.instance_id)
            return launched

    async def _launched(self, launch: LaunchParameters) -> Ec2Instance | None:
        """What was launched under the token, unless its tags say that it is another worker's or deployment's."""
        for found in await self._ec2.find_launched(launch.aws_region, launch.client_token):
            owner = {tag: found.tags[tag] for tag in (WORKER_TAG, DEPLOYMENT_TAG) if tag in found.tags}
            if owner.items() <= launch.tags.items():
                return found
            log.error("somebody else used our token", instance_id=found.instance_id, tags=found.tags)
        return None

    async def _start(self, turn: Turn) -> Ec2Instance:
        instance = await self._see(turn.worker)
        match instance.state:
            case InstanceState.PENDING | InstanceState.RUNNING:
                return instance
            case InstanceState.STOPPED:
                start = self._ec2.start(instance.aws_region, instance.instance_id)
                state = await self._change(turn.worker, turn.read_at, start)
                return await self._after(turn, instance, state)
            case InstanceState.STOPPING:
                raise NotYet
            case InstanceState.SHUTTING_DOWN | InstanceState.TERMINATED:
                raise _ended(turn.worker, instance)
        assert_never(instance.state)

    async def _stop(self, turn: Turn) -> Ec2Instance:
        instance = await self._see(turn.worker)
        match instance.state:
            case InstanceState.STOPPING | InstanceState.STOPPED:
                return instance
            case InstanceState.RUNNING:
                stop = self._ec2.stop(instance.aws_region, instance.instance_id)
                state = await self._change(turn.worker, turn.read_at, stop)
                return await self._after(turn, instance, state)
            case InstanceState.PENDING:
                raise NotYet
            case InstanceState.SHUTTING_DOWN | InstanceState.TERMINATED:
                raise _ended(turn.worker, instance)
        assert_never(instance.state)

    async def _terminate(self, turn: Turn) -> OperationSucceeded:
        """The worker is terminated when EC2 says so, not when EC2 says that it will be."""
        worker, operation = turn.worker, turn.operation
        try:
            instance = await self._see(worker)
            if instance.state not in (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED):
                self._still_ours(turn.read_at)
                state = await self._ec2.terminate(instance.aws_region, instance.instance_id)
                instance = await self._after(turn, instance, state)
        except Gone:
            return OperationSucceeded(
                worker_id=worker.id,
                operation_id=operation.command_id,
                warning="the instance was gone before it was terminated",
            )
        if instance.state is InstanceState.TERMINATED:
            return OperationSucceeded(worker_id=worker.id, operation_id=operation.command_id)
        await self._observe(worker, instance)
        raise NotYet

    async def _tag(self, turn: Turn, intent: TagsUpdateRequested) -> Ec2Instance:
        instance = await self._see(turn.worker)
        if instance.state is InstanceState.TERMINATED:
            raise _ended(turn.worker, instance)
        write = self._ec2.add_tags(instance.aws_region, instance.instance_id, intent.tags)
        await self._change(turn.worker, turn.read_at, write)
        self._in_doubt[turn.operation.command_id] = self._now()
        tags = await self._ec2.tags(instance.aws_region, instance.instance_id)
        if any(tags.get(key) != value for key, value in intent.tags.items()):
            raise NotYet  # what was written is not visible yet
        return instance.model_copy(update={"tags": tags})

    async def _change(self, worker: Worker, read_at: datetime, call: Coroutine[Any, Any, T]) -> T:
        """Make a call that a later one may come before: it would undo what was done meanwhile.

        If the broker may have taken us for dead during the call, the active one rechecks the instance.
        Raises NotYet, EC2Exception.
        """
        failure = None
        try:
            self._still_ours(read_at)
            result = await call
        except EC2Exception as error:
            failure = error
        finally:
            call.close()
        if not self._fresh(read_at) or self._active_since is None or self._active_since > read_at:
            await self._recheck_later(worker.id)
            raise NotYet from failure
        if failure is not None:
            raise failure
        return result

    async def _recheck_later(self, worker_id: UUID) -> None:
        """Have the active one compare the instance; whoever that is, and however long it takes to publish that."""
        since = self._now()
        log.warning("a call may be carried out late; the instance will be rechecked")
        while True:
            try:
                recheck = Reminder(worker_id=worker_id, recheck_since=since)
                return await self._tell(recheck, f"{worker_id}/{since.isoformat()}/recheck")
            except BusUnavailableError:
                await self._sleep(1.0)

    async def _recheck(self, worker: Worker, since: datetime, read_at: datetime) -> bool:
        """Compare the instance with what is recorded, as a call may be carried out late; False: look again.

        Recorded tags are written again. A state that nobody asked for is reported, and not undone.
        """
        if worker.terminated or worker.instance is None:
            return True
        if worker.pending(StartRequested, StopRequested, TagsUpdateRequested):
            return False  # not before it is known what is to stand
        try:
            instance = await self._see(worker)
            moved = await self._observe(worker, instance)
            tags = await self._ec2.tags(instance.aws_region, instance.instance_id)
            changed = {key: value for key, value in worker.tags.items() if tags.get(key) != value}
        except Gone:
            return True
        except (NotYet, EC2Exception):
            return False
        if changed:
            log.warning("tags are not as recorded and are written again", tags=sorted(changed))
            if not self._fresh(read_at):
                return False
            write = self._ec2.add_tags(instance.aws_region, instance.instance_id, changed)
            try:
                await self._change(worker, read_at, write)
            except OutcomeUnknownError:
                await self._recheck_later(worker.id)
                return True  # the new recheck lasts longer
            except NotYet:
                return True  # a new one was published, as this came too late
            except EC2Exception:
                return False
        return not (moved or changed) and self._now() - since >= min(SETTLING, self._visibility_grace)

    async def _after(self, turn: Turn, before: Ec2Instance, answered: InstanceState) -> Ec2Instance:
        """The instance after EC2 accepted an operation; until it is reported, the operation is in doubt."""
        self._in_doubt[turn.operation.command_id] = self._now()
        described = await self._ec2.describe(before.aws_region, before.instance_id)
        if described is None or described.state is before.state:
            # Not visible yet: the answer of the call itself is newer.
            return before.model_copy(update={"state": answered})
        return described

    async def _see(self, worker: Worker) -> Ec2Instance:
        """The instance now. Raises NotYet, Gone, EC2Exception."""
        assert worker.instance is not None  # noqa: S101 - there is an intent that needs one
        region, instance_id = worker.aws_region, worker.instance.instance_id
        for pause in (1.0, 0.0):
            instance = await self._ec2.describe(region, instance_id)
            if instance is not None:
                return instance
            if worker.launched_at and self._now() - worker.launched_at < self._visibility_grace:
                raise NotYet
            await self._sleep(pause)
        raise Gone

    async def _gone(self, worker: Worker, operation: Operation) -> OperationFailed:
        await self._observe(worker, None)
        instance_id = worker.instance.instance_id if worker.instance else "?"
        return OperationFailed(
            worker_id=worker.id,
            operation_id=operation.command_id,
            problem=Problem.of(
                ProblemCode.EC2_INSTANCE_NOT_FOUND,
                f"instance {instance_id} of worker {worker.id} no longer exists",
            ),
        )

    async def _judge(self, turn: Turn, error: EC2Exception) -> AttemptRefused | None:
        """Whether the error is a refusal for good; None: try again."""
        operation = turn.operation
        age = self._now() - operation.requested.time
        match error.remedy:
            case Remedy.FAIL:
                definite = True
            case Remedy.LOOK_UP_LAUNCH:
                definite = True
                self._in_doubt.setdefault(operation.command_id, self._now())
            case Remedy.RETRY:
                definite = False
            case Remedy.RETRY_BRIEFLY:
                definite = age >= TRANSIENT
            case Remedy.DESCRIBE:
                definite = age >= STUBBORN
            case Remedy.REFRESH:
                await self._ec2.refresh()
                definite = age >= self._authentication_grace
            case _:
                assert_never(error.remedy)
        if not definite or operation.refusal is not None:
            log.warning("EC2 refused, trying again", code=error.aws_code, cause=str(error))
            return None
        log.error("EC2 refused for good", code=error.aws_code, cause=str(error))
        return AttemptRefused(
            worker_id=turn.worker.id, operation_id=operation.command_id, problem=error.problem
        )

    # -- watching and looking up --------------------------------------------------------------------------

    async def _watch(self, worker: Worker) -> bool:
        """Report how the instance got on; False: it has not moved, look again."""
        try:
            instance = await self._see(worker)
        except (NotYet, EC2Exception):
            return False
        except Gone:
            await self._observe(worker, None)
            return True
        return await self._observe(worker, instance)

    async def _observe(self, worker: Worker, instance: Ec2Instance | None) -> bool:
        """Report the instance if it is not as recorded."""
        known = worker.instance
        if instance and known and _visible(instance) == _visible(known):
            return False
        report = InstanceObserved(
            worker_id=worker.id, seen_revision=worker.observed_revision, instance=instance
        )
        await self._tell(report, f"{worker.id}/{worker.observed_revision}/{report.model_dump_json()}")
        return True

    async def on_lookup(self, message: Message) -> Verdict:
        """Ask EC2 what a command has to know before it can be decided."""
        try:
            request = read(message, {LookupRequested.TYPE: LookupRequested}, limit=MAX_INTERNAL_BODY)
        except BadMessageError as error:
            return DeadLetter(error.problem.detail, error.problem.code)
        with structlog.contextvars.bound_contextvars(command_id=request.origin.command_id):
            try:
                finding = await self._find(request.question)
            except EC2Exception as error:
                patient = error.remedy is not Remedy.FAIL and message.attempt < LOOKUP_ATTEMPTS
                if error.remedy is Remedy.REFRESH:
                    await self._ec2.refresh()
                if patient:
                    return Retry()
                finding = LookupResult(problem=error.problem)
            answer = LookupAnswered(origin=request.origin, question=request.question, finding=finding)
            await self._tell(answer, f"{message.message_id}/answer")
            return Ack()

    async def _find(self, question: ImageLookup | InstanceLookup) -> LookupResult:
        if isinstance(question, ImageLookup):
            return LookupResult(image_id=await self._ec2.find_image(question.aws_region, question.ami_name))
        instance = await self._ec2.describe(question.aws_region, question.instance_id)
        if instance is None:
            await self._sleep(1.0)
            instance = await self._ec2.describe(question.aws_region, question.instance_id)
        return LookupResult(instance=instance)

    async def _tell(self, report: Report | Reminder, identity: str) -> None:
        await self._publish(internal(report, str(uuid5(_NAMESPACE, identity))))


def _woken(message: Message) -> tuple[UUID, int | None, datetime | None]:
    """The worker to look at, the revision that must be seen, and since when it is to be rechecked.

    Raises BadMessageError, ValueError and the like.
    """
    if message.type == Reminder.TYPE:
        reminder = read(message, {Reminder.TYPE: Reminder})
        return reminder.worker_id, None, reminder.recheck_since
    if len(message.body) > MAX_INTERNAL_BODY:
        raise BadMessageError(f"the body has {len(message.body)} bytes")
    event = EventEnvelope.from_cloudevent(json.loads(message.body))
    return event.worker_id, event.revision, None


def _done(turn: Turn, instance: Ec2Instance) -> OperationSucceeded:
    return OperationSucceeded(
        worker_id=turn.worker.id, operation_id=turn.operation.command_id, instance=instance
    )


def _ended(worker: Worker, instance: Ec2Instance) -> EC2Exception:
    return EC2InstanceOperationException(
        f"instance {instance.instance_id} of worker {worker.id} is {instance.state}", remedy=Remedy.FAIL
    )


def _visible(instance: Ec2Instance) -> tuple[InstanceState, str | None, str | None]:
    return instance.state, instance.public_ip, instance.private_ip
