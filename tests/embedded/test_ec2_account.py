"""What an account may lack, as EC2 shows and refuses it; and dry runs, which do nothing."""

from collections.abc import Iterator
from typing import Any

import boto3  # type: ignore[import-untyped]  # stubs are installed for the asynchronous one only
import pytest

from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from support.ec2 import SimulatorAdmin
from support.ec2_calls import NOBODY, REGION, client, described, refused, run, until

CHANGES = {
    "start_instances": "StartInstances",
    "stop_instances": "StopInstances",
    "terminate_instances": "TerminateInstances",
}


@pytest.fixture(autouse=True)
def account(admin: SimulatorAdmin) -> Iterator[None]:
    """Nothing missing before and after a test."""
    yield
    admin.reset_account()


@pytest.fixture
def subnet(ec2: Any) -> Any:
    return ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": [f"{REGION}a"]}])["Subnets"][
        0
    ]


def other(simulator: Ec2Simulator, service: str) -> Any:
    return boto3.client(
        service,
        region_name=REGION,
        endpoint_url=simulator.url,
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )


@pytest.mark.parametrize("call", CHANGES)
def test_a_dry_run_changes_nothing(ec2: Any, call: str):
    instance_id = run(ec2)["InstanceId"]
    until(ec2, instance_id, "running")
    with refused("DryRunOperation"):
        getattr(ec2, call)(InstanceIds=[instance_id], DryRun=True)
    assert described(ec2, instance_id)["State"]["Name"] == "running"
    with refused("InvalidInstanceID.NotFound"):
        getattr(ec2, call)(InstanceIds=[NOBODY], DryRun=True)


def test_a_dry_run_of_a_launch_launches_nothing_and_shows_what_is_wrong(ec2: Any, admin: SimulatorAdmin):
    before = len(admin.instances())
    with refused("DryRunOperation"):
        run(ec2, DryRun=True)
    with refused("InvalidAMIID.NotFound"):
        run(ec2, DryRun=True, ImageId="ami-00000000000000000")
    assert len(admin.instances()) == before


@pytest.mark.parametrize("dry", [True, False])
def test_what_is_not_allowed_is_refused_before_anything_else(ec2: Any, admin: SimulatorAdmin, dry: bool):
    admin.change_account(REGION, denied=["ec2:RunInstances", "ec2:StopInstances"])
    with refused("UnauthorizedOperation"):
        run(ec2, DryRun=dry)
    with refused("UnauthorizedOperation"):
        ec2.stop_instances(InstanceIds=[NOBODY], DryRun=dry)
    admin.reset_account()
    with refused("InvalidInstanceID.NotFound"):
        ec2.stop_instances(InstanceIds=[NOBODY], DryRun=dry)


def test_a_launch_with_tags_also_needs_the_right_to_tag(ec2: Any, admin: SimulatorAdmin):
    admin.change_account(REGION, denied=["ec2:CreateTags"])
    with refused("UnauthorizedOperation"):
        run(
            ec2,
            DryRun=True,
            TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "k", "Value": "v"}]}],
        )
    with refused("DryRunOperation"):
        run(ec2, DryRun=True)


def test_a_region_that_is_not_enabled_takes_no_credentials(
    ec2: Any, admin: SimulatorAdmin, simulator: Ec2Simulator
):
    admin.change_account("eu-west-1", enabled=False)
    with refused("AuthFailure"):
        client(simulator.url, "eu-west-1").describe_regions()
    shown = {
        each["RegionName"]: each["OptInStatus"] for each in ec2.describe_regions(AllRegions=True)["Regions"]
    }
    assert shown["eu-west-1"] == "not-opted-in"
    assert shown[REGION] == "opt-in-not-required"
    assert "eu-west-1" not in {each["RegionName"] for each in ec2.describe_regions()["Regions"]}


def test_a_type_that_the_zone_does_not_offer_is_unsupported(ec2: Any, admin: SimulatorAdmin, subnet: Any):
    def zones() -> set[str]:
        offers = ec2.describe_instance_type_offerings(
            LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": ["c5.2xlarge"]}]
        )
        return {each["Location"] for each in offers["InstanceTypeOfferings"]}

    there = subnet["AvailabilityZone"]
    before = zones()
    assert there in before
    admin.change_account(REGION, not_offered={"c5.2xlarge": [there]})
    assert zones() == before - {there}
    with refused("Unsupported"):
        run(ec2, InstanceType="c5.2xlarge", SubnetId=subnet["SubnetId"])
    assert run(ec2, InstanceType="c5.2xlarge")["InstanceId"]  # in another zone
    admin.change_account(REGION, not_offered={"c5.2xlarge": [REGION]})
    assert zones() == set()
    with refused("Unsupported"):
        run(ec2, InstanceType="c5.2xlarge")


def test_a_subnet_without_free_addresses_takes_no_instance(ec2: Any, admin: SimulatorAdmin, subnet: Any):
    free = subnet["AvailableIpAddressCount"]
    admin.set_free_addresses(REGION, subnet["SubnetId"], 0)
    (shown,) = ec2.describe_subnets(SubnetIds=[subnet["SubnetId"]])["Subnets"]
    assert shown["AvailableIpAddressCount"] == 0
    with refused("InsufficientFreeAddressesInSubnet"):
        run(ec2, SubnetId=subnet["SubnetId"])
    admin.set_free_addresses(REGION, subnet["SubnetId"], free)
    assert run(ec2, SubnetId=subnet["SubnetId"])["InstanceId"]


def test_groups_and_subnet_are_of_one_network(ec2: Any, subnet: Any):
    network = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    elsewhere = ec2.create_security_group(GroupName="elsewhere", Description="elsewhere", VpcId=network)
    with refused("InvalidParameter"):
        run(ec2, SecurityGroupIds=[elsewhere["GroupId"]], SubnetId=subnet["SubnetId"])
    with refused("InvalidParameter"):
        run(ec2, SecurityGroupIds=[elsewhere["GroupId"]])  # in the default network
    with refused("InvalidGroup.NotFound"):
        run(ec2, SecurityGroupIds=["sg-00000000000000000"], SubnetId=subnet["SubnetId"])


def test_a_key_pair_must_exist(ec2: Any):
    with refused("InvalidKeyPair.NotFound"):
        run(ec2, KeyName="nobody's")
    ec2.create_key_pair(KeyName="ours")
    assert run(ec2, KeyName="ours")["KeyName"] == "ours"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"state": "pending"}, "InvalidAMIID.Unavailable"),
        ({"architecture": "arm64"}, "InvalidParameterValue"),
    ],
)
def test_an_image_must_be_available_and_fit_the_type(
    ec2: Any, admin: SimulatorAdmin, changes: dict[str, str], code: str
):
    image = admin.add_image(REGION, "of another kind")
    admin.change_image(image, **changes)
    with refused(code):
        run(ec2, ImageId=image)


def test_only_the_root_device_of_the_image_has_a_size_of_its_own(ec2: Any):
    device: dict[str, Any] = {"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True}}
    with refused("MissingParameter"):
        run(ec2, BlockDeviceMappings=[device])
    assert (
        run(ec2, BlockDeviceMappings=[device | {"DeviceName": "/dev/sda1"}])["ImageId"] == DEMO_IMAGES[REGION]
    )
    device["Ebs"]["VolumeSize"] = 8
    with refused("InvalidBlockDeviceMapping"):  # smaller than the snapshot of the image
        run(ec2, BlockDeviceMappings=[device | {"DeviceName": "/dev/sda1"}])
    assert run(ec2, BlockDeviceMappings=[device])["InstanceId"]


def test_tags_that_instance_metadata_cannot_show_are_refused_where_it_has_to(ec2: Any, admin: SimulatorAdmin):
    def tags(key: str) -> list[dict[str, Any]]:
        return [{"ResourceType": "instance", "Tags": [{"Key": key, "Value": "lab"}]}]

    instance_id = run(ec2, TagSpecifications=tags("cost center"))["InstanceId"]
    admin.change_account(REGION, metadata_tags="enabled")
    shown = ec2.get_instance_metadata_defaults()["AccountLevel"]["InstanceMetadataTags"]
    assert shown == "enabled"
    for key in ("cost center", "cost/center"):
        with refused("InvalidParameterValue"):
            run(ec2, TagSpecifications=tags(key))
        with refused("InvalidParameterValue"):
            ec2.create_tags(Resources=[instance_id], Tags=[{"Key": key, "Value": "lab"}])
    assert run(ec2, TagSpecifications=tags("cml:deployment"))["InstanceId"]
    own = {"InstanceMetadataTags": "disabled"}
    assert run(ec2, TagSpecifications=tags("cost center"), MetadataOptions=own)["InstanceId"]
    admin.reset_account()
    own = {"InstanceMetadataTags": "enabled"}
    with refused("InvalidParameterValue"):
        run(ec2, TagSpecifications=tags("_index"), MetadataOptions=own)
    instance_id = run(ec2, TagSpecifications=tags("cost"), MetadataOptions=own)["InstanceId"]
    with refused("InvalidParameterValue"):  # as long as the instance shows them, too
        ec2.create_tags(Resources=[instance_id], Tags=[{"Key": "cost center", "Value": "lab"}])


def test_an_instance_profile_must_exist(ec2: Any, admin: SimulatorAdmin):
    arn = "arn:aws:iam::123456789012:instance-profile/fleet/cml-worker"
    for profile in ({"Name": "cml-worker"}, {"Arn": arn}):
        with refused("InvalidParameterValue"):
            run(ec2, IamInstanceProfile=profile)
    admin.change_account(REGION, instance_profiles=["cml-worker"])
    for profile in ({"Name": "cml-worker"}, {"Arn": arn}):
        assert run(ec2, IamInstanceProfile=profile)["InstanceId"]


def test_quotas_and_keys_are_shown_by_their_own_services(simulator: Ec2Simulator, admin: SimulatorAdmin):
    key = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
    admin.change_account(
        REGION, quotas={"L-1216C47A": 8}, ebs_key=key, ebs_encryption=True, keys={key: "Disabled"}
    )
    quotas, kms, ec2 = other(simulator, "service-quotas"), other(simulator, "kms"), client(simulator.url)
    assert quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-1216C47A")["Quota"]["Value"] == 8
    with refused("NoSuchResourceException"):
        quotas.get_service_quota(ServiceCode="ec2", QuotaCode="vCPUs")
    assert ec2.get_ebs_default_kms_key_id()["KmsKeyId"] == key
    assert ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"] is True
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Disabled"
    with refused("NotFoundException"):
        kms.describe_key(KeyId=f"{key[:-1]}6")
    with refused("VcpuLimitExceeded"):
        run(ec2, InstanceType="c5.4xlarge")
    admin.change_account(REGION, denied=["servicequotas:GetServiceQuota", "kms:DescribeKey"])
    with refused("AccessDeniedException"):
        quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-1216C47A")
    with refused("AccessDeniedException"):
        kms.describe_key(KeyId=key)


@pytest.mark.parametrize("states", [(), ("Disabled",)])
def test_an_instance_whose_key_cannot_be_used_does_not_live(
    ec2: Any, admin: SimulatorAdmin, states: tuple[str, ...]
):
    key = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
    device = {"DeviceName": "/dev/sda1", "Ebs": {"Encrypted": True, "KmsKeyId": key}}
    admin.change_account(REGION, keys=dict(zip([key], states, strict=False)))
    instance_id = run(ec2, BlockDeviceMappings=[device])["InstanceId"]
    reason = until(ec2, instance_id, "terminated")["StateReason"]
    assert reason["Code"] == "Client.InvalidKMSKey.InvalidState"
    admin.change_account(REGION, keys={key: "Enabled"})
    until(ec2, run(ec2, BlockDeviceMappings=[device])["InstanceId"], "running")
