"""The calls on EC2 as the executor makes them: in bulk where they come together, no more often than EC2 allows."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import TypeVar

from cml_contracts.instance import Ec2Instance, InstanceState, LaunchParameters
from cml_workers.ec2_adapter.errors import EC2Exception, EC2ThrottledException, Remedy
from cml_workers.ec2_adapter.limits import Limits
from cml_workers.ec2_adapter.port import AT_ONCE, MOST_CHECKED, MOST_DESCRIBED, Ec2, StateChange, StatusChecks
from cml_workers.ec2_adapter.tenure import Lease
from cml_workers.foundation.batching import Batcher
from cml_workers.foundation.metrics import EC2_WAIT_SECONDS
from cml_workers.foundation.tracing import API, REGION, span

T = TypeVar("T")

TOGETHER = 0.005
"""Seconds after a read in which others are collected for the next one."""


class Calls:
    """The port ``Ec2`` behind its limits; one region never waits for another. Raises what the port raises.

    What changes something takes a ``lease``: it is called while that lasts or can be renewed, or not at all (NotFreshError).
    """

    def __init__(self, ec2: Ec2, limits: Limits, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._ec2 = ec2
        self._limits = limits
        self._sleep = sleep
        self._under_way: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))
        self._describes: dict[str, Batcher[str, Ec2Instance]] = {}
        self._checks: dict[str, Batcher[str, StatusChecks]] = {}

    # -- what changes something ---------------------------------------------------------------------------

    async def launch(self, parameters: LaunchParameters, lease: Lease) -> Ec2Instance:
        """See ``Ec2.launch``."""
        return await self._change(
            parameters.aws_region, "RunInstances", lease, lambda: self._ec2.launch(parameters)
        )

    async def switch(self, api: str, region: str, instance_id: str, lease: Lease) -> StateChange:
        """See ``Ec2.switch``."""
        return await self._change(region, api, lease, lambda: self._ec2.switch(api, region, instance_id))

    async def terminate(self, region: str, instance_id: str, lease: Lease) -> StateChange:
        """See ``Ec2.terminate``."""
        return await self._change(
            region, "TerminateInstances", lease, lambda: self._ec2.terminate(region, instance_id)
        )

    async def add_tags(self, region: str, instance_id: str, tags: Mapping[str, str], lease: Lease) -> None:
        """See ``Ec2.add_tags``."""
        await self._change(region, "CreateTags", lease, lambda: self._ec2.add_tags(region, instance_id, tags))

    # -- what only looks ----------------------------------------------------------------------------------

    async def describe(self, region: str, instance_id: str) -> Ec2Instance | None:
        """The instance; None if it is not visible. Describes that come together share a request."""
        batcher = self._describes.get(region)
        if batcher is None:
            batcher = self._describes[region] = Batcher(
                lambda ids: self.describe_many(region, ids),
                most=MOST_DESCRIBED,
                pause=TOGETHER,
                sleep=self._sleep,
            )
        return await batcher.get(instance_id)

    async def describe_many(self, region: str, instance_ids: Sequence[str]) -> Mapping[str, Ec2Instance]:
        """See ``Ec2.describe_many``."""
        return await self._admitted(
            region, "DescribeInstances", lambda: self._ec2.describe_many(region, instance_ids)
        )

    async def status_checks(self, region: str, instance_id: str) -> StatusChecks | None:
        """The instance's status checks; None if it is not visible. Those that come together share a request."""
        batcher = self._checks.get(region)
        if batcher is None:
            batcher = self._checks[region] = Batcher(
                lambda ids: self._admitted(
                    region, "DescribeInstanceStatus", lambda: self._ec2.status_checks(region, ids)
                ),
                most=MOST_CHECKED,
                pause=TOGETHER,
                sleep=self._sleep,
            )
        return await batcher.get(instance_id)

    async def find_launched(self, region: str, client_token: str) -> Sequence[Ec2Instance]:
        """The instances that were launched under the token, terminated ones too; eventually consistent."""
        return await self._list(region, {"client-token": [client_token]})

    async def find_tagged(
        self, region: str, tags: Mapping[str, str], states: Sequence[InstanceState]
    ) -> Sequence[Ec2Instance]:
        """The instances that have all these tags and one of the states; eventually consistent."""
        tagged = {f"tag:{key}": [value] for key, value in tags.items()}
        return await self._list(region, {**tagged, "instance-state-name": states})

    async def _list(self, region: str, filters: Mapping[str, Sequence[str]]) -> Sequence[Ec2Instance]:
        return await self._admitted(
            region, "DescribeInstances", lambda: self._ec2.list_instances(region, filters)
        )

    async def find_image(self, region: str, name: str, owner: str | None) -> str | None:
        """See ``Ec2.find_image``."""
        return await self._admitted(
            region, "DescribeImages", lambda: self._ec2.find_image(region, name, owner)
        )

    async def refresh(self, region: str) -> None:
        """See ``Ec2.refresh``; seldom, as all calls of a region are refused together, and a new client is not cheap."""
        if self._limits.may_refresh(region):
            await self._ec2.refresh(region)

    # -- limits -------------------------------------------------------------------------------------------

    async def _change(self, region: str, api: str, lease: Lease, call: Callable[[], Awaitable[T]]) -> T:
        return await self._admitted(region, api, call, before=lease.renew)

    async def _admitted(
        self,
        region: str,
        api: str,
        call: Callable[[], Awaitable[T]],
        *,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """``before``: what is to be done at the last moment, when nothing has to be waited for any more."""
        began = self._limits.now()
        await self._limits.admit(region, api)
        async with self._place(region, api):
            EC2_WAIT_SECONDS.labels(api).observe((self._limits.now() - began).total_seconds())
            if before is not None:
                await before()
            try:
                result = await call()
            except EC2Exception as error:
                if isinstance(error, EC2ThrottledException) or error.remedy is Remedy.REFRESH:
                    self._limits.refused(region, api)
                raise
        self._limits.answered(region, api)
        return result

    @asynccontextmanager
    async def _place(self, region: str, api: str) -> AsyncIterator[None]:
        """One of the places for calls of the region that are under way."""
        places = self._under_way[region]
        about = {API: api, REGION: region}
        with span("wait for the limit of EC2", about) if places.locked() else nullcontext():
            await places.acquire()
        try:
            yield
        finally:
            places.release()
