"""The port ``Ec2``: AWS's client on the simulator, and EC2 in memory as the simulation has it, keep the same promises."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from cml_contracts.instance import InstanceState
from cml_embedded.ec2_simulator import DEMO_IMAGE_NAME, DEMO_IMAGES, Ec2Simulator
from cml_workers.ec2_adapter.aws import AwsEc2Client
from cml_workers.ec2_adapter.errors import (
    EC2InstanceCreationException,
    EC2InstanceNotFoundException,
    EC2InstanceOperationException,
    Remedy,
)
from cml_workers.ec2_adapter.port import Ec2, StateChange, StatusChecks
from simulation.ec2 import Cloud, Ec2OfProcess
from simulation.world import Process, World
from support.ec2 import SimulatorAdmin
from support.instances import REGION, described, parameters, until

UNKNOWN = "i-00000000000000001"
TRANSITION = 0.2
PENDING, RUNNING, STOPPING, STOPPED, SHUTTING_DOWN, TERMINATED = InstanceState


@dataclass
class Prompt(Process):
    """A process to and from which nothing takes time."""

    async def step(self, label: str, *, latency: float = 0.0) -> None:
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def simulator() -> Iterator[Ec2Simulator]:
    with Ec2Simulator(transition_seconds=TRANSITION) as running:
        yield running


@pytest.fixture(params=["AWS's client on the simulator", "in memory"])
async def ec2(
    request: pytest.FixtureRequest, simulator: Ec2Simulator, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Ec2]:
    if request.param == "in memory":
        world = World(1)
        world.transition = (TRANSITION, TRANSITION)
        images = {(REGION, DEMO_IMAGE_NAME): DEMO_IMAGES[REGION]}
        yield Ec2OfProcess(Prompt(world, "test", mortal=False), Cloud(world=world, images=images))
        assert world.broken == []
        return
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "simulator")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "simulator")
    SimulatorAdmin(simulator.url).clear()
    async with AwsEc2Client(endpoint_url=simulator.url) as client:
        yield client


async def test_a_life_of_an_instance(ec2: Ec2):
    launched = await ec2.launch(parameters())
    where = REGION, launched.instance_id
    assert launched.state is PENDING
    await until(ec2, launched, RUNNING)
    assert await ec2.switch("StartInstances", *where) == StateChange(RUNNING, RUNNING)
    assert await ec2.switch("StopInstances", *where) == StateChange(RUNNING, STOPPING)
    assert await ec2.switch("StopInstances", *where) in (
        StateChange(STOPPING, STOPPING),
        StateChange(STOPPED, STOPPED),
    )
    await until(ec2, launched, STOPPED)
    assert await ec2.switch("StopInstances", *where) == StateChange(STOPPED, STOPPED)
    assert await ec2.switch("StartInstances", *where) == StateChange(STOPPED, PENDING)
    await until(ec2, launched, RUNNING)
    assert await ec2.terminate(*where) == StateChange(RUNNING, SHUTTING_DOWN)
    await until(ec2, launched, TERMINATED)
    assert await ec2.terminate(*where) == StateChange(TERMINATED, TERMINATED)


async def test_one_token_launches_one_instance(ec2: Ec2):
    asked = parameters()
    launched = await ec2.launch(asked)
    assert (await ec2.launch(asked)).instance_id == launched.instance_id
    found = await ec2.list_instances(REGION, {"client-token": [asked.client_token]})
    assert [each.instance_id for each in found] == [launched.instance_id]
    with pytest.raises(EC2InstanceCreationException) as mismatch:
        await ec2.launch(asked.model_copy(update={"instance_type": "m5.xlarge"}))
    assert mismatch.value.remedy is Remedy.LOOK_UP_LAUNCH
    await ec2.terminate(REGION, launched.instance_id)
    await until(ec2, launched, TERMINATED)
    with pytest.raises(EC2InstanceCreationException) as ended:
        await ec2.launch(asked)
    assert ended.value.remedy is Remedy.LOOK_UP_LAUNCH


async def test_instances_are_listed_by_what_all_filters_ask_for(ec2: Ec2):
    one, other = parameters(), parameters()
    launched = [await ec2.launch(each) for each in (one, other)]
    tag = "tag:cml:worker-id"
    both = [one.tags["cml:worker-id"], other.tags["cml:worker-id"]]
    found = await ec2.list_instances(REGION, {tag: both})
    assert {each.instance_id for each in found} == {each.instance_id for each in launched}
    (first,) = await ec2.list_instances(REGION, {tag: both, "client-token": [one.client_token]})
    assert first.instance_id == launched[0].instance_id
    await until(ec2, launched[0], RUNNING)
    assert await ec2.list_instances(REGION, {tag: both, "instance-state-name": ["stopped"]}) == []
    assert await ec2.list_instances("us-west-2", {tag: both}) == []


async def test_an_instance_that_is_not_there_is_absent_and_hides_no_other(ec2: Ec2):
    launched = await ec2.launch(parameters())
    wanted = [UNKNOWN, launched.instance_id]
    assert list(await ec2.describe_many(REGION, wanted)) == [launched.instance_id]
    assert list(await ec2.status_checks(REGION, wanted)) == [launched.instance_id]
    assert await ec2.status_checks(REGION, [UNKNOWN]) == {}


async def test_what_is_not_there_cannot_be_changed(ec2: Ec2):
    for call in (
        ec2.switch("StartInstances", REGION, UNKNOWN),
        ec2.switch("StopInstances", REGION, UNKNOWN),
        ec2.terminate(REGION, UNKNOWN),
        ec2.add_tags(REGION, UNKNOWN, {"a": "1"}),
    ):
        with pytest.raises(EC2InstanceNotFoundException) as refused:
            await call
        assert refused.value.remedy is Remedy.DESCRIBE


async def test_states_refuse_what_they_do_not_allow(ec2: Ec2):
    launched = await ec2.launch(parameters())
    where = REGION, launched.instance_id
    with pytest.raises(EC2InstanceOperationException) as pending:
        await ec2.switch("StopInstances", *where)
    assert pending.value.remedy is Remedy.DESCRIBE
    await ec2.terminate(*where)
    for api in ("StartInstances", "StopInstances"):
        with pytest.raises(EC2InstanceOperationException) as ending:
            await ec2.switch(api, *where)
        assert ending.value.remedy is Remedy.DESCRIBE


async def test_status_checks_follow_the_state(ec2: Ec2):
    launched = await ec2.launch(parameters())
    instance_id = launched.instance_id
    await until(ec2, launched, RUNNING)
    assert await ec2.status_checks(REGION, [instance_id]) == {instance_id: StatusChecks("ok", "ok")}
    await ec2.switch("StopInstances", REGION, instance_id)
    await until(ec2, launched, STOPPED)
    checks = await ec2.status_checks(REGION, [instance_id])
    assert checks[instance_id] == StatusChecks("not-applicable", "not-applicable")


async def test_tags_are_added_and_overwritten_and_never_removed(ec2: Ec2):
    asked = parameters()
    launched = await ec2.launch(asked)
    await ec2.add_tags(REGION, launched.instance_id, {"a": "1", "Name": "other"})
    expected = {**asked.tags, "a": "1", "Name": "other"}
    seen = await described(ec2, launched.instance_id)
    assert seen
    assert seen.tags == expected


async def test_images_are_found_by_their_name(ec2: Ec2):
    assert await ec2.find_image(REGION, DEMO_IMAGE_NAME) == DEMO_IMAGES[REGION]
    assert await ec2.find_image(REGION, "no such image") is None


async def test_a_region_goes_on_after_its_credentials_were_read_again(ec2: Ec2):
    launched = await ec2.launch(parameters())
    await ec2.refresh(REGION)
    assert await described(ec2, launched.instance_id)
