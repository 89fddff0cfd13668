"""``cml-workers doctor`` on the simulator, with each prerequisite taken away in turn."""

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from typer.testing import CliRunner

from cml_embedded.ec2.requests import check
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from cml_tools.ec2_calls import Sent
from cml_workers.bus.topology import PROBES, QUEUES
from cml_workers.bus.usage import retry_queues
from cml_workers.cli import terminal
from cml_workers.cli.app import app
from cml_workers.doctor.lines import MISSING, UNKNOWN
from support.ec2 import SimulatorAdmin
from support.ec2_calls import REGION, client, run
from support.listed_calls import all_sent_by_doctor, listed, listed_of_doctor, not_listed
from support.management_api import management_api

OTHER = "us-west-2"
TYPE = "c5.2xlarge"
EBS_KEY = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"


class Deployment:
    """What a fleet has at AWS, and the settings that name it; ``lines`` are those of the doctor."""

    def __init__(self, simulator: Ec2Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.admin = SimulatorAdmin(simulator.url)
        self.ec2 = client(simulator.url)
        self._monkeypatch = monkeypatch
        (self.subnet,) = self.shown("subnets", "availability-zone", f"{REGION}a", "default-for-az", "true")
        network = self.subnet["VpcId"]
        (group,) = self.shown("security_groups", "group-name", "default", "vpc-id", network)
        self.group = group["GroupId"]
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "simulator")
        self.configure(
            AWS_ENDPOINT_URL=simulator.url,
            CML_WORKER_AMI_IDS=json.dumps({REGION: DEMO_IMAGES[REGION]}),
            CML_WORKER_SUBNET_ID=self.subnet["SubnetId"],
            CML_WORKER_SECURITY_GROUP_IDS=json.dumps([self.group]),
            CML_WORKER_KEY_NAME="ours",
            CML_DEFAULT_TAGS='{"cost-center": "42"}',
        )

    def configure(self, **settings: str) -> None:
        for name, value in settings.items():
            self._monkeypatch.setenv(name, value)

    def has(self, **changes: Any) -> None:
        self.admin.change_account(REGION, **changes)

    def asked(self) -> list[dict[str, Any]]:
        """What it has sent; not what the test has."""
        return [call for call in self.admin.calls() if "cml-workers" in call["user_agent"]]

    def launched(self) -> str:
        """An instance of this deployment."""
        tags = [{"Key": "cml:deployment", "Value": "default"}]
        return str(
            run(self.ec2, TagSpecifications=[{"ResourceType": "instance", "Tags": tags}])["InstanceId"]
        )

    def doctor(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["doctor", *arguments])

    def lines(self, code: int) -> list[dict[str, str]]:
        done = self.doctor("--json")
        assert done.exit_code == code, done.output
        lines: list[dict[str, str]] = json.loads(done.stdout)["lines"]
        return lines

    def shown(self, what: str, *filters: str) -> Any:
        wanted = [
            {"Name": name, "Values": [value]} for name, value in zip(filters[::2], filters[1::2], strict=True)
        ]
        shown = getattr(self.ec2, f"describe_{what}")(Filters=wanted)
        return next(value for value in shown.values() if isinstance(value, list))


@pytest.fixture(scope="module", autouse=True)
def models() -> Iterator[None]:
    """Each run makes clients of its own; the SDK would read its models of the services for each of them again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="module")
def simulator() -> Iterator[Ec2Simulator]:
    with Ec2Simulator(transition_seconds=0) as running:
        client(running.url).create_key_pair(KeyName="ours")
        yield running


@pytest.fixture
def deployment(simulator: Ec2Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """Nothing is missing; no setting of this process's environment."""
    monkeypatch.setattr(terminal, "configure_logging", lambda _: None)
    deployment = Deployment(simulator, monkeypatch)
    deployment.admin.forget_calls()
    yield deployment
    deployment.admin.reset_account()
    deployment.admin.clear()
    for instance in deployment.admin.instances():
        deployment.admin.set_state(instance["instance_id"], "terminated")
    assert not_listed(deployment.asked(), listed_of_doctor()) == set()


def test_where_nothing_is_missing_nothing_is_said_of_it_and_nothing_is_changed(deployment: Deployment):
    done = deployment.doctor()
    assert (done.exit_code, done.stdout) == (0, f"fine {REGION}\n")
    assert deployment.lines(0) == []
    assert deployment.admin.instances() == []
    assert deployment.asked()
    for call in deployment.asked():
        reads = call["operation"].startswith(("Describe", "Get"))
        assert reads or call["parameters"]["DryRun"] == "true", call


RIGHTS = [
    "DescribeImages",
    "DescribeInstances",
    "DescribeInstanceStatus",
    "RunInstances",
    "StartInstances",
    "StopInstances",
    "TerminateInstances",
    "CreateTags",
]


@pytest.mark.parametrize("action", RIGHTS)
def test_a_right_of_the_adapter_is_missing(deployment: Deployment, action: str):
    deployment.launched()
    deployment.has(denied=[f"ec2:{action}"])
    (line,) = deployment.lines(MISSING)
    assert (line["region"], line["status"], line["subject"]) == (REGION, "missing", "right")
    assert line["problem"] == f"ec2:{action} is not allowed"
    assert "deploy/aws/iam-policy.json" in line["fix"]


OWN = [
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeKeyPairs",
    "ec2:DescribeRegions",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:GetEbsDefaultKmsKeyId",
    "ec2:GetInstanceMetadataDefaults",
    "kms:DescribeKey",
    "servicequotas:GetServiceQuota",
]


@pytest.mark.parametrize("action", OWN)
def test_what_the_doctor_may_not_ask_it_cannot_see(deployment: Deployment, action: str):
    deployment.has(denied=[action], ebs_key=EBS_KEY, keys={EBS_KEY: "Enabled"})
    (line,) = deployment.lines(UNKNOWN)
    assert (line["status"], line["subject"]) == ("unknown", "right")
    assert line["problem"].startswith(f"{action} is not allowed")
    assert "statement Doctor" in line["fix"]


def no_image(it: Deployment) -> None:
    it.configure(CML_WORKER_AMI_IDS=json.dumps({REGION: "ami-00000000000000000"}))


def image_of_another_name(it: Deployment) -> None:
    it.configure(CML_WORKER_AMI_IDS="", CML_WORKER_AMI_NAMES=json.dumps({REGION: "cml-9.9"}))


def image_of_a_stranger(it: Deployment) -> None:
    it.admin.change_image(it.admin.add_image(REGION, "strange"), owner_id="111122223333")
    it.configure(CML_WORKER_AMI_IDS="", CML_WORKER_AMI_NAMES=json.dumps({REGION: "strange"}))


def two_images(it: Deployment) -> None:
    for _ in range(2):
        it.admin.add_image(REGION, "twice")
    it.configure(CML_WORKER_AMI_IDS="", CML_WORKER_AMI_NAMES=json.dumps({REGION: "twice"}))


def image(**changes: str) -> Any:
    def of_another_kind(it: Deployment) -> None:
        changed = it.admin.add_image(REGION, "of another kind")
        it.admin.change_image(changed, **changes)
        it.configure(CML_WORKER_AMI_IDS=json.dumps({REGION: changed}))

    return of_another_kind


def no_image_configured(it: Deployment) -> None:
    it.configure(CML_WORKER_AMI_IDS="", CML_ALLOWED_REGIONS=json.dumps([REGION]))


def no_region_configured(it: Deployment) -> None:
    it.configure(CML_WORKER_AMI_IDS="")


def region_that_is_not_enabled(it: Deployment) -> None:
    images = json.dumps({REGION: DEMO_IMAGES[REGION], OTHER: DEMO_IMAGES[OTHER]})
    it.configure(
        CML_WORKER_AMI_IDS=images,
        CML_WORKER_SUBNET_ID="",
        CML_WORKER_SECURITY_GROUP_IDS="",
        CML_WORKER_KEY_NAME="",
    )
    it.admin.change_account(OTHER, enabled=False)


def region_that_there_is_not(it: Deployment) -> None:
    it.configure(
        CML_WORKER_AMI_IDS=json.dumps({REGION: DEMO_IMAGES[REGION], "us-east-9": "ami-00000000000000000"})
    )


def no_subnet(it: Deployment) -> None:
    it.configure(CML_WORKER_SUBNET_ID="subnet-00000000000000000")


def full_subnet(it: Deployment) -> None:
    # In the zone of the other, as one is chosen at random, and not each has every instance type.
    zone, network = it.subnet["AvailabilityZone"], it.subnet["VpcId"]
    made = it.ec2.create_subnet(VpcId=network, CidrBlock="172.31.200.0/28", AvailabilityZone=zone)
    full = made["Subnet"]["SubnetId"]
    it.admin.set_free_addresses(REGION, full, 0)
    it.configure(CML_WORKER_SUBNET_ID=full)


def no_group(it: Deployment) -> None:
    it.configure(CML_WORKER_SECURITY_GROUP_IDS=json.dumps([it.group, "sg-00000000000000000"]))


def group_of_another_network(it: Deployment) -> None:
    network = it.ec2.create_vpc(CidrBlock="10.8.0.0/16")["Vpc"]["VpcId"]
    group = it.ec2.create_security_group(GroupName="other", Description="other", VpcId=network)["GroupId"]
    it.configure(CML_WORKER_SECURITY_GROUP_IDS=json.dumps([group]))


def no_key_pair(it: Deployment) -> None:
    it.configure(CML_WORKER_KEY_NAME="nobody's")


def type_not_offered_in_the_zone(it: Deployment) -> None:
    it.has(not_offered={TYPE: [it.subnet["AvailabilityZone"]]})


def type_not_offered_in_the_region(it: Deployment) -> None:
    it.has(not_offered={TYPE: [REGION]})


def no_such_type(it: Deployment) -> None:
    it.configure(CML_DEFAULT_INSTANCE_TYPE="m99.huge")


def small_quota(it: Deployment) -> None:
    it.has(quotas={"L-1216C47A": 5})


def used_quota(it: Deployment) -> None:
    run(it.ec2, InstanceType="c5.xlarge")
    run(it.ec2, InstanceType="x1e.xlarge")  # of another family, which counts elsewhere
    it.has(quotas={"L-1216C47A": 8})


def disabled_key(it: Deployment) -> None:
    it.has(ebs_key=EBS_KEY, keys={EBS_KEY: "PendingDeletion"})


def deleted_key(it: Deployment) -> None:
    it.has(ebs_key=EBS_KEY)


def tag_that_metadata_cannot_show(it: Deployment) -> None:
    it.configure(CML_DEFAULT_TAGS='{"cost center": "42"}')
    it.has(metadata_tags="enabled")


@pytest.mark.parametrize(
    ("without", "subject", "problem", "fix"),
    [
        (no_image, "image", "ami-00000000000000000 does not exist", "CML_WORKER_AMI_IDS"),
        (image_of_another_name, "image", "no available image is named 'cml-9.9'", "CML_WORKER_AMI_NAMES"),
        (image_of_a_stranger, "image", "of 111122223333 is available", "CML_IMAGE_OWNERS"),
        (two_images, "image", "2 images are named 'twice'", "CML_WORKER_AMI_IDS"),
        (image(state="pending"), "image", "is pending", "wait until it is available"),
        (image(architecture="arm64"), "image", f"is for arm64; {TYPE} has x86_64", "CML_DEFAULT_INSTANCE"),
        (image(root_device_type="instance-store"), "image", "no EBS root device", "make one with"),
        (no_image_configured, "settings", "no image is given", "CML_WORKER_AMI_IDS"),
        (no_region_configured, "settings", "no region has an image", "--region"),
        (region_that_is_not_enabled, "region", f"{OTHER} is not enabled", "aws account enable-region"),
        (region_that_there_is_not, "region", "AWS has no region us-east-9", "correct its name"),
        (no_subnet, "subnet", "subnet-00000000000000000 does not exist", "CML_WORKER_SUBNET_ID"),
        (full_subnet, "subnet", "no free addresses", "CML_WORKER_SUBNET_ID"),
        (no_group, "security group", "sg-00000000000000000 does not exist", "CML_WORKER_SECURITY_GROUP_IDS"),
        (group_of_another_network, "security group", "the subnet of vpc-", "of one VPC"),
        (no_key_pair, "key pair", "nobody's does not exist", "CML_WORKER_KEY_NAME"),
        (type_not_offered_in_the_zone, "instance type", f"not offered in {REGION}a", "CML_WORKER_SUBNET_ID"),
        (type_not_offered_in_the_region, "instance type", "in this region", "CML_DEFAULT_INSTANCE_TYPE"),
        (no_such_type, "instance type", "m99.huge is not offered", "CML_DEFAULT_INSTANCE_TYPE"),
        (small_quota, "quota", "needs 8 vCPUs; 0 of 5 are used", "L-1216C47A"),
        (used_quota, "quota", "needs 8 vCPUs; 4 of 8 are used", "Service Quotas"),
        (disabled_key, "encryption key", f"{EBS_KEY}, is PendingDeletion", "modify-ebs-default-kms-key-id"),
        (deleted_key, "encryption key", f"{EBS_KEY}, is NotFound", "modify-ebs-default-kms-key-id"),
        (tag_that_metadata_cannot_show, "metadata tags", "tag key 'cost center'", "CML_DEFAULT_TAGS"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_prerequisite_is_missing(
    deployment: Deployment, without: Any, subject: str, problem: str, fix: str
):
    """One line, that says what is missing and how to fix it."""
    without(deployment)
    (line,) = deployment.lines(MISSING)
    assert (line["status"], line["subject"]) == ("missing", subject)
    assert problem in line["problem"]
    assert fix in line["fix"]


@pytest.mark.parametrize(
    ("without", "region"),
    [(no_region_configured, ""), (small_quota, f" {REGION}"), (no_subnet, f" {REGION}")],
)
def test_it_is_said_in_one_line(deployment: Deployment, without: Any, region: str):
    without(deployment)
    (line,) = deployment.lines(MISSING)
    done = deployment.doctor()
    assert done.exit_code == MISSING
    assert done.stdout == f"missing{region}: {line['problem']}. To fix it: {line['fix']}\n"


def test_without_a_default_network_a_subnet_has_to_be_named(deployment: Deployment):
    deployment.configure(
        CML_WORKER_AMI_IDS=json.dumps({"eu-west-1": DEMO_IMAGES["eu-west-1"]}),
        CML_WORKER_SUBNET_ID="",
        CML_WORKER_SECURITY_GROUP_IDS="",
        CML_WORKER_KEY_NAME="",
    )
    assert deployment.lines(0) == []
    ec2 = client(deployment.admin.url, "eu-west-1")
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    (line,) = deployment.lines(MISSING)
    assert line["problem"] == "there is no default subnet"


def test_metadata_that_shows_tags_is_worth_a_note(deployment: Deployment):
    deployment.has(metadata_tags="enabled")
    (line,) = deployment.lines(0)
    assert (line["status"], line["subject"]) == ("note", "metadata tags")
    assert deployment.doctor().stdout.splitlines()[-1] == f"fine {REGION}"


def test_before_the_first_launch_rights_on_our_own_instances_cannot_be_seen(deployment: Deployment):
    """Without one, a policy that names our tag and none at all answer the same."""
    deployment.has(denied=["ec2:StopInstances", "ec2:CreateTags"])
    lines = deployment.lines(MISSING)  # a launch tags, which is refused as well
    assert [(line["status"], line["subject"]) for line in lines] == [("note", "right"), ("missing", "right")]
    deployment.has(denied=["ec2:StopInstances", "ec2:StartInstances"])
    (line,) = deployment.lines(0)
    assert line["problem"].startswith("ec2:StartInstances, ec2:StopInstances: ")
    assert line["fix"] == "run doctor again after the first launch"


KEY = "arn:aws:kms:us-east-1:123456789012:key/22222222-2222-3333-4444-555555555555"
PROFILE = """
[profiles.lab]
image = {{ id = "{image}" }}
instance_types = ["{type}", "m5.2xlarge"]
{more}
[profiles.lab.regions.us-east-1]
subnets = ["{subnet}", "{elsewhere}"]
"""


@pytest.fixture
def with_profile(deployment: Deployment, tmp_path: Path) -> Callable[..., None]:
    """A profile of two types and two subnets, in the place of the settings."""
    (elsewhere,) = deployment.shown("subnets", "availability-zone", f"{REGION}b", "default-for-az", "true")
    path = tmp_path / "profiles.toml"
    deployment.configure(
        CML_PROFILES_FILE=str(path),
        CML_WORKER_AMI_IDS="",
        CML_WORKER_SUBNET_ID="",
        CML_WORKER_SECURITY_GROUP_IDS="",
        CML_WORKER_KEY_NAME="",
    )

    def write(more: str = "", **changes: str) -> None:
        of_file = {
            "image": DEMO_IMAGES[REGION],
            "type": TYPE,
            "subnet": deployment.subnet["SubnetId"],
            "elsewhere": elsewhere["SubnetId"],
        }
        path.write_text(PROFILE.format(**{**of_file, **changes}, more=more))

    write()
    return write


def test_a_profile_is_examined_with_each_of_its_types_and_subnets(
    deployment: Deployment, with_profile: Callable[..., None]
):
    assert deployment.lines(0) == []
    dry = [
        (call["parameters"]["InstanceType"], call["parameters"]["SubnetId"])
        for call in deployment.asked()
        if call["operation"] == "RunInstances"
    ]
    first, second = dict.fromkeys(subnet for _, subnet in dry)
    assert dry == [(TYPE, first), ("m5.2xlarge", first), (TYPE, second)]


def test_one_of_several_types_or_subnets_is_worth_a_note_and_all_of_them_are_missing(
    deployment: Deployment, with_profile: Callable[..., None]
):
    deployment.has(not_offered={TYPE: [REGION]})
    (line,) = deployment.lines(0)
    assert (line["status"], line["problem"]) == ("note", f"{TYPE} is not offered in this region")
    assert "instance_types of profile lab" in line["fix"]
    deployment.has(not_offered={TYPE: [REGION], "m5.2xlarge": [REGION]})
    assert [line["status"] for line in deployment.lines(MISSING)] == ["missing", "missing"]
    deployment.admin.reset_account()
    subnet, free = deployment.subnet["SubnetId"], deployment.subnet["AvailableIpAddressCount"]
    deployment.admin.set_free_addresses(REGION, subnet, 0)
    (line,) = deployment.lines(0)
    assert (line["status"], line["problem"]) == ("note", f"subnet {subnet} has no free addresses")
    deployment.admin.set_free_addresses(REGION, subnet, free)


@pytest.mark.parametrize(
    ("more", "changes", "account", "subject", "problem"),
    [
        (
            "",
            {"elsewhere": "subnet-00000000000000000"},
            {},
            "subnet",
            "subnet-00000000000000000 does not exist",
        ),
        (
            f'root_volume = {{ kms_key = "{KEY}" }}',
            {},
            {"keys": {KEY: "Disabled"}},
            "encryption key",
            f"the key of the root volume, {KEY}, is Disabled",
        ),
        ("root_volume = { size_gib = 1 }", {}, {}, "image", "are asked for"),
        ('instance_profile = "nobody"', {}, {}, "launch", "nobody"),
    ],
)
def test_a_prerequisite_of_a_profile_is_missing(
    deployment: Deployment,
    with_profile: Callable[..., None],
    more: str,
    changes: dict[str, str],
    account: dict[str, Any],
    subject: str,
    problem: str,
):
    with_profile(more, **changes)
    deployment.has(**account)
    (line,) = deployment.lines(MISSING)
    assert (line["status"], line["subject"]) == ("missing", subject)
    assert problem in line["problem"]
    assert "profile lab" in line["fix"]


def test_types_without_nested_virtualization_are_missing_where_a_profile_wants_it(
    deployment: Deployment, with_profile: Callable[..., None]
):
    with_profile("nested_virtualization = true")
    lines = deployment.lines(MISSING)
    assert [line["problem"] for line in lines] == [
        f"{name} has no nested virtualization" for name in (TYPE, "m5.2xlarge")
    ]


def test_a_key_of_the_profile_takes_the_place_of_the_default_one(
    deployment: Deployment, with_profile: Callable[..., None]
):
    with_profile(f'root_volume = {{ kms_key = "{KEY}" }}')
    deployment.has(keys={KEY: "Enabled"}, ebs_key=EBS_KEY)
    assert deployment.lines(0) == []


def test_what_two_profiles_lack_is_said_once(deployment: Deployment, with_profile: Callable[..., None]):
    with_profile('key = "nobody"')
    path = Path(os.environ["CML_PROFILES_FILE"])
    path.write_text(path.read_text() + path.read_text().replace("profiles.lab", "profiles.course"))
    assert [line["problem"] for line in deployment.lines(MISSING)] == ["key pair nobody does not exist"]


def test_a_file_of_profiles_that_cannot_be_used_is_said_first(
    deployment: Deployment, with_profile: Callable[..., None]
):
    with_profile("colour = 1")
    done = deployment.doctor()
    assert done.exit_code == UNKNOWN
    assert "profile lab, colour: there is no such field" in done.stderr


def test_what_is_missing_counts_more_than_what_cannot_be_asked(deployment: Deployment):
    deployment.has(denied=["ec2:DescribeKeyPairs"], quotas={"L-1216C47A": 5})
    assert {line["status"] for line in deployment.lines(MISSING)} == {"missing", "unknown"}


def test_one_region_does_not_hide_another(deployment: Deployment):
    region_that_is_not_enabled(deployment)
    deployment.has(quotas={"L-1216C47A": 5})
    lines = deployment.lines(MISSING)
    assert {(line["region"], line["subject"]) for line in lines} == {(REGION, "quota"), (OTHER, "region")}
    done = deployment.doctor("--region", REGION, "--json")
    assert {line["region"] for line in json.loads(done.stdout)["lines"]} == {REGION}
    assert json.loads(done.stdout)["regions"] == [REGION]


@pytest.mark.parametrize("code", ["InternalError", "AuthFailure", "RequestLimitExceeded"])
def test_an_account_that_cannot_be_asked_is_unknown(deployment: Deployment, code: str):
    for operation in ("DescribeRegions", "DescribeInstances"):
        deployment.admin.fault(operation, code, times=None)
    (line,) = deployment.lines(UNKNOWN)
    assert (line["status"], line["subject"]) == ("unknown", "EC2")
    assert code in line["problem"]


def test_nobody_at_the_address_is_unknown(deployment: Deployment):
    deployment.configure(AWS_ENDPOINT_URL="http://127.0.0.1:9")
    (line,) = deployment.lines(UNKNOWN)
    assert "no answer" in line["problem"]


@pytest.mark.parametrize("queue", ["cml.ec2.lookups", PROBES.name])
def test_queues_that_are_not_on_all_nodes_are_said(deployment: Deployment, queue: str):
    queues = [name for each in QUEUES for name in (each.name, *retry_queues(each))]
    with management_api({**dict.fromkeys(queues, 3), queue: 1}) as api:
        deployment.configure(RABBITMQ_URL="amqp://h/", RABBITMQ_MANAGEMENT_URL=api.url)
        (line,) = deployment.lines(MISSING)
        assert (line["region"], line["subject"], line["status"]) == ("", "queue", "missing")
        assert line["problem"] == f"fewer replicas than the 3 nodes of RabbitMQ: {queue} 1"
        assert "rabbitmq-queues grow" in line["fix"]
        api.queues[queue] = 3
        assert deployment.lines(0) == []
        api.status = 401
        (line,) = deployment.lines(UNKNOWN)
        assert "has not the tag monitoring" in line["problem"]
    deployment.configure(RABBITMQ_MANAGEMENT_URL="")
    (line,) = deployment.lines(0)
    assert (line["status"], line["fix"]) == ("note", "set RABBITMQ_MANAGEMENT_URL")


def test_without_ec2_it_says_what_to_set(deployment: Deployment, tmp_path: Any):
    deployment.configure(AWS_ENDPOINT_URL="", CML_DATA_DIR=str(tmp_path))
    done = deployment.doctor()
    assert done.exit_code == UNKNOWN
    assert "CML_AWS=true" in done.stderr


def test_it_makes_every_call_of_the_adapter_as_a_dry_run():
    dry = {each.form["Action"] for each in all_sent_by_doctor() if each.form.get("DryRun") == "true"}
    assert dry == listed().keys()


@pytest.mark.parametrize(
    "each",
    [each for each in all_sent_by_doctor() if ":" not in each.form["Action"]],
    ids=lambda each: each.form["Action"],
)
def test_ec2_takes_every_request_of_the_doctor(each: Sent):
    check(each.form)


def test_the_help_teaches():
    shown = " ".join(CliRunner().invoke(app, ["doctor", "--help"], env={"COLUMNS": "200"}).stdout.split())
    for words in (
        "Nothing is launched or changed",
        "0 nothing is missing",
        "1 something is",
        "statement Doctor",
    ):
        assert words in shown
