"""A fleet over three regions and two profiles from one file: the example of ``deploy/profiles``, with ids that exist."""

import asyncio
import base64
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cml_contracts.client import WorkerClient
from cml_contracts.commands import CreateCMLWorker
from cml_embedded.ec2_simulator import DEMO_IMAGE_NAME, DEMO_IMAGES, Ec2Simulator
from support.ec2 import SimulatorAdmin
from support.ec2_calls import client
from support.running import RunningSystem

DEPLOYED = Path(__file__).parents[2] / "deploy/profiles"
EXAMPLE = tomllib.loads((DEPLOYED / "profiles.toml").read_text())["profiles"]
PLACES = [(profile, region) for profile, table in EXAMPLE.items() for region in table["regions"]]


@dataclass
class Fleet:
    running: RunningSystem
    amqp: str
    ec2: str
    subnets: dict[str, list[str]]
    """By region, in the order of the file."""

    @property
    def admin(self) -> SimulatorAdmin:
        return SimulatorAdmin(self.ec2)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The example's account in the simulator, and a system with the example's file, of which only the ids are others."""
    folder = tmp_path_factory.mktemp("fleet")
    text = (DEPLOYED / "profiles.toml").read_text()
    subnets: dict[str, list[str]] = {}
    with Ec2Simulator(transition_seconds=0.2) as simulator:
        for region, table in EXAMPLE["default"]["regions"].items():
            ec2 = client(simulator.url, region)
            there = sorted(ec2.describe_subnets()["Subnets"], key=lambda each: each["AvailabilityZone"])
            subnets[region] = [each["SubnetId"] for each in there[: len(table["subnets"])]]
            (group,) = table["security_groups"]
            made = ec2.create_security_group(GroupName="cml", Description="cml", VpcId=there[0]["VpcId"])
            ec2.create_key_pair(KeyName=EXAMPLE["default"]["key"])
            SimulatorAdmin(simulator.url).change_account(
                region,
                instance_profiles=[EXAMPLE["default"]["instance_profile"]],
                keys={table["root_volume"]["kms_key"]: "Enabled"},
            )
            for example, real in [
                *zip(table["subnets"], subnets[region], strict=True),
                (group, made["GroupId"]),
            ]:
                assert example in text
                text = text.replace(example, real)
        (folder / "profiles.toml").write_text(text)
        (folder / "worker.cloud-init.yaml").write_bytes((DEPLOYED / "worker.cloud-init.yaml").read_bytes())
        running = RunningSystem(
            folder / "data",
            AWS_ENDPOINT_URL=simulator.url,
            AWS_ACCESS_KEY_ID="simulator",
            AWS_SECRET_ACCESS_KEY="simulator",
            CML_PROFILES_FILE=str(folder / "profiles.toml"),
        )
        endpoints = running.start()
        yield Fleet(running, endpoints["amqp"], endpoints["ec2"], subnets)
        running.kill()


def create(profile: str | None, region: str, **changes: Any) -> CreateCMLWorker:
    return CreateCMLWorker(name="lab", aws_region=region, created_by="ann", profile=profile, **changes)


@pytest.mark.parametrize(("profile", "region"), PLACES)
async def test_every_profile_launches_in_every_region_that_it_has(fleet: Fleet, profile: str, region: str):
    table = EXAMPLE[profile]
    async with WorkerClient(fleet.amqp) as callers:
        command = create(profile if profile != "default" else None, region)
        result = await callers.send(command, deadline=60)
        assert result.outcome == "succeeded", result.problem
        assert result.worker_id is not None
        async with asyncio.timeout(60):
            while (view := await callers.worker(result.worker_id)) is None or view.instance is None:
                await asyncio.sleep(0.05)
    assert view.profile == profile
    instance_id = view.instance.aws_instance_id
    ec2 = client(fleet.ec2, region)
    (instance,) = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"]
    assert instance["ImageId"] == DEMO_IMAGES[region]
    assert table["image"]["name"] == DEMO_IMAGE_NAME
    assert instance["InstanceType"] == table["instance_types"][0]
    assert instance["SubnetId"] == fleet.subnets[region][0]
    assert instance["KeyName"] == table["key"]
    assert table["tags"].items() <= {tag["Key"]: tag["Value"] for tag in instance["Tags"]}.items()
    (volume,) = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [instance_id]}])[
        "Volumes"
    ]
    assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (64, "gp3", True)
    assert volume["KmsKeyId"] == table["regions"][region]["root_volume"]["kms_key"]
    (form,) = (each["form"] for each in fleet.admin.instances() if each["instance_id"] == instance_id)
    assert form["CpuOptions.NestedVirtualization"] == "enabled"
    assert form["MetadataOptions.InstanceMetadataTags"] == "enabled"
    assert form["IamInstanceProfile.Name"] == table["instance_profile"]
    assert base64.b64decode(form["UserData"]) == (DEPLOYED / table["user_data_file"]).read_bytes()


async def test_a_type_of_metal_is_launched_without_the_option(fleet: Fleet):
    async with WorkerClient(fleet.amqp) as callers:
        result = await callers.send(create("default", "us-west-2", instance_type="m5zn.metal"), deadline=60)
    assert result.outcome == "succeeded", result.problem
    (form,) = (
        each["form"]
        for each in fleet.admin.instances()
        if each["tags"].get("cml:worker-id") == str(result.worker_id)
    )
    assert form["InstanceType"] == "m5zn.metal"
    assert "CpuOptions.NestedVirtualization" not in form


async def test_where_a_zone_has_no_room_the_next_place_is_taken_and_nothing_is_launched_twice(fleet: Fleet):
    """There is no capacity in the first zone, and the others do not offer the type; the next type is there."""
    region, table = "us-east-1", EXAMPLE["default"]
    first, second, *_ = table["instance_types"]
    fleet.admin.change_account(region, not_offered={first: [f"{region}{zone}" for zone in "bc"]})
    fleet.admin.fault("RunInstances", "InsufficientInstanceCapacity", status=500, times=1)
    fleet.admin.forget_calls()
    async with WorkerClient(fleet.amqp) as callers:
        result = await callers.send(create(None, region), deadline=60)
    fleet.admin.change_account(region, not_offered={})
    calls = fleet.admin.calls("RunInstances")
    assert result.outcome == "succeeded", result.problem
    assert (result.data or {})["instance_type"] == second
    launched = [
        each for each in fleet.admin.instances() if each["tags"].get("cml:worker-id") == str(result.worker_id)
    ]
    assert len(launched) == 1
    assert len({each["parameters"]["ClientToken"] for each in calls}) == len(calls)
    places = [(each["parameters"]["InstanceType"], each["parameters"]["SubnetId"]) for each in calls]
    assert places == [
        *((first, subnet) for subnet in fleet.subnets[region]),
        (second, fleet.subnets[region][0]),
    ]
    assert fleet.running.cli("history", str(result.worker_id)).stdout.count("operation_refused") == 3


async def test_what_no_place_has_room_for_has_failed_and_may_be_tried_later(fleet: Fleet):
    fleet.admin.fault("RunInstances", "InsufficientInstanceCapacity", status=500, times=None)
    async with WorkerClient(fleet.amqp) as callers:
        result = await callers.send(create("course", "eu-west-1"), deadline=60)
    fleet.admin.clear()
    assert (result.outcome, result.problem.code, result.problem.retryable) == ("failed", "EC2Capacity", True)
    assert fleet.admin.calls("RunInstances")[-1]["parameters"]["InstanceType"] == "m8i.2xlarge"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            create("course", "us-west-2"),
            "profile 'course' has no region us-west-2; it has: eu-west-1, us-east-1",
        ),
        (create("curse", "us-east-1"), "there is no profile 'curse'; there are: course, default"),
        (create(None, "ap-south-1"), "profile 'default' has no region ap-south-1"),
        (create("course", "eu-west-1", instance_type="m5zn.metal"), "it launches: c8i.2xlarge, m8i.2xlarge"),
    ],
)
async def test_what_is_not_in_the_file_is_rejected_without_a_call(
    fleet: Fleet, command: CreateCMLWorker, said: str
):
    fleet.admin.forget_calls()
    async with WorkerClient(fleet.amqp) as callers:
        result = await callers.send(command, deadline=60)
    assert (result.outcome, result.problem.code) == ("rejected", "ValidationFailed")
    assert said in result.problem.detail
    assert fleet.admin.calls("RunInstances") == []


def test_the_command_line_names_and_shows_a_profile(fleet: Fleet):
    made = fleet.running.cli_json("create", "by-hand", "--profile", "course", "--region", "eu-west-1")
    assert made["outcome"] == "succeeded", made
    assert re.search(r"profile\s+course", fleet.running.cli("get", made["worker_id"]).stdout)
