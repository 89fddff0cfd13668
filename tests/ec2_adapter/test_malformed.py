"""What only EC2 would refuse: a request of the adapter that the service does not take is refused here, and fails the test."""

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3  # type: ignore[import-untyped]  # stubs are installed for the asynchronous one only
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from cml_contracts.instance import Ec2Instance
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from cml_workers.ec2_adapter.aws import AwsEc2Client
from cml_workers.ec2_adapter.errors import EC2InvalidParameterException
from support.ec2 import SimulatorAdmin
from support.ec2_calls import REGION
from support.instances import parameters
from support.malformed import OURS, MalformedRequests
from support.simulated import admin, ec2, simulator

__all__ = ["admin", "ec2", "simulator"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

LAUNCH = {"ImageId": DEMO_IMAGES[REGION], "MinCount": 1, "MaxCount": 1}
LONG = [{"ResourceType": "instance", "Tags": [{"Key": "course", "Value": "v" * 257}]}]
SOME = [f"i-{number:017x}" for number in range(101)]


@pytest.fixture(scope="module")
def careless(simulator: Ec2Simulator) -> Iterator[Any]:
    """A client that sends whatever it is given, as one of ours."""
    client = boto3.client(
        "ec2",
        region_name=REGION,
        endpoint_url=simulator.url,
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(user_agent_extra=OURS, parameter_validation=False, retries={"total_max_attempts": 1}),
    )
    yield client
    client.close()


@pytest.mark.parametrize(
    ("call", "request_", "code"),
    [
        (
            "describe_instance_status",
            {"Filters": [{"Name": "instance-id", "Values": SOME[:1]}]},
            "InvalidParameterValue",
        ),
        ("describe_instance_status", {"InstanceIds": SOME}, "InvalidParameterValue"),
        ("describe_instances", {"MaxResults": 4}, "InvalidParameterValue"),
        (
            "describe_instances",
            {"MaxResults": 5, "InstanceIds": SOME[:1]},
            "InvalidParameterCombination",
        ),
        ("run_instances", {**LAUNCH, "TagSpecifications": LONG}, "InvalidParameterValue"),
        ("run_instances", {**LAUNCH, "MetadataOptions": {"HttpTokens": "maybe"}}, "InvalidParameterValue"),
        ("run_instances", {"ImageId": LAUNCH["ImageId"], "MaxCount": 1}, "MissingParameter"),
        ("terminate_instances", {}, "MissingParameter"),
    ],
    ids=[
        "unknown filter",
        "too many ids",
        "MaxResults 4",
        "MaxResults with ids",
        "tag too long at launch",
        "wrong enumeration",
        "missing parameter",
        "no ids at all",
    ],
)
async def test_a_planted_bad_request_is_refused_as_by_ec2_and_would_fail_its_test(
    careless: Any,
    admin: SimulatorAdmin,
    malformed: MalformedRequests,
    call: str,
    request_: dict[str, Any],
    code: str,
):
    with pytest.raises(ClientError) as refused:
        getattr(careless, call)(**request_)
    assert refused.value.response["Error"]["Code"] == code
    [line] = malformed.taken()
    assert code in line
    assert admin.malformed()[-1]["code"] == code
    assert [each["malformed"] for each in admin.calls()] == [True]


async def test_a_status_check_by_a_filter_that_ec2_has_not_would_fail_its_test(
    ec2: AwsEc2Client, malformed: MalformedRequests, monkeypatch: pytest.MonkeyPatch
):
    """What the adapter once did, and no test could see."""

    async def by_filter(self: AwsEc2Client, region: str, instance_ids: list[str]) -> None:
        async with self._calling("DescribeInstanceStatus", region, "some") as client:
            await client.describe_instance_status(
                Filters=[{"Name": "instance-id", "Values": instance_ids}], IncludeAllInstances=True
            )

    monkeypatch.setattr(AwsEc2Client, "status_checks", by_filter)
    with pytest.raises(EC2InvalidParameterException, match="instance-id"):
        await ec2.status_checks(REGION, SOME[:1])
    assert len(malformed.taken()) == 1


async def test_a_bad_request_is_seen_though_a_fault_answers_in_its_place(
    careless: Any, admin: SimulatorAdmin, malformed: MalformedRequests
):
    admin.fault("DescribeInstances", "RequestLimitExceeded", status=503)
    with pytest.raises(ClientError, match="RequestLimitExceeded"):
        careless.describe_instances(MaxResults=4)
    assert len(malformed.taken()) == 1


async def test_what_is_refused_for_the_state_of_an_instance_is_no_bad_request(
    ec2: AwsEc2Client, careless: Any, malformed: MalformedRequests
):
    launched: Ec2Instance = await ec2.launch(parameters())
    careless.terminate_instances(InstanceIds=[launched.instance_id])
    with pytest.raises(ClientError, match="IncorrectInstanceState"):
        careless.start_instances(InstanceIds=[launched.instance_id])
    with pytest.raises(ClientError, match="NotFound"):
        careless.start_instances(InstanceIds=SOME[:1])
    assert malformed.taken() == []


async def test_the_tests_own_clients_may_send_what_they_like(
    simulator: Ec2Simulator, malformed: MalformedRequests
):
    stranger = boto3.client(
        "ec2",
        region_name=REGION,
        endpoint_url=simulator.url,
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    with pytest.raises(ClientError, match="InvalidParameterValue"):
        stranger.describe_instances(MaxResults=4)
    stranger.close()
    assert malformed.taken() == []


@pytest.mark.parametrize("body", ["", "Action=TerminateInstances&InstanceId.1=i-0"])
async def test_a_request_that_is_cut_off_before_its_end_is_none(
    admin: SimulatorAdmin, malformed: MalformedRequests, body: str
):
    url = urlsplit(admin.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    headers = f"POST / HTTP/1.1\r\nHost: ec2\r\nUser-Agent: {OURS}\r\nContent-Length: 99\r\n\r\n"
    writer.write((headers + body).encode())
    writer.write_eof()
    await reader.read()
    writer.close()
    await writer.wait_closed()
    assert admin.calls() == []
    assert malformed.taken() == []
