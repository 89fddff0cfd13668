"""The EC2 client over HTTP: what it asks, what it understands, and every error of the table as it arrives."""

import asyncio
import base64

import pytest

from cml_contracts.instance import InstanceState, RootVolume
from cml_embedded.ec2_simulator import DEMO_IMAGE_NAME, DEMO_IMAGES, Ec2Simulator
from cml_workers.ec2_adapter.aws import AwsEc2Client
from cml_workers.ec2_adapter.errors import (
    EC2AuthenticationException,
    EC2Exception,
    EC2InstanceNotFoundException,
    EC2InvalidParameterException,
    EC2TagOperationException,
    EC2ThrottledException,
    OutcomeUnknownError,
    Remedy,
)
from ec2_adapter.test_errors import TABLE, UNKNOWN
from support.ec2 import SimulatorAdmin
from support.instances import REGION, described, parameters, until
from support.malformed import MalformedRequests
from support.simulated import admin, ec2, simulator
from support.spans import kept

__all__ = ["admin", "ec2", "simulator"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_launch_asks_for_what_must_be(ec2: AwsEc2Client, admin: SimulatorAdmin):
    asked = parameters()
    await ec2.launch(asked)
    (call,) = admin.calls("RunInstances")
    form = call["parameters"]
    assert form["ClientToken"] == asked.client_token
    assert (form["MinCount"], form["MaxCount"]) == ("1", "1")
    assert form["MetadataOptions.HttpTokens"] == "required"
    assert form["MetadataOptions.HttpPutResponseHopLimit"] == "1"
    assert form["BlockDeviceMapping.1.DeviceName"] == "/dev/sda1"
    assert form["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
    assert form["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == "true"
    assert form["InstanceInitiatedShutdownBehavior"] == "stop"
    tagged = {
        form[f"TagSpecification.{n}.ResourceType"]: form[f"TagSpecification.{n}.Tag.2.Key"] for n in (1, 2)
    }
    assert tagged == {"instance": "cml:worker-id", "volume": "cml:worker-id"}


async def test_what_a_profile_prescribes_is_asked_for(ec2: AwsEc2Client, admin: SimulatorAdmin):
    key = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-4333-8444-555555555555"
    admin.change_account(REGION, instance_profiles=["cml-worker"], keys={key: "Enabled"})
    asked = parameters(
        instance_type="m8i.4xlarge",
        root_volume=RootVolume(size_gib=64, volume_type="gp3", kms_key_id=key),
        instance_profile="cml-worker",
        user_data="#cloud-config\nhostname: Zürich\n",
        nested_virtualization=True,
        metadata_tags=True,
    )
    first = await ec2.launch(asked)
    assert (await ec2.launch(asked)).instance_id == first.instance_id  # the very same request
    form = admin.calls("RunInstances")[0]["parameters"]
    assert form["BlockDeviceMapping.1.Ebs.VolumeSize"] == "64"
    assert form["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp3"
    assert form["BlockDeviceMapping.1.Ebs.KmsKeyId"] == key
    assert form["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
    assert form["IamInstanceProfile.Name"] == "cml-worker"
    assert base64.b64decode(form["UserData"]).decode() == asked.user_data
    assert form["CpuOptions.NestedVirtualization"] == "enabled"
    assert form["MetadataOptions.InstanceMetadataTags"] == "enabled"
    assert form["MetadataOptions.HttpTokens"] == "required"
    await ec2.launch(
        parameters(
            instance_profile="arn:aws:iam::123456789012:instance-profile/cml-worker", metadata_tags=False
        )
    )
    form = admin.calls("RunInstances")[-1]["parameters"]
    assert form["IamInstanceProfile.Arn"].endswith("/cml-worker")
    assert form["MetadataOptions.InstanceMetadataTags"] == "disabled"


async def test_what_no_profile_prescribes_is_left_to_image_and_account(
    ec2: AwsEc2Client, admin: SimulatorAdmin
):
    """A launch that an earlier version requested is asked for again as it was."""
    await ec2.launch(parameters())
    (call,) = admin.calls("RunInstances")
    unasked = ("VolumeSize", "VolumeType", "KmsKeyId", "IamInstanceProfile", "UserData", "CpuOptions", "Tags")
    assert [
        name
        for name in call["parameters"]
        if any(part in name.split(".") for part in (*unasked, "InstanceMetadataTags"))
    ] == []


async def test_what_a_type_or_an_image_cannot_have_is_refused(ec2: AwsEc2Client, admin: SimulatorAdmin):
    for changes in (
        {"instance_type": "m5zn.metal", "nested_virtualization": True},
        {"instance_type": "m5.large", "nested_virtualization": True},
        {"root_volume": RootVolume(size_gib=8)},
        {"instance_profile": "nobody"},
    ):
        with pytest.raises(EC2InvalidParameterException):
            await ec2.launch(parameters(**changes))


async def test_security_groups_subnet_and_key_are_passed_on(ec2: AwsEc2Client, admin: SimulatorAdmin):
    for changes in (
        {"security_group_ids": ("sg-00000000000000000",)},
        {"subnet_id": "subnet-00000000000000000"},
    ):
        with pytest.raises(EC2InvalidParameterException):
            await ec2.launch(parameters(**changes))
    admin.fault("RunInstances", "InvalidKeyPair.NotFound")
    with pytest.raises(EC2InvalidParameterException):
        await ec2.launch(parameters(key_name="nobody"))
    assert admin.calls("RunInstances")[-1]["parameters"]["KeyName"] == "nobody"


async def test_one_token_launches_one_instance_though_no_answer_comes(
    ec2: AwsEc2Client, admin: SimulatorAdmin
):
    asked = parameters()
    admin.fault("RunInstances", status=500, effect="after", times=3)
    for _ in range(3):
        with pytest.raises(OutcomeUnknownError):
            await ec2.launch(asked)
    launched = await ec2.launch(asked)
    found = await ec2.list_instances(REGION, {"client-token": [asked.client_token]})
    assert [each.instance_id for each in found] == [launched.instance_id]


async def test_a_hidden_instance_is_not_there_and_then_is(ec2: AwsEc2Client, admin: SimulatorAdmin):
    admin.fault("RunInstances", effect="delay", hide_seconds=3)
    asked = parameters()
    launched = await ec2.launch(asked)
    assert await described(ec2, launched.instance_id) is None
    assert await ec2.list_instances(REGION, {"client-token": [asked.client_token]}) == []
    with pytest.raises(EC2InstanceNotFoundException):
        await ec2.switch("StopInstances", REGION, launched.instance_id)
    await until(ec2, launched, InstanceState.RUNNING)


async def test_images_are_found_by_name(ec2: AwsEc2Client, admin: SimulatorAdmin):
    assert await ec2.find_image(REGION, DEMO_IMAGE_NAME) == DEMO_IMAGES[REGION]
    assert await ec2.find_image(REGION, "no such image") is None
    assert await ec2.find_image("ap-south-1", DEMO_IMAGE_NAME) is None
    added = admin.add_image("ap-south-1", "other")
    assert await ec2.find_image("ap-south-1", "other") == added


async def test_names_of_images_are_literal(ec2: AwsEc2Client, admin: SimulatorAdmin):
    """A name that is a pattern would launch anything."""
    for pattern in ("*", "?" * len(DEMO_IMAGE_NAME), f"{DEMO_IMAGE_NAME[:-1]}*", "[a-z]*", "\\*"):
        assert await ec2.find_image(REGION, pattern) is None
    added = admin.add_image("ap-south-1", "lab*")
    admin.add_image("ap-south-1", "laboratory")
    assert await ec2.find_image("ap-south-1", "lab*") == added
    (call,) = admin.calls("DescribeImages")[-1:]
    assert call["parameters"]["Filter.1.Value.1"] == "lab\\*"
    assert call["parameters"]["Owner.1"] == "self"


async def test_of_several_images_of_one_name_none_is_taken_unless_the_newest_is_asked_for(
    ec2: AwsEc2Client, admin: SimulatorAdmin, simulator: Ec2Simulator
):
    """One of them may be an old one, or somebody else's."""
    both = [admin.add_image("eu-central-1", "twice") for _ in range(2)]
    with pytest.raises(EC2InvalidParameterException) as raised:
        await ec2.find_image("eu-central-1", "twice")
    assert all(image in str(raised.value) for image in both)
    assert "CML_NEWEST_IMAGE=true" in str(raised.value)
    async with AwsEc2Client(endpoint_url=simulator.url, newest_image=True) as newest:
        assert await newest.find_image("eu-central-1", "twice") in both


async def test_images_of_other_owners_are_not_found(simulator: Ec2Simulator):
    async with AwsEc2Client(endpoint_url=simulator.url, image_owners=["111122223333"]) as other:
        assert await other.find_image(REGION, DEMO_IMAGE_NAME) is None
        assert await other.find_image(REGION, DEMO_IMAGE_NAME, "self") == DEMO_IMAGES[REGION]


async def test_bad_ids_images_types_and_tags_are_refused(ec2: AwsEc2Client, malformed: MalformedRequests):
    with pytest.raises(EC2InvalidParameterException):
        await ec2.switch("StartInstances", REGION, "i-nonsense")
    with pytest.raises(EC2InstanceNotFoundException):
        await ec2.switch("StartInstances", REGION, "i-00000000000000001")
    with pytest.raises(EC2InvalidParameterException):
        await ec2.launch(parameters(ami_id="ami-00000000000000000"))
    with pytest.raises(EC2InvalidParameterException):
        await ec2.launch(parameters(instance_type="m99.huge"))
    launched = await ec2.launch(parameters())
    for tags in ({"aws:x": "1"}, {"k" * 129: "1"}, {"k": "v" * 257}, {f"k{n}": "" for n in range(51)}):
        with pytest.raises(EC2TagOperationException):
            await ec2.add_tags(REGION, launched.instance_id, tags)
    assert malformed.taken()  # callers' tags are checked before


async def call(ec2: AwsEc2Client, operation: str) -> None:
    """Any call of that operation."""
    match operation:
        case "RunInstances":
            await ec2.launch(parameters())
        case "StartInstances":
            await ec2.switch("StartInstances", REGION, "i-00000000000000001")
        case "StopInstances":
            await ec2.switch("StopInstances", REGION, "i-00000000000000001")
        case "TerminateInstances":
            await ec2.terminate(REGION, "i-00000000000000001")
        case "CreateTags":
            await ec2.add_tags(REGION, "i-00000000000000001", {"a": "1"})
        case "DescribeInstances":
            await ec2.describe_many(REGION, ["i-00000000000000001"])
        case "DescribeInstanceStatus":
            await ec2.status_checks(REGION, ["i-00000000000000001"])
        case "DescribeImages":
            await ec2.find_image(REGION, "x")
        case _:
            raise AssertionError(operation)


OPERATIONS = [
    "RunInstances",
    "StartInstances",
    "StopInstances",
    "TerminateInstances",
    "CreateTags",
    "DescribeInstances",
    "DescribeInstanceStatus",
    "DescribeImages",
]


@pytest.mark.parametrize(("aws_code", "code", "remedy", "retryable"), TABLE)
async def test_every_code_of_the_table_arrives_as_its_exception(
    ec2: AwsEc2Client, admin: SimulatorAdmin, aws_code: str, code: str, remedy: str, retryable: str
):
    admin.fault("RunInstances", aws_code)
    with pytest.raises(EC2Exception) as refused:
        await call(ec2, "RunInstances")
    assert refused.value.problem.code.value == code
    assert refused.value.remedy is Remedy[remedy]
    assert refused.value.aws_code == aws_code
    assert refused.value.problem.retryable is (retryable == "yes")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("aws_code", UNKNOWN[:2])
async def test_a_5xx_of_any_operation_is_an_unknown_outcome(
    ec2: AwsEc2Client, admin: SimulatorAdmin, operation: str, aws_code: str
):
    admin.fault(operation, aws_code, status=500)
    with pytest.raises(OutcomeUnknownError):
        await call(ec2, operation)


@pytest.mark.parametrize(
    ("aws_code", "shown"),
    [
        ("RequestLimitExceeded", "RequestLimitExceeded"),
        ("ThrottlingException", "ThrottlingException"),
        ("Nobody.HasHeardOf_It", "Nobody.HasHeardOf_It"),
        ("key AKIAIOSFODNN7EXAMPLE", "other"),
        ("x" * 101, "other"),
    ],
)
async def test_a_span_has_the_code_as_it_came_if_it_has_the_form_of_one(
    ec2: AwsEc2Client, admin: SimulatorAdmin, aws_code: str, shown: str
):
    admin.fault("StopInstances", aws_code)
    with kept() as spans, pytest.raises(EC2Exception):
        await call(ec2, "StopInstances")
    (span,) = spans.named("EC2 StopInstances")
    assert (span.attributes or {})["aws.error_code"] == shown


async def test_a_span_of_a_call_without_an_answer_has_no_code_of_aws(
    ec2: AwsEc2Client, admin: SimulatorAdmin
):
    admin.fault("StopInstances", close_connection=True)
    with kept() as spans, pytest.raises(OutcomeUnknownError):
        await call(ec2, "StopInstances")
    (span,) = spans.named("EC2 StopInstances")
    assert (span.attributes or {})["aws.error_code"] == "no_answer"


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_dropped_connection_is_an_unknown_outcome(
    ec2: AwsEc2Client, admin: SimulatorAdmin, operation: str
):
    admin.fault(operation, close_connection=True)
    with pytest.raises(OutcomeUnknownError):
        await call(ec2, operation)


@pytest.mark.parametrize("operation", ["RunInstances", "DescribeInstances"])
async def test_a_time_out_is_an_unknown_outcome(ec2: AwsEc2Client, admin: SimulatorAdmin, operation: str):
    admin.fault(operation, effect="delay", delay_seconds=6)
    with pytest.raises(OutcomeUnknownError):
        await call(ec2, operation)


async def test_nobody_at_the_endpoint_is_an_unknown_outcome(ec2: AwsEc2Client):
    async with AwsEc2Client(endpoint_url="http://127.0.0.1:9") as nowhere:
        with pytest.raises(OutcomeUnknownError):
            await call(nowhere, "RunInstances")


async def test_a_region_that_aws_does_not_have_is_no_outage():
    async with AwsEc2Client() as aws:
        with pytest.raises(EC2InvalidParameterException) as refused:
            await aws.launch(parameters(aws_region="us-nowhere-1"))
    assert refused.value.remedy is Remedy.FAIL


async def test_no_credentials_are_an_authentication_problem(
    simulator: Ec2Simulator, monkeypatch: pytest.MonkeyPatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    async with AwsEc2Client(endpoint_url=simulator.url) as nobody:
        with pytest.raises(EC2AuthenticationException) as refused:
            await call(nobody, "RunInstances")
        assert refused.value.remedy is Remedy.REFRESH
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "simulator")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "simulator")
        await nobody.refresh(REGION)
        await call(nobody, "RunInstances")


async def test_status_checks_are_asked_by_id_and_one_unknown_id_does_not_hide_the_others(
    ec2: AwsEc2Client, admin: SimulatorAdmin
):
    """EC2 has no filter for them by id, and refuses the whole call for one that it does not know."""
    launched = [(await ec2.launch(parameters())).instance_id for _ in range(2)]
    admin.forget_calls()
    assert set(await ec2.status_checks(REGION, launched)) == set(launched)
    (call,) = admin.calls("DescribeInstanceStatus")
    assert {name: call["parameters"][name] for name in call["parameters"].keys() - {"Action", "Version"}} == {
        "InstanceId.1": launched[0],
        "InstanceId.2": launched[1],
        "IncludeAllInstances": "true",
    }
    wanted = [launched[0], "i-00000000000000001", launched[1]]
    assert set(await ec2.status_checks(REGION, wanted)) == set(launched)


async def test_credentials_that_are_read_again_disturb_no_other_call(
    ec2: AwsEc2Client, admin: SimulatorAdmin
):
    """Neither those under way in the region, nor another region's client."""
    admin.fault("DescribeInstances", effect="delay", delay_seconds=0.5)
    await ec2.describe_many("us-west-2", ["i-00000000000000001"])
    elsewhere = ec2.connections._regions["us-west-2"].client
    under_way = asyncio.create_task(ec2.describe_many(REGION, ["i-00000000000000001"]))
    while not admin.calls("DescribeInstances"):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    await ec2.refresh(REGION)
    assert await under_way == {}
    assert await ec2.describe_many(REGION, ["i-00000000000000001"]) == {}
    assert ec2.connections._regions["us-west-2"].client is elsewhere


async def test_a_call_is_one_attempt_so_that_no_answer_hides_another(
    ec2: AwsEc2Client, admin: SimulatorAdmin
):
    admin.fault("RunInstances", effect="after", close_connection=True, times=1)
    admin.fault("RunInstances", "UnauthorizedOperation", status=403, times=1)
    with pytest.raises(OutcomeUnknownError):
        await ec2.launch(parameters())
    admin.clear()
    for code, status in (("RequestLimitExceeded", 503), ("InternalError", 500)):
        admin.forget_calls()
        admin.fault("RunInstances", code, status=status, times=1)
        with pytest.raises((EC2ThrottledException, OutcomeUnknownError)):
            await ec2.launch(parameters())
        assert len(admin.calls("RunInstances")) == 1
