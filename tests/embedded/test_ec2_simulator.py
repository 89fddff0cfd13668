"""The simulator where moto differs from EC2, row by row."""

from typing import Any

from cml_embedded.ec2_simulator import DEMO_IMAGE_NAME, DEMO_IMAGES, Ec2Simulator
from support.ec2_calls import NOBODY, REGION, client, described, refused, run, run_several, until


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


def test_each_of_several_that_are_launched_at_once_is_one_of_its_own(ec2: Any):
    ids = [each["InstanceId"] for each in run_several(ec2, 3, 3, ClientToken="t-three")]
    assert len(set(ids)) == 3
    ec2.create_tags(Resources=ids, Tags=[{"Key": "a", "Value": "1"}])
    for instance_id in ids:
        assert until(ec2, instance_id, "running")["Tags"] == [{"Key": "a", "Value": "1"}]
    ec2.terminate_instances(InstanceIds=ids[:1])
    until(ec2, ids[0], "terminated")
    again = run_several(ec2, 3, 3, ClientToken="t-three")
    assert {each["InstanceId"]: each["State"]["Name"] for each in again} == dict(
        zip(ids, ("terminated", "running", "running"), strict=True)
    )


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


def test_only_a_stopped_instance_can_be_resized(ec2: Any):
    resized = {"InstanceId": run(ec2)["InstanceId"], "InstanceType": {"Value": "m5.large"}}
    until(ec2, resized["InstanceId"], "running")
    with refused("IncorrectInstanceState"):
        ec2.modify_instance_attribute(**resized)
    ec2.stop_instances(InstanceIds=[resized["InstanceId"]])
    until(ec2, resized["InstanceId"], "stopped")
    with refused("InvalidInstanceAttributeValue"):
        ec2.modify_instance_attribute(**resized | {"InstanceType": {"Value": "m99.huge"}})
    ec2.modify_instance_attribute(**resized)
    ec2.start_instances(InstanceIds=[resized["InstanceId"]])
    assert until(ec2, resized["InstanceId"], "running")["InstanceType"] == "m5.large"
    with refused("InvalidInstanceID.NotFound"):
        ec2.modify_instance_attribute(**resized | {"InstanceId": NOBODY})


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
    with refused("VcpuLimitExceeded"):
        run_several(other, 8, 16, ImageId=DEMO_IMAGES["us-west-2"], InstanceType="m5.xlarge")
    assert len(run_several(other, 1, 16, ImageId=DEMO_IMAGES["us-west-2"], InstanceType="m5.xlarge")) == 7
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
