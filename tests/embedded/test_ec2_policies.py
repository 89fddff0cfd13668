"""Users of the simulated account who may do only what a policy allows, here the shipped one, to instances that are there."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]  # stubs are installed for the asynchronous one only
import pytest
from botocore.exceptions import ClientError

from cml_contracts.instance import CONSENT_TAG, DEPLOYMENT_TAG, WORKER_TAG
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from support.ec2 import SimulatorAdmin
from support.instances import REGION

POLICY = (Path(__file__).parents[2] / "deploy/aws/iam-policy.json").read_text()
USERS = ("north", "south", "stranger")


def policy_of(deployment: str) -> dict[str, Any]:
    """The shipped policy with its blanks filled in."""
    filled = POLICY.replace("DEPLOYMENT", deployment).replace("REGION", REGION).replace("ACCOUNT_ID", "*")
    policy: dict[str, Any] = json.loads(filled)
    return policy


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, Any]]:
    """Two fleets with a policy each, and somebody without one."""
    with Ec2Simulator(transition_seconds=0) as simulator:
        policies = {name: policy_of(name) for name in ("north", "south")}
        SimulatorAdmin(simulator.url).change_account(REGION, policies=policies)
        yield {
            name: boto3.client(
                "ec2",
                region_name=REGION,
                endpoint_url=simulator.url,
                aws_access_key_id=name,
                aws_secret_access_key=name,
            )
            for name in USERS
        }


@pytest.fixture
def instance_id(clients: dict[str, Any]) -> str:
    """Nobody's, and one fleet may import it."""
    launched = clients["stranger"].run_instances(
        ImageId=DEMO_IMAGES[REGION],
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": CONSENT_TAG, "Value": "north"}]}],
    )
    return str(launched["Instances"][0]["InstanceId"])


def adopt(client: Any, instance_id: str, deployment: str) -> None:
    tags = {DEPLOYMENT_TAG: deployment, WORKER_TAG: "w"}
    client.create_tags(
        Resources=[instance_id], Tags=[{"Key": key, "Value": value} for key, value in tags.items()]
    )


CHANGES: list[Callable[[Any, str], object]] = [
    lambda client, instance_id: adopt(client, instance_id, "south"),
    lambda client, instance_id: client.create_tags(
        Resources=[instance_id], Tags=[{"Key": "course", "Value": "a"}]
    ),
    lambda client, instance_id: client.delete_tags(Resources=[instance_id], Tags=[{"Key": DEPLOYMENT_TAG}]),
    lambda client, instance_id: client.stop_instances(InstanceIds=[instance_id]),
    lambda client, instance_id: client.terminate_instances(InstanceIds=[instance_id]),
]


@pytest.mark.parametrize("change", CHANGES, ids=["adopt", "tag", "untag", "stop", "terminate"])
def test_what_another_deployment_has_adopted_is_refused(
    clients: dict[str, Any], instance_id: str, change: Callable[[Any, str], object]
):
    adopt(clients["north"], instance_id, "north")
    with pytest.raises(ClientError, match="UnauthorizedOperation"):
        change(clients["south"], instance_id)
    (reservation,) = clients["south"].describe_instances(InstanceIds=[instance_id])["Reservations"]
    (seen,) = reservation["Instances"]
    assert seen["State"]["Name"] == "running"
    tags = {DEPLOYMENT_TAG: "north", WORKER_TAG: "w", CONSENT_TAG: "north"}
    assert {each["Key"]: each["Value"] for each in seen["Tags"]} == tags


def test_who_has_no_consent_cannot_take_what_is_nobodys(clients: dict[str, Any], instance_id: str):
    for change in CHANGES:
        with pytest.raises(ClientError, match="UnauthorizedOperation"):
            change(clients["south"], instance_id)
    adopt(clients["north"], instance_id, "north")


def test_ones_own_is_changed_and_who_has_no_policy_may_do_everything(
    clients: dict[str, Any], instance_id: str
):
    adopt(clients["north"], instance_id, "north")
    clients["north"].stop_instances(InstanceIds=[instance_id])
    clients["stranger"].terminate_instances(InstanceIds=[instance_id])
