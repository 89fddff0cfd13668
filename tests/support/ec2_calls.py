"""Calls of EC2 by boto3, as AWS's own callers make them, for tests of the EC2 simulator."""

import time
from typing import Any

import boto3  # type: ignore[import-untyped]  # stubs are installed for the asynchronous one only
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from cml_embedded.ec2_simulator import DEMO_IMAGES

REGION = "us-east-1"
NOBODY = "i-00000000000000001"


def client(url: str, region: str = REGION) -> Any:
    return boto3.client(
        "ec2",
        region_name=region,
        endpoint_url=url,
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}),
    )


def run(ec2: Any, **changes: Any) -> Any:
    return run_several(ec2, 1, 1, **changes)[0]


def run_several(ec2: Any, least: int, most: int, **changes: Any) -> Any:
    asked = {"ImageId": DEMO_IMAGES[REGION], "InstanceType": "t3.micro"}
    return ec2.run_instances(MinCount=least, MaxCount=most, **(asked | changes))["Instances"]


def described(ec2: Any, instance_id: str) -> Any:
    return ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]


def until(ec2: Any, instance_id: str, state: str) -> Any:
    end = time.monotonic() + 60
    while (seen := described(ec2, instance_id))["State"]["Name"] != state:
        assert time.monotonic() < end, seen["State"]
        time.sleep(0.05)
    return seen


def refused(code: str) -> Any:
    return pytest.raises(ClientError, match=rf"\({code}\)")
