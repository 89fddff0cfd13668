"""What the launches of a profile need in one region: each thing is looked at, and a line says what is not there."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cml_contracts.instance import LaunchParameters
from cml_workers.doctor.account import Account
from cml_workers.doctor.launches import launches_in
from cml_workers.doctor.lines import Line, Status
from cml_workers.doctor.quotas import quota_of
from cml_workers.domain.decisions import RejectedError
from cml_workers.domain.messages import ImageLookup
from cml_workers.domain.policy import Policy
from cml_workers.domain.profiles import Profile, can_be_shown
from cml_workers.ec2_adapter.errors import EC2InvalidParameterException

AWS_EBS_KEY = "alias/aws/ebs"
"""The key that AWS manages, which every caller may use."""
NESTED = "nested-virtualization"
"""EC2's word in ``ProcessorInfo.SupportedFeatures``."""
_SETTINGS = {
    "image": "CML_WORKER_AMI_IDS or CML_WORKER_AMI_NAMES",
    "instance_types": "CML_DEFAULT_INSTANCE_TYPE",
    "subnets": "CML_WORKER_SUBNET_ID",
    "security_groups": "CML_WORKER_SECURITY_GROUP_IDS",
    "key": "CML_WORKER_KEY_NAME",
    "tags": "CML_DEFAULT_TAGS",
}
"""What the profile that needs no file is made of, by the fields of a profile."""


class Unusable(NamedTuple):
    """Why one of several instance types or subnets cannot be launched with."""

    subject: str
    problem: str
    fix: str


class Prerequisites:
    """``lines``: what is not as it has to be."""

    def __init__(self, account: Account, profile: Profile, image_owners: Sequence[str]) -> None:
        self._account = account
        self._profile = profile
        self._image_owners = image_owners
        self.lines: list[Line] = []

    async def examine(self, policy: Policy) -> list[LaunchParameters]:
        """The launches whose prerequisites are there, or the first one; empty: there is nothing to launch. Raises EC2Error."""
        account = self._account
        try:
            launches = await launches_in(account.region, self._profile, policy, self._find_image)
        except RejectedError as error:
            self._missing("settings", error.decision.problem.detail, f"correct {self._field('image')}")
            return []
        if not launches:
            return []
        image = await self._image(launches[0])
        subnets = await self._subnets([each.subnet_id for each in launches])
        await self._groups(launches[0], subnets)
        await self._key_pair(launches[0])
        await self._encryption(launches[0])
        await self._metadata(launches[0])
        types = list(dict.fromkeys(each.instance_type for each in launches))
        described = await account.types(types) or {}
        wrong = {}
        for each in types:
            launch = next(one for one in launches if one.instance_type == each)
            if reason := await self._type(launch, described.get(each), image, subnets):
                wrong[each] = reason
        self._of_several(wrong, len(types))
        there = None if subnets is None else {None, *(each["SubnetId"] for each in subnets)}
        usable = [
            each
            for each in launches
            if each.instance_type not in wrong and (there is None or each.subnet_id in there)
        ]
        return usable or launches[:1]

    # -- the image -----------------------------------------------------------------------------------------

    async def _find_image(self, lookup: ImageLookup) -> str | None:
        """As the adapter finds it; or a line about what there is instead."""
        ec2, region, name = self._account.clients.ec2, self._account.region, lookup.ami_name
        try:
            image_id = await self._account.ask(
                "ec2:DescribeImages", lambda: ec2.find_image(region, name, lookup.owner)
            )
        except EC2InvalidParameterException as error:
            self._missing("image", error.problem.detail, f"name it by its id: {self._field('image')}")
            return None
        if image_id is not None or "ec2:DescribeImages" in self._account.denied:
            return image_id
        others = await self._account.images("name", name) or []
        owners = lookup.owner or ", ".join(self._image_owners)
        seen = "; ".join(
            f"{each['ImageId']} of {each['OwnerId']} is {each['State']}"
            for each in others
            if each["Name"] == name
        )
        self._missing(
            "image",
            f"no available image is named {name!r} among those of {owners}{f' ({seen})' if seen else ''}",
            f"copy it to this region, change {self._field('image')}, or its owner, for whom CML_IMAGE_OWNERS is the default",
        )
        return None

    async def _image(self, launch: LaunchParameters) -> Any | None:
        image_id = launch.ami_id
        found = await self._account.images("image-id", image_id)
        if found is None:
            return None
        if not found:
            self._missing(
                "image",
                f"image {image_id} does not exist, or is not shared with this account",
                f"copy it to this region or have it shared, and set its id: {self._field('image')}",
            )
            return None
        image = found[0]
        if image["State"] != "available":
            self._missing(
                "image",
                f"image {image_id} is {image['State']}",
                f"wait until it is available, or set another one: {self._field('image')}",
            )
        if image.get("RootDeviceType") != "ebs":
            self._missing(
                "image",
                f"image {image_id} has no EBS root device: its instances cannot be stopped, nor encrypted",
                "make one with an EBS root device",
            )
        sizes = [
            each.get("Ebs", {}).get("VolumeSize", 0)
            for each in image.get("BlockDeviceMappings", [])
            if each.get("DeviceName") == image.get("RootDeviceName")
        ]
        size = launch.root_volume.size_gib if launch.root_volume else None
        if size and sizes and size < sizes[0]:
            self._missing(
                "image",
                f"image {image_id} needs a root volume of {sizes[0]} GiB; {size} are asked for",
                f"correct {self._field('root_volume')}",
            )
        return image

    # -- the network ---------------------------------------------------------------------------------------

    async def _subnets(self, subnet_ids: Sequence[str | None]) -> Sequence[Any] | None:
        """Those that there are; None: that cannot be seen."""
        named = list(dict.fromkeys(each for each in subnet_ids if each))
        subnets = await self._account.subnets(named)
        if subnets is None:
            return None
        there = {each["SubnetId"] for each in subnets}
        for subnet_id in named:
            if subnet_id not in there:
                self._missing(
                    "subnet",
                    f"subnet {subnet_id} does not exist",
                    f"create it, or change {self._field('subnets')}",
                )
        if not named and not subnets:
            self._missing(
                "subnet",
                "there is no default subnet",
                f"set {self._field('subnets')}, or make a default VPC",
            )
        full = {
            each["SubnetId"]: Unusable(
                "subnet",
                f"subnet {each['SubnetId']} has no free addresses",
                f"free some, or use a larger subnet: {self._field('subnets')}",
            )
            for each in subnets
            if not each["AvailableIpAddressCount"]
        }
        self._of_several(full, len(subnets))
        return subnets

    async def _groups(self, launch: LaunchParameters, subnets: Sequence[Any] | None) -> None:
        if not launch.security_group_ids:
            return
        groups = await self._account.groups(launch.security_group_ids)
        if groups is None:
            return
        found = {each["GroupId"]: each for each in groups}
        for group_id in launch.security_group_ids:
            group = found.get(group_id)
            if group is None:
                self._missing(
                    "security group",
                    f"security group {group_id} does not exist",
                    f"create it, or change {self._field('security_groups')}",
                )
                continue
            others = {each["VpcId"] for each in subnets or ()} - {group["VpcId"]}
            if others:
                self._missing(
                    "security group",
                    f"security group {group_id} is of {group['VpcId']}, the subnet of {', '.join(sorted(others))}",
                    f"name those of one VPC: {self._field('security_groups')}, {self._field('subnets')}",
                )

    # -- the instance type ---------------------------------------------------------------------------------

    async def _type(
        self, launch: LaunchParameters, described: Any, image: Any, subnets: Sequence[Any] | None
    ) -> Unusable | None:
        """Why it cannot be launched with this type."""
        name, change = launch.instance_type, f"set another type: {self._field('instance_types')}"
        offered = await self._account.zones_offering(name)
        zones = {each["AvailabilityZone"] for each in subnets or ()}
        if offered == set():
            return Unusable("instance type", f"{name} is not offered in this region", change)
        if offered and zones and not zones & offered:
            there, elsewhere = ", ".join(sorted(zones)), ", ".join(sorted(offered))
            return Unusable(
                "instance type",
                f"{name} is not offered in {there}; it is in {elsewhere}",
                f"use a subnet in one of these zones: {self._field('subnets')}",
            )
        if described is None:
            return None
        processor = described["ProcessorInfo"]
        supported = processor["SupportedArchitectures"]
        if image and image["Architecture"] not in supported:
            return Unusable(
                "image",
                f"image {launch.ami_id} is for {image['Architecture']}; {name} has {', '.join(supported)}",
                f"choose an image of this architecture, or {change}",
            )
        if launch.nested_virtualization and NESTED not in processor.get("SupportedFeatures", ()):
            return Unusable("instance type", f"{name} has no nested virtualization", change)
        return await self._quota(name, described["VCpuInfo"]["DefaultVCpus"])

    async def _quota(self, name: str, wanted: int) -> Unusable | None:
        """Whether one more instance may run: quotas count vCPUs of what runs, not of what is stopped."""
        quota = quota_of(name)
        if quota is None:
            return None
        limit = await self._account.quota(quota.code)
        running = await self._account.running_types()
        if limit is None or running is None:
            return None
        counted = {each: number for each, number in running.items() if quota_of(each) is quota}
        types = await self._account.types(sorted(counted)) if counted else {}
        if types is None:
            return None
        used = sum(types[each]["VCpuInfo"]["DefaultVCpus"] * counted[each] for each in types)
        if used + wanted <= limit:
            return None
        return Unusable(
            "quota",
            f"{name} needs {wanted} vCPUs; {used} of {limit:g} are used",
            f"ask for more at Service Quotas, Amazon EC2, {quota.name} ({quota.code}), or stop instances",
        )

    # -- keys and tags -------------------------------------------------------------------------------------

    async def _key_pair(self, launch: LaunchParameters) -> None:
        if launch.key_name is not None and await self._account.key_pairs(launch.key_name) == []:
            self._missing(
                "key pair",
                f"key pair {launch.key_name} does not exist",
                f"import it into this region, or change {self._field('key')}",
            )

    async def _encryption(self, launch: LaunchParameters) -> None:
        """The root volume is encrypted by the profile's key, or by the region's default one."""
        own = launch.root_volume.kms_key_id if launch.root_volume else None
        key = own or await self._account.ebs_key()
        if key is None or key.endswith(AWS_EBS_KEY):
            return
        state = await self._account.key_state(key)
        if state is None or state == "Enabled":
            return
        which, fix = (
            ("key of the root volume", f"change {self._field('root_volume')}")
            if own
            else ("default key of EBS", "set another one: aws ec2 modify-ebs-default-kms-key-id")
        )
        self._missing(
            "encryption key",
            f"the {which}, {key}, is {state}: instances would end right after their launch",
            f"enable it, or {fix}",
        )

    async def _metadata(self, launch: LaunchParameters) -> None:
        """Whether EC2 refuses tags as the metadata of instances has to show them, which takes fewer characters."""
        if launch.metadata_tags is not None or await self._account.metadata_tags() != "enabled":
            return
        wrong = sorted(key for key in launch.tags if not can_be_shown(key))
        fix = "aws ec2 modify-instance-metadata-defaults --instance-metadata-tags disabled"
        if wrong:
            problem = f"instance metadata shows tags here, so EC2 refuses the tag key {wrong[0]!r}"
            self._missing("metadata tags", problem, f"rename it in {self._field('tags')}, or {fix}")
        else:
            problem = "instance metadata shows tags here, so EC2 refuses commands with tag keys that have spaces or slashes"
            self._add(Status.NOTE, Unusable("metadata tags", problem, fix))

    # -- lines ---------------------------------------------------------------------------------------------

    def _of_several(self, wrong: Mapping[str, Unusable], of: int) -> None:
        """Where another one can be launched with, it is only a note."""
        for each in wrong.values():
            self._add(Status.MISSING if len(wrong) == of else Status.NOTE, each)

    def _missing(self, subject: str, problem: str, fix: str) -> None:
        self._add(Status.MISSING, Unusable(subject, problem, fix))

    def _add(self, status: Status, what: Unusable) -> None:
        self.lines.append(Line(self._account.region, status, *what))

    def _field(self, name: str) -> str:
        """Where a field of the profile is set."""
        from_settings = self._profile.elsewhere is not None
        if from_settings and name in _SETTINGS:
            return _SETTINGS[name]
        return f"{name} of profile {self._profile.name}"
