"""Asking EC2 what a command has to know before it can be decided."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import sha256

import structlog

from cml_contracts.instance import Ec2Instance
from cml_workers.bus.codec import BadMessageError, read
from cml_workers.bus.port import Ack, DeadLetter, Message, Retry, Verdict
from cml_workers.domain.messages import (
    MAX_INTERNAL_BODY,
    ImageLookup,
    InstanceLookup,
    Lookup,
    LookupAnswered,
    LookupRequested,
    LookupResult,
)
from cml_workers.domain.operations import ids_of
from cml_workers.ec2_adapter.calls import Calls
from cml_workers.ec2_adapter.errors import EC2Error, EC2Exception, Remedy
from cml_workers.ec2_adapter.instances import LOOK_AGAIN
from cml_workers.ec2_adapter.reports import Reports
from cml_workers.ec2_adapter.retry_policy import HANDED_ON, LOOKUP_ATTEMPTS
from cml_workers.ec2_adapter.visits import Places
from cml_workers.foundation.ids import bind
from cml_workers.foundation.tasks import ended

log = structlog.get_logger(__name__)

MOST_UNDER_WAY = 1_000
"""Lookups at once; the messages of others come back later."""
MOST_ANSWERED = 10_000
"""Answered lookups whose messages are still to come back."""


class Lookups:
    """Answers lookup requests. Nothing is changed, so any process may do it, at any time.

    As with triggers (``visits.py``), a message waits for its answer only where its region has a place for that.
    """

    def __init__(
        self, calls: Calls, reports: Reports, sleep: Callable[[float], Awaitable[None]], places: Places
    ) -> None:
        self._calls = calls
        self._reports = reports
        self._sleep = sleep
        self._places = places
        self._under_way: dict[bytes, asyncio.Task[Verdict]] = {}
        self._answered: OrderedDict[bytes, None] = OrderedDict()
        """Requests whose messages were handed on, and come back once more."""

    async def on_lookup(self, message: Message) -> Verdict:
        """Look up and answer; a refusal that does not end is the result after some attempts."""
        try:
            request = read(message, {LookupRequested.TYPE: LookupRequested}, limit=MAX_INTERNAL_BODY)
        except BadMessageError as error:
            return DeadLetter(error.problem.detail, error.problem.code)
        bind(worker_id=request.origin.worker_id, **ids_of(request.origin.operation_id))
        key = sha256(
            message.body
        ).digest()  # it says who is to be answered, which the id of a repeated command does not
        if key in self._answered:
            del self._answered[key]
            return Ack()
        task = self._under_way.get(key)
        if task is None:
            if len(self._under_way) >= MOST_UNDER_WAY:
                return Retry(HANDED_ON)
            task = asyncio.get_running_loop().create_task(self._look_up(request, message))
            self._under_way[key] = task
            task.add_done_callback(lambda task: self._over(key, task))
        with self._places.held(request.lookup.aws_region) as has_place:
            if has_place:
                return await asyncio.shield(task)
        task.add_done_callback(lambda task: self._keep(key, task))
        return Retry(HANDED_ON)

    async def close(self) -> None:
        """End what is under way."""
        for task in list(self._under_way.values()):
            await ended(task)

    def _over(self, key: bytes, task: "asyncio.Task[Verdict]") -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # whoever waits for it has it; if nobody does, the message comes back

    def _keep(self, key: bytes, task: "asyncio.Task[Verdict]") -> None:
        """Remember that it is answered; otherwise it is looked up again when the message comes back."""
        if not task.cancelled() and task.exception() is None and isinstance(task.result(), Ack):
            self._answered[key] = None
            if len(self._answered) > MOST_ANSWERED:
                self._answered.popitem(last=False)

    async def _look_up(self, request: LookupRequested, message: Message) -> Verdict:
        try:
            result = await self._find(request.lookup)
        except EC2Error as error:
            remedy = error.remedy if isinstance(error, EC2Exception) else Remedy.RETRY
            again = remedy is not Remedy.FAIL and message.attempt < LOOKUP_ATTEMPTS
            log.warning(
                "EC2 cannot be asked", tried_again=again, code=error.problem.code, cause=error.problem.detail
            )
            if remedy is Remedy.REFRESH:
                await self._calls.refresh(request.lookup.aws_region)
            if again:
                return Retry()
            result = LookupResult(problem=error.problem)
        answer = LookupAnswered(origin=request.origin, lookup=request.lookup, looked_up=result)
        await self._reports.answered(answer, message.message_id)
        return Ack()

    async def _find(self, lookup: Lookup) -> LookupResult:
        if isinstance(lookup, ImageLookup):
            return LookupResult(
                image_id=await self._calls.find_image(lookup.aws_region, lookup.ami_name, lookup.owner)
            )
        instance = await self._look(lookup)
        if instance is None:
            await self._sleep(LOOK_AGAIN)
            instance = await self._look(lookup)
        return LookupResult(instance=instance)

    async def _look(self, lookup: InstanceLookup) -> Ec2Instance | None:
        """The instance with its status checks."""
        instance = await self._calls.describe(lookup.aws_region, lookup.instance_id)
        if instance is None:
            return None
        checks = await self._calls.status_checks(lookup.aws_region, lookup.instance_id)
        if checks is None:
            return instance
        return instance.model_copy(
            update={
                "instance_status_check": checks.instance,
                "ec2_system_status_check": checks.system,
            }
        )
