"""Moto, on which the simulator is built: its HTTP application and its objects."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from io import BytesIO
from typing import Any
from urllib.parse import urlencode

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.ec2.models import instances as moto_instances
from moto.ec2.models.amis import Ami
from moto.ec2.models.availability_zones_and_regions import RegionsAndZonesBackend
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from moto.moto_api._internal import mock_random
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

from cml_embedded.ec2 import filters
from cml_embedded.ec2.answers import Answer, Refusal

Environ = dict[str, Any]
"""A WSGI request."""

ROOT_SIZE = 32
"""GiB of the snapshot of an image's root volume, unless it is changed."""

filters.correct()


class Backend:
    """One account. ``images``: id to region and name."""

    def __init__(self, images: Mapping[str, tuple[str, str]]) -> None:
        self._images = dict(images)
        self._application = DomainDispatcherApplication(create_backend_app)
        self._regions: set[str] = set()

    def ask(self, environ: Environ, form: Mapping[str, str]) -> Answer:
        """Moto's answer to this form instead of the request's own."""
        body = urlencode(form).encode()
        statuses: list[int] = []
        inner = {
            **environ,
            "PATH_INFO": "/",
            "QUERY_STRING": "",
            "wsgi.input": BytesIO(body),
            "CONTENT_LENGTH": str(len(body)),
        }

        def started(status: str, _headers: Any, _info: Any = None) -> None:
            statuses.append(int(status.split(" ", 1)[0]))

        content = b"".join(self._application(inner, started))
        return statuses[0], content.replace(
            b"<Code>AccessDenied</Code>", b"<Code>UnauthorizedOperation</Code>"
        )

    def launch(self, environ: Environ, form: Mapping[str, str], count: int = 1) -> Answer:
        """RunInstances of so many. EC2 takes a volume's size from the image; moto has to get it, and has no instance profiles here."""
        sizes = {}
        for name in form:
            found = re.fullmatch(r"(BlockDeviceMapping\.\d+\.Ebs\.)\w+", name)
            if found and f"{found.group(1)}VolumeSize" not in form:
                sizes[f"{found.group(1)}VolumeSize"] = str(ROOT_SIZE)
        known = {name: value for name, value in form.items() if not name.startswith("IamInstanceProfile.")}
        return self.ask(environ, {**known, **sizes, "MinCount": str(count), "MaxCount": str(count)})

    def launch_again(self, instance_id: str, region: str, form: Mapping[str, str]) -> Any:
        """Launch it once more under its own id, after a restart."""
        module: Any = moto_instances
        random_id = module.random_instance_id
        module.random_instance_id = lambda: instance_id
        try:
            environ = {
                "REQUEST_METHOD": "POST",
                "PATH_INFO": "/",
                "SERVER_NAME": "localhost",
                "SERVER_PORT": "80",
                "wsgi.url_scheme": "http",
                "CONTENT_TYPE": "application/x-www-form-urlencoded",
                "HTTP_HOST": f"ec2.{region}.amazonaws.com",
                "HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=simulator/20260101/"
                f"{region}/ec2/aws4_request, SignedHeaders=host, Signature=0",
            }
            status, content = self.launch(environ, form)
        finally:
            module.random_instance_id = random_id
        if status != 200:
            raise RuntimeError(f"{instance_id} could not be restored: {content.decode()[:400]}")
        return self.instance(instance_id, region)

    def instance(self, instance_id: str, region: str) -> Any:
        """Moto's own object."""
        return ec2_backends[DEFAULT_ACCOUNT_ID][region].get_instance(instance_id)

    def prepare(self, region: str) -> None:
        """Empty the region and register its images at its first use.

        Its default network gets the same ids each time: instances that are restored keep their subnets.
        """
        if region in self._regions:
            return
        self._regions.add(region)
        mock_random.seed(region)
        ec2_backends[DEFAULT_ACCOUNT_ID][region].reset()
        mock_random.seed()
        for image_id, (where, name) in self._images.items():
            if where == region:
                self._register(region, image_id, name)

    def image(self, image_id: str, region: str) -> Any | None:
        """Moto's own object; None: there is none."""
        return ec2_backends[DEFAULT_ACCOUNT_ID][region].amis.get(image_id)

    def change_image(self, image_id: str, changes: Mapping[str, str | int]) -> None:
        """Its ``state``, ``architecture``, ``owner_id``, ``root_device_name``, ``root_size`` in GiB. Raises KeyError: there is none."""
        region, _ = self._images[image_id]
        self.prepare(region)
        for name, value in changes.items():
            setattr(ec2_backends[DEFAULT_ACCOUNT_ID][region].amis[image_id], name, value)

    def subnet(self, subnet_id: str, region: str) -> Any:
        """Likewise. Raises the refusal of EC2."""
        for of_zone in ec2_backends[DEFAULT_ACCOUNT_ID][region].subnets.values():
            if subnet_id in of_zone:
                return of_zone[subnet_id]
        raise Refusal("InvalidSubnetID.NotFound", f"The subnet ID '{subnet_id}' does not exist")

    def set_free_addresses(self, subnet_id: str, region: str, free: int) -> None:
        """As if others had taken, or given back, the rest. Raises Refusal: there is no such subnet."""
        self.prepare(region)
        subnet = self.subnet(subnet_id, region)
        subnet._available_ip_addresses += free - subnet.available_ip_address_count  # noqa: SLF001 - what moto lacks

    def security_group(self, group_id: str, region: str) -> Any | None:
        """Likewise."""
        return ec2_backends[DEFAULT_ACCOUNT_ID][region].get_security_group_from_id(group_id)

    def default_network(self, region: str) -> str:
        """The id of the region's default VPC."""
        network: Any = ec2_backends[DEFAULT_ACCOUNT_ID][region].get_default_vpc()
        return str(network.id)

    def has_key_pair(self, name: str, region: str) -> bool:
        return name in ec2_backends[DEFAULT_ACCOUNT_ID][region].key_pairs

    def regions(self) -> dict[str, str]:
        """Those that moto knows, and their endpoints."""
        return {each.name: each.endpoint for each in RegionsAndZonesBackend.regions}

    def zones(self, region: str) -> list[str]:
        return [each.name for each in RegionsAndZonesBackend.zones.get(region, [])]

    def is_offered(self, region: str, instance_type: str, zone: str) -> bool:
        """As moto has captured it from AWS; where it has captured nothing, everything."""
        offers = INSTANCE_TYPE_OFFERINGS["availability-zone"].get(region)
        return offers is None or {"InstanceType": instance_type, "Location": zone} in [
            {key: each[key] for key in ("InstanceType", "Location")} for each in offers
        ]

    def add_image(self, image_id: str, region: str, name: str) -> None:
        self._images[image_id] = (region, name)
        self.prepare(region)
        self._register(region, image_id, name)

    def _register(self, region: str, image_id: str, name: str) -> None:
        backend = ec2_backends[DEFAULT_ACCOUNT_ID][region]
        image: Any = Ami(
            backend,
            image_id,
            name=name,
            description=name,
            virtualization_type="hvm",
            architecture="x86_64",
            hypervisor="xen",
            root_device_type="ebs",
            root_device_name="/dev/sda1",
            creation_date=datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None),
            region_name=region,
        )
        image.root_size = ROOT_SIZE
        backend.amis[image_id] = image


def tags_of(instance: Any) -> dict[str, str]:
    """The tags of one of moto's objects."""
    return {tag["key"]: tag["value"] for tag in instance.get_tags()}


def architectures(instance_type: str) -> list[str] | None:
    """None: there is no such type."""
    found = INSTANCE_TYPES.get(instance_type)
    return None if found is None else list(found["ProcessorInfo"]["SupportedArchitectures"])


def has_nested_virtualization(instance_type: str) -> bool:
    """As DescribeInstanceTypes shows it (``ProcessorInfo.SupportedFeatures``)."""
    found = INSTANCE_TYPES.get(instance_type, {})
    return "nested-virtualization" in found.get("ProcessorInfo", {}).get("SupportedFeatures", [])


def vcpus(instance_type: str) -> int | None:
    """None: there is no such type."""
    found = INSTANCE_TYPES.get(instance_type)
    return None if found is None else int(found["VCpuInfo"]["DefaultVCpus"])
