"""Why an instance is in its state: what EC2 says of it, and instances that do not come to run."""

from typing import Any

from cml_embedded.ec2_simulator import Ec2Simulator
from support.ec2 import SimulatorAdmin
from support.ec2_calls import described, run, until

BY_USER = {
    "Code": "Client.UserInitiatedShutdown",
    "Message": "Client.UserInitiatedShutdown: User initiated shutdown",
}


def test_a_new_instance_says_its_state_and_one_that_runs_says_nothing(ec2: Any):
    instance_id = run(ec2)["InstanceId"]
    assert described(ec2, instance_id)["StateReason"] == {"Code": "pending", "Message": "pending"}
    until(ec2, instance_id, "running")
    assert not any(described(ec2, instance_id).get("StateReason", {}).values())


def test_who_stopped_or_terminated_an_instance_is_said_and_a_start_ends_that(ec2: Any):
    instance_id = run(ec2)["InstanceId"]
    until(ec2, instance_id, "running")
    ec2.stop_instances(InstanceIds=[instance_id])
    until(ec2, instance_id, "stopped")
    stopped = described(ec2, instance_id)
    assert stopped["StateReason"] == BY_USER
    assert stopped["StateTransitionReason"].startswith("User initiated (20")
    assert stopped["StateTransitionReason"].endswith(" GMT)")
    ec2.start_instances(InstanceIds=[instance_id])
    until(ec2, instance_id, "running")
    assert described(ec2, instance_id).get("StateTransitionReason", "") == ""
    ec2.terminate_instances(InstanceIds=[instance_id])
    until(ec2, instance_id, "terminated")
    assert described(ec2, instance_id)["StateReason"] == BY_USER


def test_an_instance_may_die_instead_of_running(ec2: Any, simulator: Ec2Simulator):
    admin = SimulatorAdmin(simulator.url)
    admin.fault("RunInstances", "Client.VolumeLimitExceeded", message="Volume limit exceeded", effect="dies")
    instance_id = run(ec2)["InstanceId"]
    assert described(ec2, instance_id)["State"]["Name"] == "pending"
    until(ec2, instance_id, "terminated")
    reason = {"Code": "Client.VolumeLimitExceeded", "Message": "Volume limit exceeded"}
    assert described(ec2, instance_id)["StateReason"] == reason
    until(ec2, run(ec2)["InstanceId"], "running")


def test_an_instance_may_fall_back_to_stopped_after_a_start(ec2: Any, simulator: Ec2Simulator):
    instance_id = run(ec2)["InstanceId"]
    until(ec2, instance_id, "running")
    ec2.stop_instances(InstanceIds=[instance_id])
    until(ec2, instance_id, "stopped")
    admin = SimulatorAdmin(simulator.url)
    admin.fault(
        "StartInstances", "Server.InternalError", message="Server.InternalError: it is so", effect="dies"
    )
    ec2.start_instances(InstanceIds=[instance_id])
    assert described(ec2, instance_id)["State"]["Name"] == "pending"
    until(ec2, instance_id, "stopped")
    assert described(ec2, instance_id)["StateReason"]["Code"] == "Server.InternalError"
    ec2.start_instances(InstanceIds=[instance_id])
    until(ec2, instance_id, "running")
