"""The faults of the simulator: instead of the effect, after it, late; and somebody else who acts."""

import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError

from support.ec2 import SimulatorAdmin
from support.ec2_calls import NOBODY, REGION, described, refused, run, until


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


def test_a_region_in_trouble_answers_nothing_and_the_others_do(ec2: Any, admin: SimulatorAdmin):
    admin.fault("*", "AuthFailure", region="us-west-2", status=401, times=None)
    assert ec2.describe_images(Owners=["self"])["Images"]
    admin.clear()
    admin.fault("*", "AuthFailure", region=ec2.meta.region_name, status=401, times=None)
    for _ in range(2):
        with refused("AuthFailure"):
            ec2.describe_images(Owners=["self"])
    admin.clear()
    assert ec2.describe_images(Owners=["self"])["Images"]


def test_a_call_that_hangs_goes_on_when_the_fault_is_taken_back(ec2: Any, admin: SimulatorAdmin):
    admin.fault("*", effect="delay", delay_seconds=600, times=None)
    with ThreadPoolExecutor(1) as hanging:
        answer = hanging.submit(ec2.describe_images, Owners=["self"])
        assert not wait([answer], timeout=0.3).done
        admin.clear()
        assert answer.result(timeout=10)["Images"]


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
