"""What a launch gets of a profile, and what a profile lacks."""

from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError

from cml_contracts.events import LaunchRequested
from cml_contracts.instance import LaunchParameters, LaunchPlace, RootVolume
from cml_workers.domain.messages import ImageLookup
from cml_workers.domain.profiles import MOST_USER_DATA, Image, Profile, RegionProfile, Volume, default_profile
from support.given import create as given_create
from support.given import created, given, launch

KEY = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-4333-8444-555555555555"
IRELAND = RegionProfile(image=Image(name="cml", owner="123456789012"), instance_types=("m8i.4xlarge",))
LAB = Profile(
    "lab",
    {
        "us-east-1": RegionProfile(
            image=Image(id="ami-22222222"),
            instance_types=("m8i.4xlarge", "m5zn.metal"),
            subnets=("subnet-11111111", "subnet-22222222"),
            security_groups=("sg-11111111",),
            key="operators",
            root_volume=Volume(size_gib=64, type="gp3", kms_key=KEY),
            instance_profile="cml-worker",
            user_data="#cloud-config\n",
            nested_virtualization=True,
            metadata_tags=True,
            tags={"course": "ccna", "team": "labs"},
        ),
        "eu-west-1": IRELAND,
        "eu-north-1": RegionProfile(instance_types=("m8i.4xlarge",)),
    },
)
create = partial(given_create, ami_id=None, profile="lab")


def under(**policy: Any):
    return given().under(profiles={"default": default_profile(), "lab": LAB}, **policy)


def launch_in_lab(instance_type: str, **changes: Any) -> LaunchParameters:
    """In the first place of the profile, in its first region."""
    return launch(
        ami_id="ami-22222222",
        instance_type=instance_type,
        subnet_id="subnet-11111111",
        security_group_ids=("sg-11111111",),
        key_name="operators",
        root_volume=RootVolume(size_gib=64, volume_type="gp3", kms_key_id=KEY),
        instance_profile="cml-worker",
        user_data="#cloud-config\n",
        metadata_tags=True,
        **changes,
    )


def test_everything_of_a_profile_is_fixed_with_the_intent():
    """Whatever changes in the file later, a repeated launch is the same."""
    created_, requested = (
        created(profile="lab", ami_id="ami-22222222", instance_type="m8i.4xlarge", tags={"team": "net"}),
        LaunchRequested(
            operation_id="the-command",
            launch=launch_in_lab(
                "m8i.4xlarge",
                nested_virtualization=True,
                tags={"fleet": "a", "course": "ccna", **launch().tags, "team": "net"},
            ),
            alternatives=(
                LaunchPlace(
                    instance_type="m8i.4xlarge", subnet_id="subnet-22222222", nested_virtualization=True
                ),
                LaunchPlace(instance_type="m5zn.metal", subnet_id="subnet-11111111"),
                LaunchPlace(instance_type="m5zn.metal", subnet_id="subnet-22222222"),
            ),
        ),
    )
    case = under(default_tags={"fleet": "a", "course": "none"}).when(create(tags={"team": "net"}))
    assert case.then(created_, requested).profile == "lab"


def test_a_create_without_a_profile_is_of_the_default_one():
    case = under().when(given_create(instance_type="m5.large"))
    assert (
        case.then(created(), LaunchRequested(operation_id="the-command", launch=launch())).profile
        == "default"
    )


def test_an_images_owner_is_the_profiles():
    under().when(create(aws_region="eu-west-1")).then_asks(
        ImageLookup(aws_region="eu-west-1", ami_name="cml", owner="123456789012")
    )


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        ({"profile": "lap"}, "there is no profile 'lap'; there are: default, lab"),
        (
            {"aws_region": "ap-south-1"},
            "profile 'lab' has no region ap-south-1; it has: eu-north-1, eu-west-1, us-east-1",
        ),
        (
            {"aws_region": "eu-north-1"},
            "profile 'lab' has none in region eu-north-1; it has one in: eu-west-1, us-east-1",
        ),
        (
            {"instance_type": "m5.large"},
            "profile 'lab' does not launch m5.large; it launches: m8i.4xlarge, m5zn.metal",
        ),
        ({"tags": {"cost centre": "7"}}, "tag key 'cost centre' cannot be shown in instance metadata"),
        ({"tags": {"_index": "7"}}, "tag key '_index' cannot be shown in instance metadata"),
    ],
)
def test_what_a_profile_lacks_is_a_rejection_that_says_what_there_is(changes: dict[str, Any], saying: str):
    under().when(create(**changes)).then_rejected("ValidationFailed", saying=saying)


def test_one_of_a_profiles_types_can_be_chosen():
    """One of metal runs virtual machines as it is, and refuses the option."""
    decided = under().when(create(instance_type="m5zn.metal"))
    worker = decided.then(
        created(profile="lab", ami_id="ami-22222222", instance_type="m5zn.metal"),
        LaunchRequested(
            operation_id="the-command",
            launch=launch_in_lab(
                "m5zn.metal",
                nested_virtualization=False,
                tags={"course": "ccna", "team": "labs", **launch().tags},
            ),
            alternatives=(LaunchPlace(instance_type="m5zn.metal", subnet_id="subnet-22222222"),),
        ),
    )
    assert worker.instance_type == "m5zn.metal"


def test_the_deployments_allowed_types_hold_for_profiles():
    under(allowed_instance_types=frozenset({"m5.large"})).when(create()).then_rejected("ValidationFailed")


@pytest.mark.parametrize(
    "line",
    [
        "password: hunter2",
        "  admin_password = 'hunter2'",
        "export CML_LICENSE_TOKEN=YzUx",
        '{"api_key": "abc"}',
        "curl -u admin https://admin:hunter2@10.0.0.1/",
        "-----BEGIN RSA PRIVATE KEY-----",
        "AWS_ID AKIAIOSFODNN7EXAMPLE",
        "passwords: |",
    ],
)
def test_user_data_that_looks_like_a_secret_is_refused(line: str):
    with pytest.raises(ValidationError, match="line 2 looks like a secret"):
        RegionProfile(instance_types=("m5.large",), user_data=f"#cloud-config\n{line}\n")


@pytest.mark.parametrize(
    "line",
    [
        "lock_passwd: false",
        "admin_password_arn: arn:aws:secretsmanager:us-east-1:123456789012:secret:cml/admin",
        "password=$(aws secretsmanager get-secret-value --secret-id arn:aws:secretsmanager:us-east-1:1:secret:cml)",
        'token="$(cat /run/token)"',
        "secret_id: cml/admin",
        "curl https://example.org:8443/x",
        "# the password is not here",
    ],
)
def test_user_data_may_refer_to_secrets(line: str):
    RegionProfile(instance_types=("m5.large",), user_data=f"#cloud-config\n{line}\n")


def test_user_data_has_a_size():
    RegionProfile(instance_types=("m5.large",), user_data="é" * (MOST_USER_DATA // 2))
    with pytest.raises(ValidationError, match="has 16386 bytes; EC2 takes 16384"):
        RegionProfile(instance_types=("m5.large",), user_data="é" * (MOST_USER_DATA // 2 + 1))
