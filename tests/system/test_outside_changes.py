"""Somebody changes instances behind the system's back, as callers see it over the wire; none of it needs our own modules."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3  # type: ignore[import-untyped]  # stubs are installed for the asynchronous one only
import pytest

from support.ec2 import SimulatorAdmin
from support.plain_amqp import PlainAmqp
from support.running import RunningSystem

REGION = "us-east-1"
CREATE: dict[str, Any] = {
    "name": "lab",
    "aws_region": REGION,
    "instance_type": "m5.large",
    "created_by": "ann",
    "tags": {"course": "a"},
}


class System:
    """A running system, the simulator it has, and a stranger's client of that."""

    def __init__(self, running: RunningSystem) -> None:
        endpoints = running.start()
        self.amqp = endpoints["amqp"]
        self.admin = SimulatorAdmin(endpoints["ec2"])
        self.stranger = boto3.client(
            "ec2",
            region_name=REGION,
            endpoint_url=endpoints["ec2"],
            aws_access_key_id="stranger",
            aws_secret_access_key="stranger",
        )

    async def worker(self, client: PlainAmqp) -> tuple[str, str]:
        """A new one that runs, and its instance."""
        created = await client.command("create", **CREATE)
        assert created["outcome"] == "succeeded", created
        await client.until_status(created["worker_id"], "RUNNING")
        return created["worker_id"], created["data"]["aws_instance_id"]

    def tags(self, instance_id: str) -> dict[str, str]:
        (tags,) = (each["tags"] for each in self.admin.instances() if each["instance_id"] == instance_id)
        return dict(tags)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder: Path = tmp_path_factory.mktemp("outside")
    running = RunningSystem(folder / "data")
    try:
        system = System(running)
        yield system
        system.stranger.close()
    finally:
        running.kill()


# -- memory answered instead of reality -------------------------------------------------------------------


async def test_a_worker_that_somebody_stopped_is_started(system: System):
    async with PlainAmqp(system.amqp) as client:
        worker_id, instance_id = await system.worker(client)
        system.admin.set_state(instance_id, "stopped")
        system.admin.forget_calls()
        assert (await client.command("start", worker_id=worker_id))["data"] is True
        assert len(system.admin.calls("StartInstances")) == 1
        await client.until_status(worker_id, "RUNNING")


async def test_a_worker_that_somebody_started_is_stopped(system: System):
    async with PlainAmqp(system.amqp) as client:
        worker_id, instance_id = await system.worker(client)
        assert (await client.command("stop", worker_id=worker_id))["data"] is True
        await client.until_status(worker_id, "STOPPED")
        system.admin.set_state(instance_id, "running")
        system.admin.forget_calls()
        assert (await client.command("stop", worker_id=worker_id))["data"] is True
        assert len(system.admin.calls("StopInstances")) == 1
        await client.until_status(worker_id, "STOPPED")


async def test_a_tag_that_somebody_changed_is_restored_by_the_update_that_asks_for_it(system: System):
    async with PlainAmqp(system.amqp) as client:
        worker_id, instance_id = await system.worker(client)
        system.stranger.create_tags(Resources=[instance_id], Tags=[{"Key": "course", "Value": "b"}])
        reply = await client.command("update_tags", worker_id=worker_id, tags={"course": "a"})
        assert reply["outcome"] == "succeeded"
        assert reply["data"] == system.tags(instance_id)
        assert system.tags(instance_id)["course"] == "a"


async def test_a_tag_that_somebody_deleted_is_restored_by_the_update_that_asks_for_it(system: System):
    async with PlainAmqp(system.amqp) as client:
        worker_id, instance_id = await system.worker(client)
        system.stranger.delete_tags(Resources=[instance_id], Tags=[{"Key": "course"}])
        reply = await client.command("update_tags", worker_id=worker_id, tags={"course": "a"})
        assert reply["outcome"] == "succeeded"
        assert system.tags(instance_id)["course"] == "a"


async def test_tags_and_type_are_those_of_ec2_after_a_status_update(system: System):
    async with PlainAmqp(system.amqp) as client:
        worker_id, instance_id = await system.worker(client)
        await client.command("stop", worker_id=worker_id)
        await client.until_status(worker_id, "STOPPED")
        system.stranger.create_tags(Resources=[instance_id], Tags=[{"Key": "by", "Value": "hand"}])
        system.stranger.modify_instance_attribute(InstanceId=instance_id, InstanceType={"Value": "m5.xlarge"})
        assert (await client.command("update_status", worker_id=worker_id))["outcome"] == "succeeded"
        event = await client.until_event(worker_id, "cml.worker.instance_state_observed.v1")
        assert event["data"]
        view = await _until(client, worker_id, lambda view: view["tags"].get("by") == "hand")
        assert view["tags"] == view["instance"]["tags"] == system.tags(instance_id)
        assert view["instance_type"] == view["instance"]["instance_type"] == "m5.xlarge"


# -- seen and not recorded --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["start", "stop", "update_tags"])
async def test_what_a_command_learns_of_an_instance_that_somebody_terminated_is_shown(
    system: System, command: str
):
    async with PlainAmqp(system.amqp) as client:
        worker_id, instance_id = await system.worker(client)
        if command == "start":
            await client.command("stop", worker_id=worker_id)
            await client.until_status(worker_id, "STOPPED")
        system.admin.set_state(instance_id, "terminated")
        more = {"tags": {"course": "b"}} if command == "update_tags" else {}
        reply = await client.command(command, worker_id=worker_id, **more)
        assert reply["outcome"] != "succeeded"
        await client.until_status(worker_id, "TERMINATED")


# -- fleets that take each other's instances --------------------------------------------------------------


@pytest.mark.parametrize(
    "tags",
    [
        {"cml:import": "default", "cml:deployment": "other"},
        {"cml:import": "default", "cml:deployment": "other", "cml:worker-id": str(uuid4())},
        {"Name": "of nobody who consents"},
    ],
)
@pytest.mark.parametrize("state", ["running", "stopped"])
async def test_an_instance_of_another_deployment_is_not_imported(
    system: System, state: str, tags: dict[str, str]
):
    image = system.stranger.describe_images()["Images"][0]["ImageId"]
    launched = system.stranger.run_instances(
        ImageId=image,
        InstanceType="m5.large",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[
            {
                "ResourceType": "instance",
                "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
            }
        ],
    )["Instances"][0]
    system.admin.set_state(launched["InstanceId"], state)
    async with PlainAmqp(system.amqp) as client:
        reply = await client.command(
            "import", aws_region=REGION, instance_id=launched["InstanceId"], created_by="ann"
        )
    assert (reply["outcome"], reply["problem"]["code"]) == ("failed", "EC2InstanceNotFound")
    assert system.tags(launched["InstanceId"]) == tags


# -- retryable, but not with this id ----------------------------------------------------------------------


async def test_a_worker_that_could_not_be_launched_is_launched_by_a_new_create(system: System):
    worker_id = str(uuid4())
    system.admin.fault("RunInstances", "InsufficientInstanceCapacity")
    async with PlainAmqp(system.amqp) as client:
        failed = await client.command("create", worker_id=worker_id, **CREATE)
        assert (failed["outcome"], failed["problem"]["code"]) == ("failed", "EC2Capacity")
        created = await client.command("create", worker_id=worker_id, **CREATE)
        assert created["outcome"] == "succeeded", created
        assert created["worker_id"] == worker_id
        await _until(client, worker_id, lambda view: view["status"] == "RUNNING")
        assert (await client.command("terminate", worker_id=worker_id))["data"] is True
        again = await client.command("create", worker_id=worker_id, **CREATE)
        assert again["outcome"] == "rejected"


async def _until(
    client: PlainAmqp, worker_id: str, shown: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The read model's row as soon as it is so."""
    async with asyncio.timeout(30):
        while not (view := (await client.query("worker.get", worker_id=worker_id))["data"]) or not shown(
            view
        ):
            await asyncio.sleep(0.1)
    return dict(view)
