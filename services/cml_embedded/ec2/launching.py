"""What EC2 looks at before it launches, beyond the request itself."""

import re
from collections.abc import Mapping
from typing import Any

from cml_embedded.ec2.account import Account
from cml_embedded.ec2.answers import Refusal
from cml_embedded.ec2.backend import Backend, architectures, has_nested_virtualization


def check_launch(form: Mapping[str, str], region: str, account: Account, backend: Backend) -> None:
    """Raise EC2's refusal of a launch from what does not exist, or does not fit together. A dry run shows it as well."""
    if any(name.startswith("TagSpecification.") for name in form):
        account.authorize(region, "ec2:CreateTags")
    image = backend.image(form["ImageId"], region)
    if image is None:
        raise Refusal("InvalidAMIID.NotFound", f"The image id '[{form['ImageId']}]' does not exist")
    if image.state != "available":
        raise Refusal(
            "InvalidAMIID.Unavailable", f"The image ID '{image.id}' is not available: {image.state}"
        )
    _check_devices(form, image)
    instance_type = form.get("InstanceType", "m1.small")
    supported = architectures(instance_type)
    if supported is None:
        raise Refusal("InvalidParameterValue", f"Invalid value '{instance_type}' for InstanceType.")
    if image.architecture not in supported:
        raise Refusal(
            "InvalidParameterValue",
            f"The architecture '{', '.join(supported)}' of the specified instance type does not match the architecture "
            f"'{image.architecture}' of the specified AMI.",
        )
    _check_network(form, region, backend)
    if (key := form.get("KeyName")) is not None and not backend.has_key_pair(key, region):
        raise Refusal("InvalidKeyPair.NotFound", f"The key pair '{key}' does not exist")
    account.check_instance_profile(region, form)
    account.check_tag_keys(region, form, form)
    nested = form.get("CpuOptions.NestedVirtualization") == "enabled"
    if nested and not has_nested_virtualization(instance_type):
        raise Refusal(
            "UnsupportedOperation",
            f"Nested virtualization is not supported for instance type '{instance_type}'.",
        )


def check_capacity(form: Mapping[str, str], region: str, account: Account, backend: Backend) -> None:
    """Raise EC2's refusal of a launch where it has no place for it. A dry run does not show this."""
    instance_type = form.get("InstanceType", "m1.small")
    subnet_id = form.get("SubnetId")
    zone = backend.subnet(subnet_id, region).availability_zone if subnet_id else None
    if not account.is_offered(region, instance_type, zone):
        raise Refusal(
            "Unsupported",
            f"Your requested instance type ({instance_type}) is not supported in your requested Availability Zone "
            f"({zone or region}).",
        )
    if subnet_id and backend.subnet(subnet_id, region).available_ip_address_count < int(form["MinCount"]):
        raise Refusal(
            "InsufficientFreeAddressesInSubnet",
            f"There are not enough free addresses in subnet '{subnet_id}' to satisfy the requested number of instances.",
        )


def _check_devices(form: Mapping[str, str], image: Any) -> None:
    """The size of the root device is the image's; no other device has one."""
    for name, device in form.items():
        found = re.fullmatch(r"(BlockDeviceMapping\.\d+\.)DeviceName", name)
        sized = ("Ebs.VolumeSize", "Ebs.SnapshotId", "NoDevice", "VirtualName")
        if (
            found
            and device != image.root_device_name
            and not any(f"{found[1]}{part}" in form for part in sized)
        ):
            raise Refusal("MissingParameter", "The request must contain the parameter size or snapshotId")
        if found and device == image.root_device_name:
            size = form.get(f"{found[1]}Ebs.VolumeSize", str(image.root_size))
            if int(size) < image.root_size:
                raise Refusal(
                    "InvalidBlockDeviceMapping",
                    f"Volume of size {size}GB is smaller than snapshot 'snap-{image.id.removeprefix('ami-')}', "
                    f"expect size >= {image.root_size}GB",
                )


def _check_network(form: Mapping[str, str], region: str, backend: Backend) -> None:
    subnet_id = form.get("SubnetId")
    subnet = backend.subnet(subnet_id, region) if subnet_id else None
    for name, group_id in form.items():
        if not name.startswith("SecurityGroupId."):
            continue
        group = backend.security_group(group_id, region)
        if group is None:
            raise Refusal("InvalidGroup.NotFound", f"The security group '{group_id}' does not exist")
        network = subnet.vpc_id if subnet else backend.default_network(region)
        if group.vpc_id != network:
            raise Refusal(
                "InvalidParameter",
                f"Security group {group_id} and subnet {subnet_id or 'of the default VPC'} belong to different networks.",
            )
