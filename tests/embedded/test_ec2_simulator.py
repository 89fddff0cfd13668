"""The simulator where moto differs from EC2, its faults, and what survives it."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import boto3  # type: ignore[import-untyped]  # stubs are installed for the asynchronous one only
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from cml_embedded.ec2_simulator import DEMO_IMAGE_NAME, DEMO_IMAGES, Ec2Simulator
from support.ec2 import SimulatorAdmin

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


@pytest.fixture(scope="module")
def simulator() -> Iterator[Ec2Simulator]:
    with Ec2Simulator(transition_seconds=0.3, vcpu_limit=100) as running:
        yield running


@pytest.fixture
def admin(simulator: Ec2Simulator) -> Iterator[SimulatorAdmin]:
    yield (admin := SimulatorAdmin(simulator.url))
    admin.clear()


@pytest.fixture
def ec2(simulator: Ec2Simulator) -> Iterator[Any]:
    yield (ec2 := client(simulator.url))
    ec2.close()


def run(ec2: Any, **changes: Any) -> Any:
    asked = {"ImageId": DEMO_IMAGES[REGION], "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1}
    return ec2.run_instances(**(asked | changes))["Instances"][0]


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


# -- moto's EC2 against the real one, row by row ----------------------------------------------------------


def test_a_client_token_is_kept(ec2: Any):
    first = run(ec2, ClientToken="t-1")
    again = run(ec2, ClientToken="t-1")
    assert again["InstanceId"] == first["InstanceId"]
    assert run(ec2, ClientToken="t-2")["InstanceId"] != first["InstanceId"]
    with refused("IdempotentParameterMismatch"):
        run(ec2, ClientToken="t-1", InstanceType="t3.small")
    until(ec2, first["InstanceId"], "running")
    assert run(ec2, ClientToken="t-1")["State"]["Name"] == "running"
    ec2.terminate_instances(InstanceIds=[first["InstanceId"]])
    with refused("IdempotentInstanceTerminated"):
        run(ec2, ClientToken="t-1")


def test_the_client_token_filter_works(ec2: Any):
    launched = run(ec2, ClientToken="t-filter")
    for token, expected in (("t-filter", [launched["InstanceId"]]), ("t-none", [])):
        answer = ec2.describe_instances(Filters=[{"Name": "client-token", "Values": [token]}])
        assert [i["InstanceId"] for r in answer["Reservations"] for i in r["Instances"]] == expected


def test_states_are_passed_through(ec2: Any):
    instance_id = run(ec2)["InstanceId"]
    assert described(ec2, instance_id)["State"]["Name"] == "pending"
    until(ec2, instance_id, "running")
    for act, through, end in (
        (ec2.stop_instances, "stopping", "stopped"),
        (ec2.start_instances, "pending", "running"),
        (ec2.terminate_instances, "shutting-down", "terminated"),
    ):
        (changed,) = next(
            value for key, value in act(InstanceIds=[instance_id]).items() if key.endswith("Instances")
        )
        assert changed["CurrentState"]["Name"] == through
        assert described(ec2, instance_id)["State"]["Name"] == through
        until(ec2, instance_id, end)


def test_a_state_may_not_allow_an_operation(ec2: Any):
    instance_id = run(ec2)["InstanceId"]
    with refused("IncorrectInstanceState"):
        ec2.stop_instances(InstanceIds=[instance_id])
    until(ec2, instance_id, "running")
    ec2.stop_instances(InstanceIds=[instance_id])
    with refused("IncorrectInstanceState"):
        ec2.start_instances(InstanceIds=[instance_id])
    ec2.terminate_instances(InstanceIds=[instance_id])
    for _ in range(2):
        with refused("IncorrectInstanceState"):
            ec2.start_instances(InstanceIds=[instance_id])
        until(ec2, instance_id, "terminated")


def test_what_is_so_already_is_left_alone(ec2: Any):
    instance_id = run(ec2)["InstanceId"]
    until(ec2, instance_id, "running")
    (same,) = ec2.start_instances(InstanceIds=[instance_id])["StartingInstances"]
    assert same["CurrentState"] == same["PreviousState"] == {"Code": 16, "Name": "running"}


def test_unknown_images_and_types_are_errors(ec2: Any):
    with refused("InvalidAMIID.NotFound"):
        run(ec2, ImageId="ami-00000000000000000")
    with refused("Invalid.*"):
        run(ec2, InstanceType="m99.huge")


def test_tags_are_checked(ec2: Any):
    with refused("InvalidInstanceID.NotFound"):
        ec2.create_tags(Resources=[NOBODY], Tags=[{"Key": "a", "Value": "1"}])
    instance_id = run(ec2)["InstanceId"]
    for tag in (("aws:a", "1"), ("AWS:a", "1"), ("k" * 129, "1"), ("k", "v" * 257)):
        with refused("InvalidParameterValue"):
            ec2.create_tags(Resources=[instance_id], Tags=[{"Key": tag[0], "Value": tag[1]}])
    with refused("TagLimitExceeded"):
        ec2.create_tags(Resources=[instance_id], Tags=[{"Key": f"k{n}", "Value": ""} for n in range(51)])


def test_there_is_a_quota(ec2: Any, simulator: Ec2Simulator):
    other = client(simulator.url, "us-west-2")
    with refused("VcpuLimitExceeded"):
        for _ in range(3):
            run(other, ImageId=DEMO_IMAGES["us-west-2"], InstanceType="c5.9xlarge")
    run(ec2)
    other.close()


def test_termination_protection_is_kept(ec2: Any):
    protected = run(ec2, DisableApiTermination=True)["InstanceId"]
    with refused("OperationNotPermitted"):
        ec2.terminate_instances(InstanceIds=[protected])


def test_a_malformed_id_is_not_merely_unknown(ec2: Any):
    for malformed in ("i-xyz", "nonsense", "i-123"):
        with refused("InvalidInstanceID.Malformed"):
            ec2.start_instances(InstanceIds=[malformed])
    with refused("InvalidInstanceID.NotFound"):
        ec2.start_instances(InstanceIds=[NOBODY])


def test_an_instance_lives_in_one_region(ec2: Any, simulator: Ec2Simulator):
    instance_id = run(ec2)["InstanceId"]
    other = client(simulator.url, "eu-west-1")
    with refused("InvalidInstanceID.NotFound"):
        other.terminate_instances(InstanceIds=[instance_id])
    other.close()


def test_the_demo_image_has_a_name_and_a_root_device(ec2: Any):
    (image,) = ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": [DEMO_IMAGE_NAME]}])[
        "Images"
    ]
    assert (image["ImageId"], image["RootDeviceName"]) == (DEMO_IMAGES[REGION], "/dev/sda1")


def test_status_checks_follow_the_state(ec2: Any):
    instance_id = run(ec2)["InstanceId"]
    until(ec2, instance_id, "running")
    (status,) = ec2.describe_instance_status(InstanceIds=[instance_id])["InstanceStatuses"]
    assert status["InstanceStatus"]["Status"] == status["SystemStatus"]["Status"] == "ok"
    ec2.stop_instances(InstanceIds=[instance_id])
    until(ec2, instance_id, "stopped")
    (status,) = ec2.describe_instance_status(InstanceIds=[instance_id], IncludeAllInstances=True)[
        "InstanceStatuses"
    ]
    assert status["InstanceStatus"]["Status"] == "not-applicable"


# -- faults -----------------------------------------------------------------------------------------------


def count(admin: SimulatorAdmin) -> int:
    return len(admin.instances())


def test_a_fault_instead_of_the_effect(ec2: Any, admin: SimulatorAdmin):
    before = count(admin)
    admin.fault("RunInstances", "UnauthorizedOperation", status=403, message="no")
    with refused("UnauthorizedOperation"):
        run(ec2)
    assert count(admin) == before
    run(ec2)


def test_a_fault_after_the_effect(ec2: Any, admin: SimulatorAdmin):
    before = count(admin)
    admin.fault("RunInstances", "InternalError", status=500, effect="after", times=2)
    for _ in range(2):
        with refused("InternalError"):
            run(ec2, ClientToken="t-after")
    assert run(ec2, ClientToken="t-after")["InstanceId"]
    assert count(admin) == before + 1


def test_a_fault_that_only_delays(ec2: Any, admin: SimulatorAdmin):
    admin.fault("DescribeImages", effect="delay", delay_seconds=0.3)
    began = time.monotonic()
    assert ec2.describe_images(Owners=["self"])["Images"]
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize(("effect", "launched"), [("instead", 0), ("after", 1), ("delay", 1)])
def test_a_dropped_connection_with_and_without_the_effect(
    ec2: Any, admin: SimulatorAdmin, effect: str, launched: int
):
    before = count(admin)
    admin.fault("RunInstances", effect=effect, close_connection=True)
    with pytest.raises(ConnectionClosedError):
        run(ec2)
    assert count(admin) == before + launched


def test_an_instance_that_is_hidden_for_a_while(ec2: Any, admin: SimulatorAdmin):
    admin.fault("RunInstances", effect="delay", hide_seconds=0.5)
    instance_id = run(ec2)["InstanceId"]
    with refused("InvalidInstanceID.NotFound"):
        described(ec2, instance_id)
    by_filter = [{"Name": "instance-id", "Values": [instance_id]}]
    assert ec2.describe_instances(Filters=by_filter)["Reservations"] == []
    time.sleep(0.5)
    assert ec2.describe_instances(Filters=by_filter)["Reservations"]


def test_a_fault_lasts_as_often_as_it_is_set_or_until_it_is_taken_back(ec2: Any, admin: SimulatorAdmin):
    admin.fault("DescribeInstances", "RequestLimitExceeded", times=None)
    for _ in range(3):
        with refused("RequestLimitExceeded"):
            ec2.describe_instances()
    admin.clear()
    ec2.describe_instances()
    admin.fault("DescribeInstances", "RequestLimitExceeded", probability=0.0)
    ec2.describe_instances()


def test_what_was_called_can_be_looked_at(ec2: Any, admin: SimulatorAdmin):
    admin.forget_calls()
    with refused("InvalidInstanceID.NotFound"):
        ec2.stop_instances(InstanceIds=[NOBODY])
    (call,) = admin.calls("StopInstances")
    assert (call["code"], call["status"], call["region"]) == ("InvalidInstanceID.NotFound", 400, REGION)


def test_somebody_else_may_act(ec2: Any, admin: SimulatorAdmin):
    instance_id = run(ec2)["InstanceId"]
    until(ec2, instance_id, "running")
    for state in ("stopped", "running", "terminated"):
        admin.set_state(instance_id, state)
        assert described(ec2, instance_id)["State"]["Name"] == state


# -- what survives ----------------------------------------------------------------------------------------


def facts(ec2: Any, instance_id: str) -> Any:
    seen = described(ec2, instance_id)
    kept = (
        "InstanceId",
        "State",
        "InstanceType",
        "ImageId",
        "PrivateIpAddress",
        "SubnetId",
        "SecurityGroups",
    )
    return {key: seen.get(key) for key in kept}, sorted((t["Key"], t["Value"]) for t in seen["Tags"])


def live(ec2: Any) -> list[str]:
    """One instance in each lasting state."""
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "1"}]}]
    ids = [run(ec2, ClientToken=f"t-{n}", TagSpecifications=tags)["InstanceId"] for n in range(3)]
    for instance_id in ids:
        until(ec2, instance_id, "running")
    ec2.create_tags(Resources=ids, Tags=[{"Key": "b", "Value": "2"}])
    ec2.stop_instances(InstanceIds=ids[1:2])
    ec2.terminate_instances(InstanceIds=ids[2:])
    until(ec2, ids[1], "stopped")
    until(ec2, ids[2], "terminated")
    return ids


class Process:
    """The simulator in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "cml_embedded.ec2_simulator",
                "--data-dir",
                folder,
                "--transition-seconds",
                "0.2",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_instances_survive_the_end_of_the_process(tmp_path: Path, number: int):
    with Process(tmp_path) as first:
        ec2 = client(first.url)
        ids = live(ec2)
        before = [facts(ec2, each) for each in ids]
        image = SimulatorAdmin(first.url).add_image(REGION, "mine")
        starting = run(ec2, ClientToken="t-last")["InstanceId"]
        ec2.close()
        first.end(number)

    with Process(tmp_path) as second:
        ec2 = client(second.url)
        assert [facts(ec2, each) for each in ids] == before
        assert run(ec2, ClientToken="t-last")["InstanceId"] == starting
        until(ec2, starting, "running")
        ec2.start_instances(InstanceIds=[ids[1]])
        until(ec2, ids[1], "running")
        assert ec2.describe_images(ImageIds=[image])["Images"][0]["Name"] == "mine"
        assert len(SimulatorAdmin(second.url).instances()) == 4
        ec2.close()
        assert second.end(signal.SIGTERM) == 0
