"""Workers' instances at EC2: looking at them, and changing them so that a call that comes late is noticed."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TypeVar

from cml_contracts.instance import Ec2Instance, InstanceState
from cml_workers.domain.observations import observe
from cml_workers.domain.worker import Worker
from cml_workers.ec2_adapter.calls import Calls
from cml_workers.ec2_adapter.errors import EC2Error, EC2InstanceOperationException, Remedy
from cml_workers.ec2_adapter.reports import Reports
from cml_workers.ec2_adapter.tenure import Lease, NotYet

T = TypeVar("T")

ENDING = (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED)
SETTLING = timedelta(minutes=1)
"""How long an attempt with an unknown outcome may still show its effect on an existing instance."""
LOOK_AGAIN = 1.0
"""Seconds after which an instance that EC2 does not know is looked for a second time."""


class InTransition(NotYet):
    """The instance is on its way from one state to another; go on when it has moved."""

    def __init__(self, instance: Ec2Instance) -> None:
        super().__init__()
        self.instance = instance


class Gone(Exception):  # noqa: N818 - a state of affairs, not an error
    """EC2 does not know the instance, asked twice, after the grace for new instances."""


class Instances:
    """What the phases of all operations share."""

    def __init__(
        self,
        calls: Calls,
        reports: Reports,
        *,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]],
        visibility_grace: timedelta,
    ) -> None:
        self.calls = calls
        self.reports = reports
        self.now = now
        self.visibility_grace = visibility_grace
        self.settling = min(SETTLING, visibility_grace)
        self._sleep = sleep

    def may_be_invisible(self, worker: Worker) -> bool:
        """Whether the instance is so new that EC2 may not show it yet."""
        return worker.is_new(self.now(), self.visibility_grace)

    async def see(self, worker: Worker) -> Ec2Instance:
        """The instance now. Raises NotYet, Gone, EC2Error."""
        assert worker.instance is not None  # noqa: S101 - what has no instance is not looked at
        region, instance_id = worker.aws_region, worker.instance.instance_id
        for pause in (LOOK_AGAIN, 0.0):
            instance = await self.calls.describe(region, instance_id)
            if instance is not None:
                return instance
            if self.may_be_invisible(worker):
                raise NotYet
            await self._sleep(pause)
        raise Gone

    async def noted(self, worker: Worker, instance: Ec2Instance) -> bool:
        """Report how it was seen where no outcome will; whether it is not as it is recorded. Raises BusUnavailableError."""
        if not observe(worker, instance):
            return False
        await self.reports.observed(worker, instance)
        return True

    async def ended(self, worker: Worker, instance: Ec2Instance) -> EC2InstanceOperationException:
        """The refusal of an operation on an instance that has ended, which is reported first."""
        await self.noted(worker, instance)
        return EC2InstanceOperationException(
            f"instance {instance.instance_id} of worker {worker.id} is {instance.state}", remedy=Remedy.FAIL
        )

    async def change(self, worker: Worker, lease: Lease, call: Callable[[Lease], Awaitable[T]]) -> T:
        """Make a call that a later one may come before: it would undo what was done meanwhile.

        If the broker may have given this process up during the call, the leader rechecks the instance. The answer counts all the
        same, unless it is known that another process may be the leader.
        Raises NotYet, EC2Error.
        """
        failure = None
        try:
            result = await call(lease)
        except EC2Error as error:
            failure = error
        if not lease.is_certain:
            await self.reports.recheck(worker.id)
        if not lease.is_held:
            raise NotYet from failure
        if failure is not None:
            raise failure
        return result


def visible(instance: Ec2Instance) -> tuple[InstanceState, str | None, str | None]:
    """What of an instance moves by itself."""
    return instance.state, instance.public_ip, instance.private_ip


def has_moved(instance: Ec2Instance, known: Ec2Instance | None) -> bool:
    """Whether it is not as it was known."""
    return known is None or visible(instance) != visible(known)
