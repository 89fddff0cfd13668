"""EC2 over its HTTP API, through aioboto3."""

import re
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from botocore import xform_name

from cml_contracts.instance import Ec2Instance, InstanceState, LaunchParameters, RootVolume, StateReason
from cml_workers.ec2_adapter.aws.connections import Connections
from cml_workers.ec2_adapter.errors import EC2InstanceNotFoundException, EC2InvalidParameterException
from cml_workers.ec2_adapter.port import LONGEST_CALL, StateChange, StatusChecks

if TYPE_CHECKING:
    from types_aiobotocore_ec2.type_defs import InstanceStateChangeTypeDef, InstanceTypeDef

OUR_OWN = ("self",)
"""Anybody can share an image with us, under any name."""
_WILDCARDS = re.compile(r"[*?\\]")
"""In the value of a filter (EC2 user guide, *Filtering resources*)."""
PAGE = 1000
"""Instances that one answer holds at most (EC2 API reference, *DescribeInstances*)."""


class AwsEc2Client:
    """Implements the port ``Ec2``. Use as ``async with``, or ``close`` it.

    ``endpoint_url``: another EC2 API than AWS's. ``call_seconds``: how long a call may take, all its pages together. The credentials are those of the
    usual AWS environment. ``image_owners``: whose images are found by name; ``newest_image``: of several the newest one;
    ``prepare``: see ``Connections``.
    """

    def __init__(
        self,
        *,
        endpoint_url: str | None = None,
        call_seconds: float = LONGEST_CALL.total_seconds(),
        image_owners: Sequence[str] = OUR_OWN,
        newest_image: bool = False,
        prepare: Callable[[Any], None] | None = None,
    ) -> None:
        self.connections = Connections(endpoint_url=endpoint_url, call_seconds=call_seconds, prepare=prepare)
        self._calling = self.connections.calling
        self._image_owners = image_owners
        self._newest_image = newest_image
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
        await self.connections.close()

    async def refresh(self, region: str) -> None:
        """See ``Ec2.refresh``."""
        await self.connections.refresh(region)

    async def launch(self, parameters: LaunchParameters) -> Ec2Instance:
        """See ``Ec2.launch``."""
        region = parameters.aws_region
        device = await self._root_device(region, parameters.ami_id)
        tags = _aws_tags(parameters.tags)
        volume = parameters.root_volume or RootVolume()
        request: dict[str, Any] = {
            "ClientToken": parameters.client_token,
            "ImageId": parameters.ami_id,
            "InstanceType": parameters.instance_type,
            "MinCount": 1,
            "MaxCount": 1,
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            "BlockDeviceMappings": [
                {
                    "DeviceName": device,
                    "Ebs": {
                        "Encrypted": True,
                        "DeleteOnTermination": True,
                        **_given(
                            VolumeSize=volume.size_gib,
                            VolumeType=volume.volume_type,
                            KmsKeyId=volume.kms_key_id,
                        ),
                    },
                }
            ],
            "InstanceInitiatedShutdownBehavior": "stop",
            "TagSpecifications": [
                {"ResourceType": "instance", "Tags": tags},
                {"ResourceType": "volume", "Tags": tags},
            ],
            **_given(
                SecurityGroupIds=list(parameters.security_group_ids),
                SubnetId=parameters.subnet_id,
                KeyName=parameters.key_name,
                UserData=parameters.user_data,
            ),
        }
        if parameters.metadata_tags is not None:
            shown = "enabled" if parameters.metadata_tags else "disabled"
            request["MetadataOptions"]["InstanceMetadataTags"] = shown
        if profile := parameters.instance_profile:
            request["IamInstanceProfile"] = {"Arn" if profile.startswith("arn:") else "Name": profile}
        if parameters.nested_virtualization:
            request["CpuOptions"] = {"NestedVirtualization": "enabled"}
        async with self._calling("RunInstances", region, f"image {parameters.ami_id}") as ec2:
            answer = await ec2.run_instances(**request)
        return _instance(region, answer["Instances"][0])

    async def switch(self, api: str, region: str, instance_id: str) -> StateChange:
        """See ``Ec2.switch``."""
        async with self._calling(api, region, instance_id) as ec2:
            answer = await getattr(ec2, xform_name(api))(InstanceIds=[instance_id])
        (changed,) = (changes for name, changes in answer.items() if name.endswith("Instances"))
        return _change(changed)

    async def terminate(self, region: str, instance_id: str) -> StateChange:
        """See ``Ec2.terminate``."""
        async with self._calling("TerminateInstances", region, instance_id) as ec2:
            answer = await ec2.terminate_instances(InstanceIds=[instance_id])
        return _change(answer["TerminatingInstances"])

    async def add_tags(self, region: str, instance_id: str, tags: Mapping[str, str]) -> None:
        """See ``Ec2.add_tags``."""
        async with self._calling("CreateTags", region, instance_id) as ec2:
            await ec2.create_tags(Resources=[instance_id], Tags=_aws_tags(tags))

    async def describe_many(self, region: str, instance_ids: Sequence[str]) -> Mapping[str, Ec2Instance]:
        """See ``Ec2.describe_many``. By filter: an id that is not there is absent, and does not fail the others."""
        found = await self.list_instances(region, {"instance-id": instance_ids})
        return {instance.instance_id: instance for instance in found}

    async def status_checks(self, region: str, instance_ids: Sequence[str]) -> Mapping[str, StatusChecks]:
        """See ``Ec2.status_checks``. By ids, as no filter knows them; halved until the unknown one is alone."""
        if not instance_ids:
            return {}
        try:
            async with self._calling("DescribeInstanceStatus", region, ", ".join(instance_ids[:3])) as ec2:
                answer = await ec2.describe_instance_status(
                    InstanceIds=list(instance_ids), IncludeAllInstances=True
                )
        except EC2InstanceNotFoundException:
            if len(instance_ids) == 1:
                return {}
            half = len(instance_ids) // 2
            return {
                **await self.status_checks(region, instance_ids[:half]),
                **await self.status_checks(region, instance_ids[half:]),
            }
        return {
            status.get("InstanceId", ""): StatusChecks(
                str(status.get("InstanceStatus", {}).get("Status")),
                str(status.get("SystemStatus", {}).get("Status")),
            )
            for status in answer["InstanceStatuses"]
        }

    async def list_instances(
        self, region: str, filters: Mapping[str, Sequence[str]]
    ) -> Sequence[Ec2Instance]:
        """See ``Ec2.list_instances``."""
        found: list[Ec2Instance] = []
        wanted: Any = [{"Name": name, "Values": list(values)} for name, values in filters.items()]
        subject = ", ".join(value for values in filters.values() for value in values[:3])
        async with self._calling("DescribeInstances", region, subject) as ec2:
            pages = ec2.get_paginator("describe_instances").paginate(
                Filters=wanted, PaginationConfig={"PageSize": PAGE}
            )
            async for page in pages:
                for reservation in page["Reservations"]:
                    found += [_instance(region, each) for each in reservation.get("Instances", [])]
        return found

    async def find_image(self, region: str, name: str, owner: str | None = None) -> str | None:
        """See ``Ec2.find_image``."""
        literal = _WILDCARDS.sub(r"\\\g<0>", name)
        wanted: Any = [{"Name": "name", "Values": [literal]}, {"Name": "state", "Values": ["available"]}]
        async with self._calling("DescribeImages", region, f"image {name!r}") as ec2:
            answer = await ec2.describe_images(
                Owners=[owner] if owner else list(self._image_owners), Filters=wanted
            )
        images = sorted(
            (image for image in answer["Images"] if image.get("Name") == name),
            key=lambda image: image.get("CreationDate", ""),
        )
        if len(images) > 1 and not self._newest_image:
            ids = ", ".join(image["ImageId"] for image in images)
            raise EC2InvalidParameterException(
                f"{len(images)} images are named {name!r} in {region}: {ids}; name one by its id, or set "
                "CML_NEWEST_IMAGE=true"
            )
        return images[-1]["ImageId"] if images else None

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


def _given(**parameters: Any) -> dict[str, Any]:
    """Those that have a value; the others EC2 is not to see."""
    return {name: value for name, value in parameters.items() if value}


def _aws_tags(tags: Mapping[str, str]) -> Any:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def _change(changes: "Sequence[InstanceStateChangeTypeDef]") -> StateChange:
    change = changes[0]
    return StateChange(
        InstanceState(change["PreviousState"]["Name"]), InstanceState(change["CurrentState"]["Name"])
    )


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
        state_reason=_reason(described),
        state_transition_reason=described.get("StateTransitionReason") or None,
    )


def _reason(described: "InstanceTypeDef") -> StateReason | None:
    reason = described.get("StateReason", {})
    code, message = reason.get("Code", ""), reason.get("Message", "")
    if code == described["State"]["Name"]:
        return None  # of a new instance EC2 only says its state once more: pending
    return StateReason(code=code, message=message) if code or message else None
