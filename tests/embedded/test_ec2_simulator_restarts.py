"""What survives the end of the simulator's process."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from support.ec2 import SimulatorAdmin
from support.ec2_calls import REGION, client, described, run, run_several, until


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
    ec2.modify_instance_attribute(InstanceId=ids[1], InstanceType={"Value": "m5.large"})
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
        starting = [each["InstanceId"] for each in run_several(ec2, 2, 2, ClientToken="t-last")]
        ec2.close()
        first.end(number)

    with Process(tmp_path) as second:
        ec2 = client(second.url)
        assert [facts(ec2, each) for each in ids] == before
        again = run_several(ec2, 2, 2, ClientToken="t-last")
        assert [each["InstanceId"] for each in again] == starting
        for instance_id in starting:
            until(ec2, instance_id, "running")
        ec2.start_instances(InstanceIds=[ids[1]])
        until(ec2, ids[1], "running")
        assert ec2.describe_images(ImageIds=[image])["Images"][0]["Name"] == "mine"
        assert len(SimulatorAdmin(second.url).instances()) == 5
        ec2.close()
        assert second.end(signal.SIGTERM) == 0
