"""What AWS shows of an account in one region: the adapter's own calls as dry runs, and what only the doctor asks.

Nothing is changed: the client that makes the adapter's changing calls adds ``DryRun`` to every one of them.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from botocore import xform_name

from cml_contracts.instance import LaunchParameters
from cml_workers.ec2_adapter.aws import AwsEc2Client
from cml_workers.ec2_adapter.aws.client import PAGE
from cml_workers.ec2_adapter.aws.connections import Connections
from cml_workers.ec2_adapter.errors import (
    EC2AuthenticationException,
    EC2Error,
    EC2Exception,
    EC2ThrottledException,
)
from cml_workers.ec2_adapter.limits import AWS_LIMITS
from cml_workers.ec2_adapter.port import LONGEST_CALL

T = TypeVar("T")

NOT_ALLOWED = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"})
MOST_TYPES = 100
"""Instance types that one call describes (EC2 API reference, *DescribeInstanceTypes*)."""
_READS = ("Describe", "Get", "List")


_DRY: ContextVar[bool] = ContextVar("_DRY", default=False)


@dataclass(frozen=True, slots=True)
class Clients:
    """``ec2``: the adapter's own; every call of it that changes something is a dry run. ``quotas``, ``keys``: what only the doctor asks."""

    ec2: AwsEc2Client
    quotas: Connections
    keys: Connections


@asynccontextmanager
async def clients(
    *,
    endpoint_url: str | None,
    image_owners: Sequence[str],
    newest_image: bool,
    prepare: Callable[[Any], None] = lambda _: None,
) -> AsyncIterator[Clients]:
    """``prepare``: gets every client as well, see ``Connections``."""

    def dry(client: Any) -> None:
        client.meta.events.register("before-parameter-build", _dry)
        prepare(client)

    async with AwsEc2Client(
        endpoint_url=endpoint_url, image_owners=image_owners, newest_image=newest_image, prepare=dry
    ) as ec2:
        quotas, keys = (
            Connections(
                endpoint_url=endpoint_url,
                call_seconds=LONGEST_CALL.total_seconds(),
                service=service,
                prepare=prepare,
            )
            for service in ("service-quotas", "kms")
        )
        try:
            yield Clients(ec2, quotas, keys)
        finally:
            await quotas.close()
            await keys.close()


def _dry(params: dict[str, Any], model: Any, **_: Any) -> None:
    """Nothing that is not known to change nothing goes to EC2 without it."""
    if _DRY.get() or not model.name.startswith(_READS):
        params["DryRun"] = True


class Account:
    """One region. What is asked is None where the caller may not ask it; the action is in ``denied`` then.

    Raises EC2Error where there is no answer at all.
    """

    def __init__(self, region: str, given: Clients) -> None:
        self.region = region
        self.clients = given
        self.denied: dict[str, str] = {}
        self._launched = False
        self._asked: dict[str, Any] = {}

    async def allowed(
        self, action: str, call: Callable[[], Awaitable[Any]], *, looks_first: bool = False
    ) -> EC2Exception | None:
        """Make a dry run. None: it would have succeeded, or it may not be done; otherwise why it would not have.

        ``looks_first``: what the call reads before it changes something is no dry run.
        """
        dry = _DRY.set(not looks_first)
        try:
            await call()
        except EC2Exception as error:
            if error.aws_code == "DryRunOperation" or self._is_denied(action, error):
                return None
            if isinstance(error, EC2AuthenticationException | EC2ThrottledException):
                raise
            return error
        finally:
            _DRY.reset(dry)
        return None

    async def allowed_launch(self, launch: LaunchParameters) -> EC2Exception | None:
        """The same for a launch, no more often than EC2 takes launches."""
        if self._launched:
            await asyncio.sleep(1 / AWS_LIMITS["RunInstances"].refill)
        self._launched = True
        return await self.allowed(
            "ec2:RunInstances", lambda: self.clients.ec2.launch(launch), looks_first=True
        )

    async def ask(self, action: str, call: Callable[[], Awaitable[T]]) -> T | None:
        """The answer to a call; None: it is not allowed."""
        try:
            return await call()
        except EC2Exception as error:
            if self._is_denied(action, error):
                return None
            raise

    def _is_denied(self, action: str, error: EC2Error) -> bool:
        if error.aws_code not in NOT_ALLOWED:
            return False
        name, resource = _denied(error.problem.detail)
        self.denied.setdefault(name or action, resource)
        return True

    # -- what only the doctor asks -------------------------------------------------------------------------

    async def regions(self) -> Mapping[str, str] | None:
        """Whether each region that AWS has is enabled for the account: EC2's words."""
        found = await self._described("DescribeRegions", "Regions", AllRegions=True)
        return None if found is None else {each["RegionName"]: each["OptInStatus"] for each in found}

    async def images(self, name: str, value: str) -> Sequence[Any] | None:
        """By a filter, whoever's they are."""
        return await self._described("DescribeImages", "Images", **_filtered(name, [value]))

    async def subnets(self, subnet_ids: Sequence[str]) -> Sequence[Any] | None:
        """These, or those in which EC2 launches where none is named."""
        wanted = _filtered("subnet-id", subnet_ids) if subnet_ids else _filtered("default-for-az", ["true"])
        return await self._described("DescribeSubnets", "Subnets", **wanted)

    async def groups(self, group_ids: Sequence[str]) -> Sequence[Any] | None:
        return await self._described(
            "DescribeSecurityGroups", "SecurityGroups", **_filtered("group-id", group_ids)
        )

    async def key_pairs(self, name: str) -> Sequence[Any] | None:
        return await self._described("DescribeKeyPairs", "KeyPairs", **_filtered("key-name", [name]))

    async def types(self, names: Sequence[str]) -> Mapping[str, Any] | None:
        """Instance types by their names; those that EC2 knows."""
        found: dict[str, Any] = {}
        for start in range(0, len(names), MOST_TYPES):
            some = await self._described(
                "DescribeInstanceTypes",
                "InstanceTypes",
                **_filtered("instance-type", names[start : start + MOST_TYPES]),
            )
            if some is None:
                return None
            found |= {each["InstanceType"]: each for each in some}
        return found

    async def zones_offering(self, instance_type: str) -> set[str] | None:
        """Where there is this type."""
        found = await self._described(
            "DescribeInstanceTypeOfferings",
            "InstanceTypeOfferings",
            LocationType="availability-zone",
            **_filtered("instance-type", [instance_type]),
        )
        return None if found is None else {each["Location"] for each in found}

    async def running_types(self) -> Counter[str] | None:
        """How many on-demand instances of each type count for the quotas: those that run or start, whoever's they are."""

        async def running() -> Counter[str]:
            found: Counter[str] = Counter()
            async with self.clients.ec2.connections.calling(
                "DescribeInstances", self.region, "what runs"
            ) as ec2:
                pages = ec2.get_paginator("describe_instances").paginate(
                    Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}],
                    PaginationConfig={"PageSize": PAGE},
                )
                async for page in pages:
                    for reservation in page["Reservations"]:
                        found.update(
                            str(each["InstanceType"])
                            for each in reservation.get("Instances", [])
                            if "InstanceLifecycle" not in each
                        )
            return found

        return await self._once("what runs", "ec2:DescribeInstances", running)

    async def quota(self, code: str) -> float | None:
        """A quota of EC2. Raises EC2Error: it has none of this code, too."""

        async def asked() -> float:
            async with self.clients.quotas.calling("GetServiceQuota", self.region, f"quota {code}") as quotas:
                client: Any = quotas
                answer = await client.get_service_quota(ServiceCode="ec2", QuotaCode=code)
                return float(answer["Quota"]["Value"])

        return await self._once(code, "servicequotas:GetServiceQuota", asked)

    async def ebs_key(self) -> str | None:
        """The key that encrypts new volumes for which none is named."""
        found = await self._one("GetEbsDefaultKmsKeyId")
        return found and str(found["KmsKeyId"])

    async def metadata_tags(self) -> str | None:
        """Whether instance metadata shows tags where a launch does not say: EC2's word."""
        found = await self._one("GetInstanceMetadataDefaults")
        return found and str(found.get("AccountLevel", {}).get("InstanceMetadataTags", "no-preference"))

    async def key_state(self, key: str) -> str | None:
        """KMS's word for the state of a key; ``NotFound``."""

        async def asked() -> str:
            async with self.clients.keys.calling("DescribeKey", self.region, key) as keys:
                client: Any = keys
                try:
                    return str((await client.describe_key(KeyId=key))["KeyMetadata"]["KeyState"])
                except client.exceptions.NotFoundException:
                    return "NotFound"

        return await self._once(key, "kms:DescribeKey", asked)

    async def _described(self, api: str, name: str, **wanted: Any) -> Sequence[Any] | None:
        answer = await self._one(api, **wanted)
        found: Sequence[Any] | None = None if answer is None else answer[name]
        return found

    async def _one(self, api: str, **wanted: Any) -> Any:
        async def asked() -> Any:
            async with self.clients.ec2.connections.calling(api, self.region, "the account") as ec2:
                return await getattr(ec2, xform_name(api))(**wanted)

        return await self._once(f"{api} {wanted}", f"ec2:{api}", asked)

    async def _once(self, what: str, action: str, call: Callable[[], Awaitable[T]]) -> T | None:
        """What several profiles need is asked once."""
        if what not in self._asked:
            self._asked[what] = await self.ask(action, call)
        answer: T | None = self._asked[what]
        return answer


def _filtered(name: str, values: Sequence[str]) -> dict[str, Any]:
    return {"Filters": [{"Name": name, "Values": list(values)}]}


def _denied(detail: str) -> tuple[str, str]:
    """The action and the resource that a refusal names; empty where it does not."""
    _, _, after = detail.partition("not authorized to perform: ")
    words = after.split()
    resource = words[3] if words[1:3] == ["on", "resource:"] and len(words) > 3 else ""
    return words[0] if words else "", resource
