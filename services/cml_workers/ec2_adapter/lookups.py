"""Asking EC2 what a command has to know before it can be decided."""

from collections.abc import Awaitable, Callable

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
from cml_workers.ec2_adapter.calls import Calls
from cml_workers.ec2_adapter.errors import EC2Error, EC2Exception, Remedy
from cml_workers.ec2_adapter.instances import LOOK_AGAIN
from cml_workers.ec2_adapter.reports import Reports
from cml_workers.ec2_adapter.retry_policy import LOOKUP_ATTEMPTS


class Lookups:
    """Answers lookup requests. Nothing is changed, so any process may do it, at any time."""

    def __init__(self, calls: Calls, reports: Reports, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._calls = calls
        self._reports = reports
        self._sleep = sleep

    async def on_lookup(self, message: Message) -> Verdict:
        """Look up and answer; a refusal that does not end is the result after some attempts."""
        try:
            request = read(message, {LookupRequested.TYPE: LookupRequested}, limit=MAX_INTERNAL_BODY)
        except BadMessageError as error:
            return DeadLetter(error.problem.detail, error.problem.code)
        with structlog.contextvars.bound_contextvars(command_id=request.origin.command_id):
            try:
                result = await self._find(request.lookup)
            except EC2Error as error:
                remedy = error.remedy if isinstance(error, EC2Exception) else Remedy.RETRY
                if remedy is Remedy.REFRESH:
                    await self._calls.refresh(request.lookup.aws_region)
                if remedy is not Remedy.FAIL and message.attempt < LOOKUP_ATTEMPTS:
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
