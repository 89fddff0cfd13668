"""Somebody with a client of his own stops, starts, tags, resizes and terminates instances: commands are answered by what EC2 shows."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from support.ec2_calls import client
from support.plain_amqp import PlainAmqp
from support.whole_path import CREATE, System

OBSERVED = "cml.worker.instance_state_observed.v1"


@pytest.fixture
def outsider(system: System) -> Iterator[Any]:
    """EC2 as anybody else in the account uses it."""
    own = client(system.ec2, "us-east-1")
    yield own
    own.close()


async def until(outsider: Any, instance_id: str, state: str) -> None:
    async with asyncio.timeout(30):
        while (await described(outsider, instance_id))["State"]["Name"] != state:
            await asyncio.sleep(0.1)


async def described(outsider: Any, instance_id: str) -> Any:
    answer = await asyncio.to_thread(outsider.describe_instances, InstanceIds=[instance_id])
    return answer["Reservations"][0]["Instances"][0]


async def running(caller: PlainAmqp, **fields: Any) -> tuple[str, str]:
    """A new worker that runs, and its instance."""
    created = await caller.command("create", **CREATE, **fields)
    await caller.until_status(created["worker_id"], "RUNNING")
    return created["worker_id"], created["data"]["aws_instance_id"]


async def test_stopped_outside_then_start(system: System, outsider: Any):
    async with system.client() as caller:
        worker_id, instance_id = await running(caller)
        await asyncio.to_thread(outsider.stop_instances, InstanceIds=[instance_id])
        await until(outsider, instance_id, "stopped")
        assert (await caller.command("start", worker_id=worker_id, started_by="ann"))["data"] is True
        await until(outsider, instance_id, "running")
        seen = await caller.until_event(worker_id, OBSERVED, instance_state="stopped", drift=True)
        assert seen["data"]["state_reason"]["code"] == "Client.UserInitiatedShutdown"
        assert "actor" not in seen


async def test_started_outside_then_stop(system: System, outsider: Any):
    async with system.client() as caller:
        worker_id, instance_id = await running(caller)
        assert (await caller.command("stop", worker_id=worker_id))["data"] is True
        await caller.until_status(worker_id, "STOPPED")
        await asyncio.to_thread(outsider.start_instances, InstanceIds=[instance_id])
        await until(outsider, instance_id, "running")
        assert (await caller.command("stop", worker_id=worker_id))["data"] is True
        await until(outsider, instance_id, "stopped")


async def test_a_tag_changed_outside_then_the_update_that_restores_it(system: System, outsider: Any):
    async with system.client() as caller:
        worker_id, instance_id = await running(caller, tags={"course": "ccna"})
        await asyncio.to_thread(
            outsider.create_tags, Resources=[instance_id], Tags=[{"Key": "course", "Value": "theirs"}]
        )
        restored = await caller.command("update_tags", worker_id=worker_id, tags={"course": "ccna"})
        assert restored["data"]["course"] == "ccna"
        tags = (await described(outsider, instance_id))["Tags"]
        assert {"Key": "course", "Value": "ccna"} in tags


async def test_a_status_update_shows_the_type_and_the_tags_of_ec2(system: System, outsider: Any):
    async with system.client() as caller:
        worker_id, instance_id = await running(caller, tags={"course": "ccna"})
        assert (await caller.command("stop", worker_id=worker_id))["data"] is True
        await caller.until_status(worker_id, "STOPPED")
        await asyncio.to_thread(
            outsider.modify_instance_attribute, InstanceId=instance_id, InstanceType={"Value": "m5.xlarge"}
        )
        await asyncio.to_thread(outsider.delete_tags, Resources=[instance_id], Tags=[{"Key": "course"}])
        await caller.command("update_status", worker_id=worker_id)
        seen = await caller.until_event(worker_id, OBSERVED, instance_type="m5.xlarge", drift=True)
        assert {"instance_type", "tags"} <= set(seen["data"]["changed"])
        view: dict[str, Any] = {"revision": -1}
        while view["revision"] < seen["streamrevision"]:  # the read model follows
            view = await caller.until_status(worker_id, "STOPPED")
        assert view["instance_type"] == "m5.xlarge"
        assert "course" not in view["tags"]


async def test_terminated_outside_then_any_command(system: System, outsider: Any):
    async with system.client() as caller:
        for name, fields in (("start", {}), ("update_tags", {"tags": {"Name": "lab"}})):
            worker_id, instance_id = await running(caller)
            await asyncio.to_thread(outsider.terminate_instances, InstanceIds=[instance_id])
            await until(outsider, instance_id, "terminated")
            answered = await caller.command(name, worker_id=worker_id, **fields)
            assert (answered["outcome"], answered["problem"]["code"]) == ("rejected", "WorkerTerminated")
            ended = await caller.until_event(worker_id, "cml.worker.terminated.v1")
            assert ended["data"]["reason"] == "Client.UserInitiatedShutdown: User initiated shutdown"


async def test_an_import_of_a_worker_that_somebody_terminated_says_so(system: System, outsider: Any):
    async with system.client() as caller:
        launched = await asyncio.to_thread(
            outsider.run_instances,
            ImageId=(await caller.command("create", **CREATE))["data"]["ami_id"],
            InstanceType="m5.large",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": "cml:import", "Value": "default"}]}
            ],
        )
        instance_id = launched["Instances"][0]["InstanceId"]
        await until(outsider, instance_id, "running")
        adopt = {"aws_region": "us-east-1", "instance_id": instance_id, "created_by": "ann"}
        imported = await caller.command("import", **adopt)
        assert imported["outcome"] == "succeeded"
        await caller.until_event(imported["worker_id"], "cml.worker.tags_updated.v1")
        assert (await caller.command("import", **adopt))["outcome"] == "succeeded"
        await asyncio.to_thread(outsider.terminate_instances, InstanceIds=[instance_id])
        await until(outsider, instance_id, "terminated")
        again = await caller.command("import", **adopt)
        assert (again["outcome"], again["problem"]["code"]) == ("rejected", "WorkerTerminated")
