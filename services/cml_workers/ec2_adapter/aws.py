"""EC2 over its HTTP API, through aioboto3: one long-lived client for each region."""

import asyncio
import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import aioboto3
import botocore.session
import structlog
from aiobotocore.config import AioConfig
from aiohttp import ClientError as HttpError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    TokenRetrievalError,
)

from cml_contracts.instance import Ec2Instance, InstanceState, LaunchParameters
from cml_workers.ec2_adapter.errors import (
    EC2AuthenticationException,
    EC2Exception,
    EC2InvalidParameterException,
    OutcomeUnknownError,
    Remedy,
    exception_for,
)

if TYPE_CHECKING:
    from types_aiobotocore_ec2.client import EC2Client
    from types_aiobotocore_ec2.type_defs import InstanceTypeDef

log = structlog.get_logger(__name__)

COALESCE_SECONDS = 0.01
"""How long a describe waits for others to share one request with."""
FILTER_VALUES = 200
"""Values that one filter takes (EC2 API reference, *DescribeInstances*)."""


class AwsEc2Client:
    """Implements the port ``Ec2``. Use as ``async with``, or ``close`` it.

    ``endpoint_url``: another EC2 API than AWS's. Time-outs are in seconds. The credentials are those of the
    usual AWS environment.
    """

    def __init__(
        self,
        *,
        endpoint_url: str | None = None,
        connect_timeout: float = 5.0,
        read_timeout: float = 30.0,
    ) -> None:
        self._endpoint_url = endpoint_url
        self._config = AioConfig(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            # One attempt a call: of several only the last one's answer is seen, a refusal, say, after one that was
            # carried out and whose answer was lost. Who calls tries again, and knows what may have happened.
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=50,
            user_agent_extra="cml-workers",
        )
        self._clients: dict[str, EC2Client] = {}
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._describing: dict[str, _Describing] = {}
        self._root_devices: dict[tuple[str, str], str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        stack, self._stack = self._stack, AsyncExitStack()
        self._clients.clear()
        await stack.aclose()

    async def refresh(self) -> None:
        """Make new clients, which read the credentials anew; calls under way may fail as unknown."""
        async with self._opening:
            await self.close()

    async def launch(self, parameters: LaunchParameters) -> Ec2Instance:
        """See ``Ec2.launch``."""
        region = parameters.aws_region
        device = await self._root_device(region, parameters.ami_id)
        tags = _aws_tags(parameters.tags)
        request: dict[str, Any] = {
            "ClientToken": parameters.client_token,
            "ImageId": parameters.ami_id,
            "InstanceType": parameters.instance_type,
            "MinCount": 1,
            "MaxCount": 1,
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            "BlockDeviceMappings": [
                {"DeviceName": device, "Ebs": {"Encrypted": True, "DeleteOnTermination": True}}
            ],
            "InstanceInitiatedShutdownBehavior": "stop",
            "TagSpecifications": [
                {"ResourceType": "instance", "Tags": tags},
                {"ResourceType": "volume", "Tags": tags},
            ],
        }
        if parameters.security_group_ids:
            request["SecurityGroupIds"] = list(parameters.security_group_ids)
        if parameters.subnet_id:
            request["SubnetId"] = parameters.subnet_id
        if parameters.key_name:
            request["KeyName"] = parameters.key_name
        async with self._calling("RunInstances", region, f"image {parameters.ami_id}") as ec2:
            answer = await ec2.run_instances(**request)
        return _instance(region, answer["Instances"][0])

    async def start(self, region: str, instance_id: str) -> InstanceState:
        """See ``Ec2.start``."""
        async with self._calling("StartInstances", region, instance_id) as ec2:
            answer = await ec2.start_instances(InstanceIds=[instance_id])
        return InstanceState(answer["StartingInstances"][0]["CurrentState"]["Name"])

    async def stop(self, region: str, instance_id: str) -> InstanceState:
        """See ``Ec2.stop``."""
        async with self._calling("StopInstances", region, instance_id) as ec2:
            answer = await ec2.stop_instances(InstanceIds=[instance_id])
        return InstanceState(answer["StoppingInstances"][0]["CurrentState"]["Name"])

    async def terminate(self, region: str, instance_id: str) -> InstanceState:
        """See ``Ec2.terminate``."""
        async with self._calling("TerminateInstances", region, instance_id) as ec2:
            answer = await ec2.terminate_instances(InstanceIds=[instance_id])
        return InstanceState(answer["TerminatingInstances"][0]["CurrentState"]["Name"])

    async def add_tags(self, region: str, instance_id: str, tags: Mapping[str, str]) -> None:
        """See ``Ec2.add_tags``."""
        async with self._calling("CreateTags", region, instance_id) as ec2:
            await ec2.create_tags(Resources=[instance_id], Tags=_aws_tags(tags))

    async def tags(self, region: str, instance_id: str) -> dict[str, str]:
        """See ``Ec2.tags``."""
        found: dict[str, str] = {}
        async with self._calling("DescribeTags", region, instance_id) as ec2:
            pages = ec2.get_paginator("describe_tags").paginate(
                Filters=[{"Name": "resource-id", "Values": [instance_id]}]
            )
            async for page in pages:
                found |= {tag["Key"]: tag.get("Value", "") for tag in page["Tags"]}
        return found

    async def describe(self, region: str, instance_id: str) -> Ec2Instance | None:
        """See ``Ec2.describe``. Describes of one region that come together share their requests."""
        describing = self._describing.get(region)
        if describing is None or len(describing.wanted) >= FILTER_VALUES:
            describing = self._describing[region] = _Describing(
                asyncio.get_running_loop().create_task(self._describe_together(region))
            )
        describing.wanted.add(instance_id)
        return (await asyncio.shield(describing.found)).get(instance_id)

    async def _describe_together(self, region: str) -> Mapping[str, Ec2Instance]:
        describing = self._describing[region]
        await asyncio.sleep(COALESCE_SECONDS)
        if self._describing.get(region) is describing:
            del self._describing[region]
        wanted = sorted(describing.wanted)
        found = await self._find(region, "instance-id", wanted)
        checks = await self._status_checks(region, [each for each in wanted if each in found])
        return {
            instance_id: instance.model_copy(update=checks.get(instance_id, {}))
            for instance_id, instance in found.items()
        }

    async def find_launched(self, region: str, client_token: str) -> Sequence[Ec2Instance]:
        """See ``Ec2.find_launched``."""
        return list((await self._find(region, "client-token", [client_token])).values())

    async def find_image(self, region: str, name: str) -> str | None:
        """See ``Ec2.find_image``. Images of others, Amazon's included, are not looked at: anybody names one."""
        images = []
        async with self._calling("DescribeImages", region, f"image {name!r}") as ec2:
            wanted: Any = [{"Name": "name", "Values": [name]}, {"Name": "state", "Values": ["available"]}]
            for scope in ({"Owners": ["self"]}, {"ExecutableUsers": ["self"]}):
                answer = await ec2.describe_images(Filters=wanted, **scope)  # type: ignore[arg-type]
                images += answer["Images"]
        newest = max(images, key=lambda image: image.get("CreationDate", ""), default=None)
        return newest["ImageId"] if newest else None

    async def _root_device(self, region: str, ami_id: str) -> str:
        """The image's root device, whose encryption is asked for by its name; it never changes."""
        known = self._root_devices.get((region, ami_id))
        if known is not None:
            return known
        async with self._calling("DescribeImages", region, f"image {ami_id}") as ec2:
            images = (await ec2.describe_images(ImageIds=[ami_id]))["Images"]
        if not images:
            raise EC2InvalidParameterException(f"image {ami_id} does not exist in {region}")
        device = self._root_devices[region, ami_id] = images[0].get("RootDeviceName") or "/dev/xvda"
        return device

    async def _find(self, region: str, by: str, values: list[str]) -> dict[str, Ec2Instance]:
        """By filter: an id that is not there is then absent, and does not fail the others."""
        found: dict[str, Ec2Instance] = {}
        async with self._calling("DescribeInstances", region, ", ".join(values[:3])) as ec2:
            pages = ec2.get_paginator("describe_instances").paginate(Filters=[{"Name": by, "Values": values}])
            async for page in pages:
                for reservation in page["Reservations"]:
                    for described in reservation.get("Instances", []):
                        instance = _instance(region, described)
                        found[instance.instance_id] = instance
        return found

    async def _status_checks(self, region: str, instance_ids: list[str]) -> dict[str, dict[str, str]]:
        if not instance_ids:
            return {}
        checks = {}
        async with self._calling("DescribeInstanceStatus", region, ", ".join(instance_ids[:3])) as ec2:
            pages = ec2.get_paginator("describe_instance_status").paginate(
                Filters=[{"Name": "instance-id", "Values": instance_ids}],
                IncludeAllInstances=True,
            )
            async for page in pages:
                for status in page["InstanceStatuses"]:
                    checks[status.get("InstanceId", "")] = {
                        "instance_status_check": str(status.get("InstanceStatus", {}).get("Status")),
                        "ec2_system_status_check": str(status.get("SystemStatus", {}).get("Status")),
                    }
        return checks

    async def _client(self, region: str) -> "EC2Client":
        client = self._clients.get(region)
        if client is not None:
            return client
        if region not in _regions():
            # Its host would not be found, as in an outage, and the wish repeated for ever.
            raise EC2InvalidParameterException(f"AWS has no region {region}, as far as is known here")
        async with self._opening:
            if region not in self._clients:
                self._clients[region] = await self._stack.enter_async_context(
                    aioboto3.Session().client(
                        "ec2", region_name=region, endpoint_url=self._endpoint_url, config=self._config
                    )
                )
            return self._clients[region]

    @asynccontextmanager
    async def _calling(self, operation: str, region: str, subject: str) -> "AsyncIterator[EC2Client]":
        """One call; whatever goes wrong becomes one of our exceptions."""
        subject = f"{subject} in {region}"
        try:
            yield await self._client(region)
        except EC2Exception:
            raise
        except ClientError as error:
            answer: Any = error.response
            told = answer.get("Error", {})
            raise exception_for(
                told.get("Code", "Unknown"),
                told.get("Message", ""),
                operation=operation,
                subject=subject,
                status=answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 400),
            ) from error
        except (
            NoCredentialsError,
            PartialCredentialsError,
            CredentialRetrievalError,
            TokenRetrievalError,
        ) as error:
            raise EC2AuthenticationException(
                f"{operation} of {subject}: no usable AWS credentials ({type(error).__name__})",
                remedy=Remedy.REFRESH,
                retryable=True,
                aws_code=type(error).__name__,
            ) from error
        except ParamValidationError as error:
            raise EC2InvalidParameterException(f"{operation} of {subject}: {error}") from error
        except (BotoCoreError, HttpError, OSError, TimeoutError, RuntimeError) as error:
            raise OutcomeUnknownError(
                f"{operation} of {subject}: no answer ({type(error).__name__})", aws_code=type(error).__name__
            ) from error


class _Describing:
    """Describes of one region that will go out together."""

    def __init__(self, found: "asyncio.Task[Mapping[str, Ec2Instance]]") -> None:
        self.found = found
        self.wanted: set[str] = set()
        found.add_done_callback(_retrieve_error)


def _retrieve_error(found: "asyncio.Task[Mapping[str, Ec2Instance]]") -> None:
    """Where all who asked have given up, nobody else does, and it would be logged as an error of the program."""
    if not found.cancelled():
        found.exception()


@functools.cache
def _regions() -> frozenset[str]:
    """Every region with EC2 that the installed SDK knows, of all partitions."""
    sdk = botocore.session.Session()
    return frozenset(
        region
        for partition in sdk.get_available_partitions()
        for region in sdk.get_available_regions("ec2", partition_name=partition)
    )


def _aws_tags(tags: Mapping[str, str]) -> Any:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def _instance(region: str, described: "InstanceTypeDef") -> Ec2Instance:
    return Ec2Instance(
        instance_id=described["InstanceId"],
        aws_region=region,
        state=InstanceState(described["State"]["Name"]),
        instance_type=described["InstanceType"],
        ami_id=described["ImageId"],
        security_group_ids=tuple(group["GroupId"] for group in described.get("SecurityGroups", [])),
        subnet_id=described.get("SubnetId"),
        key_pair_name=described.get("KeyName") or None,
        public_ip=described.get("PublicIpAddress") or None,
        private_ip=described.get("PrivateIpAddress") or None,
        tags={tag["Key"]: tag.get("Value", "") for tag in described.get("Tags", [])},
    )
