"""Carries out open intents on EC2, one at a time for each worker, and reports what happened.

A message only wakes: what to do is read from the worker's stream, so stale and repeated messages are harmless.
An error counts as a failure only if it is definite and no earlier attempt may have got through; whatever is
not known yet is tried again with the same parameters and token.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import assert_never
from uuid import NAMESPACE_URL, UUID, uuid5
from weakref import WeakValueDictionary

import structlog
from pydantic import ValidationError

from cml_contracts.envelope import MAX_INTERNAL_BODY, EventEnvelope
from cml_contracts.events import (
    LaunchRequested,
    StartRequested,
    StopRequested,
    TagsUpdateRequested,
    TerminationRequested,
)
from cml_contracts.instance import Ec2Instance, InstanceState, LaunchParameters
from cml_contracts.reports import (
    Finding,
    ImageQuestion,
    InstanceObserved,
    InstanceQuestion,
    LookupAnswered,
    LookupRequested,
    OperationFailed,
    OperationSucceeded,
    Report,
)
from cml_contracts.results import Problem, ProblemCode
from cml_contracts.topology import INTERNAL
from cml_workers.bus.port import Dead, Done, Later, Message, Outgoing, Publish, Verdict
from cml_workers.ec2_adapter.errors import (
    EC2Exception,
    EC2InstanceOperationException,
    OutcomeUnknownError,
    Remedy,
)
from cml_workers.ec2_adapter.next_action import Act, Watch, next_actions
from cml_workers.ec2_adapter.port import Ec2
from cml_workers.eventstore.port import EventStore
from cml_workers.requests import BadMessageError, read
from cml_workers.stream import load
from cml_workers.worker import Operation, Worker

log = structlog.get_logger(__name__)

TRANSIENT = timedelta(minutes=2)
"""How long parameters that were created a moment ago may be unknown to EC2."""
STUBBORN = timedelta(minutes=10)
"""How long an instance may refuse an operation for its state before that is final."""
SETTLING = timedelta(minutes=1)
"""How long an attempt with an unknown outcome may still show its effect on an existing instance."""
LOOKUP_ATTEMPTS = 8
UNSEEN_ATTEMPTS = 10
"""Seconds, and attempts, that a replica of the store may lag behind the event that woke us."""

_NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers/report")


class NotYet(Exception):  # noqa: N818 - a state of affairs, not an error
    """The instance is not ready for the operation; look again later."""


class Gone(Exception):  # noqa: N818 - likewise
    """EC2 does not know the instance, asked twice, after the grace for new instances."""


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
    ) -> None:
        self._store = store
        self._ec2 = ec2
        self._publish = publish
        self._now = now
        self._sleep = sleep
        self._visibility_grace = visibility_grace
        self._authentication_grace = authentication_grace
        self._started_at = now()
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._in_doubt: dict[str, datetime] = {}

    async def on_wake(self, message: Message) -> Verdict:
        """Do what the worker's stream says is owed."""
        if len(message.body) > MAX_INTERNAL_BODY:
            return Dead(f"not a CloudEvent of a worker: {len(message.body)} bytes")
        try:
            event = EventEnvelope.from_cloudevent(json.loads(message.body))
        except (ValueError, ValidationError, AttributeError, TypeError, RecursionError) as error:
            return Dead(f"not a CloudEvent of a worker: {type(error).__name__}")
        lock = self._locks.setdefault(event.worker_id, asyncio.Lock())
        with structlog.contextvars.bound_contextvars(worker_id=str(event.worker_id), instance_id=None):
            async with lock:
                worker = await load(self._store, event.worker_id)
                if worker.revision < event.revision:
                    if message.attempt < UNSEEN_ATTEMPTS:
                        return Later(1)  # a replica of the store that lags behind
                    return Dead(
                        f"worker {worker.id} has no event {event.revision}; the last is {worker.revision}"
                    )
                if worker.instance is not None:
                    structlog.contextvars.bind_contextvars(instance_id=worker.instance.instance_id)
                again = False
                for action in next_actions(worker):
                    match action:
                        case Act(operation):
                            again |= not await self._act(worker, action, message)
                            log.debug("acted", operation=operation.command_id, again=again)
                        case Watch() if event.revision == worker.observed_revision:
                            again |= not await self._watch(worker)
                        case Watch():
                            pass  # the event that showed the instance unsettled has a watch of its own
                        case _:
                            assert_never(action)
                return Later() if again else Done()

    # -- acting -------------------------------------------------------------------------------------------

    async def _act(self, worker: Worker, action: Act, message: Message) -> bool:
        """Carry out an intent and report; False: to be continued."""
        operation = action.operation
        self._suspect(operation, message)
        report: OperationSucceeded | OperationFailed | None
        with structlog.contextvars.bound_contextvars(command_id=operation.command_id):
            try:
                report = await self._carry_out(worker, action)
            except NotYet:
                return False
            except Gone:
                report = await self._gone(worker, operation)
            except OutcomeUnknownError as error:
                log.warning("outcome unknown, asking again", cause=str(error))
                self._in_doubt[operation.command_id] = self._now()
                return False
            except EC2Exception as error:
                report = await self._judge(worker, operation, error)
            if report is None:
                return False
            await self._report(report, f"{worker.id}/{operation.command_id}/outcome")
            self._in_doubt.pop(operation.command_id, None)
            return True

    def _suspect(self, operation: Operation, message: Message) -> None:
        """An intent from before our time, or a message somebody else had, may have been acted on already."""
        foreign = message.redelivered or operation.requested.time < self._started_at
        if foreign and operation.command_id not in self._in_doubt:
            self._in_doubt[operation.command_id] = self._now()

    async def _carry_out(self, worker: Worker, action: Act) -> OperationSucceeded:
        operation, intent = action.operation, action.intent
        match intent:
            case LaunchRequested():
                return _done(worker, operation, await self._launch(operation, intent.launch))
            case StartRequested():
                return _done(worker, operation, await self._start(worker, operation))
            case StopRequested():
                return _done(worker, operation, await self._stop(worker, operation))
            case TerminationRequested():
                return await self._terminate(worker, operation)
            case TagsUpdateRequested():
                return _done(worker, operation, await self._tag(worker, operation, intent))
        assert_never(intent)

    async def _launch(self, operation: Operation, launch: LaunchParameters) -> Ec2Instance:
        """Launch under the stored token; where that is refused, see whether it was done before."""
        try:
            return await self._ec2.launch(launch)
        except EC2Exception as error:
            if error.remedy is not Remedy.LOOK_UP_LAUNCH and operation.command_id not in self._in_doubt:
                raise
            launched = await self._ec2.find_launched(launch.aws_region, launch.client_token)
            if not launched:
                raise
            log.warning("adopted what was launched before", instance_id=launched[0].instance_id)
            return launched[0]

    async def _start(self, worker: Worker, operation: Operation) -> Ec2Instance:
        instance = await self._see(worker)
        match instance.state:
            case InstanceState.PENDING | InstanceState.RUNNING:
                return instance
            case InstanceState.STOPPED:
                state = await self._ec2.start(instance.aws_region, instance.instance_id)
                return await self._after(operation, instance, state)
            case InstanceState.STOPPING:
                raise NotYet
            case InstanceState.SHUTTING_DOWN | InstanceState.TERMINATED:
                raise _ended(worker, instance)
        assert_never(instance.state)

    async def _stop(self, worker: Worker, operation: Operation) -> Ec2Instance:
        instance = await self._see(worker)
        match instance.state:
            case InstanceState.STOPPING | InstanceState.STOPPED:
                return instance
            case InstanceState.RUNNING:
                state = await self._ec2.stop(instance.aws_region, instance.instance_id)
                return await self._after(operation, instance, state)
            case InstanceState.PENDING:
                raise NotYet
            case InstanceState.SHUTTING_DOWN | InstanceState.TERMINATED:
                raise _ended(worker, instance)
        assert_never(instance.state)

    async def _terminate(self, worker: Worker, operation: Operation) -> OperationSucceeded:
        """The worker is terminated when EC2 says so, not when EC2 says that it will be."""
        try:
            instance = await self._see(worker)
            if instance.state not in (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED):
                state = await self._ec2.terminate(instance.aws_region, instance.instance_id)
                instance = await self._after(operation, instance, state)
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

    async def _tag(self, worker: Worker, operation: Operation, intent: TagsUpdateRequested) -> Ec2Instance:
        instance = await self._see(worker)
        if instance.state is InstanceState.TERMINATED:
            raise _ended(worker, instance)
        await self._ec2.add_tags(instance.aws_region, instance.instance_id, intent.tags)
        self._in_doubt[operation.command_id] = self._now()
        tags = await self._ec2.tags(instance.aws_region, instance.instance_id)
        if any(tags.get(key) != value for key, value in intent.tags.items()):
            raise NotYet  # what was written is not visible yet
        return instance.model_copy(update={"tags": tags})

    async def _after(self, operation: Operation, before: Ec2Instance, answered: InstanceState) -> Ec2Instance:
        """The instance after EC2 accepted an operation; until it is reported, the operation is in doubt."""
        self._in_doubt[operation.command_id] = self._now()
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

    async def _judge(
        self, worker: Worker, operation: Operation, error: EC2Exception
    ) -> OperationFailed | None:
        """Whether the error is the operation's failure; None: try again."""
        age = self._now() - operation.requested.time
        match error.remedy:
            case Remedy.FAIL | Remedy.LOOK_UP_LAUNCH:
                definite = True
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
        if not definite:
            log.warning("EC2 refused, trying again", code=error.aws_code, cause=str(error))
            return None
        if self._may_have_got_through(operation):
            log.warning("EC2 refused, but an earlier attempt may show yet", code=error.aws_code)
            return None
        log.error("EC2 refused for good", code=error.aws_code, cause=str(error))
        return OperationFailed(worker_id=worker.id, operation_id=operation.command_id, problem=error.problem)

    def _may_have_got_through(self, operation: Operation) -> bool:
        since = self._in_doubt.get(operation.command_id)
        if since is None:
            return False
        launching = isinstance(operation.intent, LaunchRequested)
        patience = self._visibility_grace if launching else min(SETTLING, self._visibility_grace)
        return self._now() - since < patience

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
        await self._report(report, f"{worker.id}/{worker.observed_revision}/{report.model_dump_json()}")
        return True

    async def on_lookup(self, message: Message) -> Verdict:
        """Ask EC2 what a command has to know before it can be decided."""
        try:
            request = read(message, {LookupRequested.TYPE: LookupRequested}, limit=MAX_INTERNAL_BODY)
        except BadMessageError as error:
            return Dead(error.problem.detail)
        with structlog.contextvars.bound_contextvars(command_id=request.origin.command_id):
            try:
                finding = await self._find(request.question)
            except EC2Exception as error:
                patient = error.remedy is not Remedy.FAIL and message.attempt < LOOKUP_ATTEMPTS
                if error.remedy is Remedy.REFRESH:
                    await self._ec2.refresh()
                if patient:
                    return Later()
                finding = Finding(problem=error.problem)
            answer = LookupAnswered(origin=request.origin, question=request.question, finding=finding)
            await self._report(answer, f"{message.message_id}/answer")
            return Done()

    async def _find(self, question: ImageQuestion | InstanceQuestion) -> Finding:
        if isinstance(question, ImageQuestion):
            return Finding(image_id=await self._ec2.find_image(question.aws_region, question.ami_name))
        instance = await self._ec2.describe(question.aws_region, question.instance_id)
        if instance is None:
            await self._sleep(1.0)
            instance = await self._ec2.describe(question.aws_region, question.instance_id)
        return Finding(instance=instance)

    async def _report(self, report: Report, identity: str) -> None:
        await self._publish(
            Outgoing(
                exchange=INTERNAL,
                routing_key=report.TYPE,
                body=report.model_dump_json().encode(),
                type=report.TYPE,
                message_id=str(uuid5(_NAMESPACE, identity)),
            )
        )


def _done(worker: Worker, operation: Operation, instance: Ec2Instance) -> OperationSucceeded:
    return OperationSucceeded(worker_id=worker.id, operation_id=operation.command_id, instance=instance)


def _ended(worker: Worker, instance: Ec2Instance) -> EC2Exception:
    return EC2InstanceOperationException(
        f"instance {instance.instance_id} of worker {worker.id} is {instance.state}", remedy=Remedy.FAIL
    )


def _visible(instance: Ec2Instance) -> tuple[InstanceState, str | None, str | None]:
    return instance.state, instance.public_ip, instance.private_ip
