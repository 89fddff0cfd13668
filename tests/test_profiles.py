"""The file of launch profiles: what is wrong with it is said at start, with its place and what is allowed."""

from pathlib import Path

import pytest

from cml_workers.domain.policy import Policy
from cml_workers.domain.profiles import DEFAULT, Image, Volume
from cml_workers.process.system import single_role, system
from cml_workers.runtime.profiles import ProfilesError, read_profiles
from cml_workers.runtime.settings import Settings, SettingsError

EXAMPLE = Path(__file__).parents[1] / "deploy/profiles/profiles.toml"
LAB = """
[profiles.lab]
instance_types = ["m8i.4xlarge"]
root_volume = { size_gib = 64, type = "gp3" }
tags = { team = "net" }
[profiles.lab.regions.us-east-1]
image = { name = "cml" }
"""
KEY = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-4333-8444-555555555555"


def written(folder: Path, text: str) -> Path:
    path = folder / "profiles.toml"
    path.write_text(text)
    return path


def lines(path: Path, policy: Policy | None = None) -> list[str]:
    """What is said of the file, without its path."""
    with pytest.raises(ProfilesError) as raised:
        read_profiles(path, policy or Policy())
    said = str(raised.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in said)
    return [line.removeprefix(f"{path}: ") for line in said]


def test_a_region_has_what_the_profile_has_and_its_own(tmp_path: Path) -> None:
    region = f"""
[profiles.lab.regions.eu-west-1]
instance_types = ["m8i.8xlarge", "m8i.4xlarge"]
image = {{ id = "ami-11111111" }}
root_volume = {{ kms_key = "{KEY}" }}
tags = {{ course = "ccna" }}
"""
    lab = read_profiles(written(tmp_path, LAB + region), Policy())["lab"]
    assert lab.regions["us-east-1"].image == Image(name="cml")
    ireland = lab.regions["eu-west-1"]
    assert ireland.instance_types == ("m8i.8xlarge", "m8i.4xlarge")
    assert ireland.root_volume == Volume(size_gib=64, type="gp3", kms_key=KEY)
    assert ireland.tags == {"team": "net", "course": "ccna"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("instance_types =", "instance_type ="), "profile lab, instance_type: there is no such field; did you mean instance_types?"),
        (("[profiles.lab]", "[profile.lab]"), "profile: there is no such field; did you mean profiles?"),
        (("us-east-1]\n", "us-east-1]\nsubnet = 'x'\n"), "profile lab, region us-east-1, subnet: there is no such field; did you mean subnets?"),
        (("size_gib", "size"), "profile lab, root_volume[size]: there is no such field; did you mean size_gib?"),
        (("= 64", "= '64'"), "profile lab, root_volume[size_gib]: Input should be a valid integer"),
        (("= 64", "= 0"), "profile lab, root_volume[size_gib]: Input should be greater than or equal to 1"),
        (("gp3", "gp9"), "profile lab, root_volume[type]: Input should be 'gp3' or 'gp2'"),
        (('["m8i.4xlarge"]', "[]"), "profile lab, instance_types: Tuple should have at least 1 item after validation, not 0"),
        (('["m8i.4xlarge"]', '["big"]'), "profile lab, instance_types[0]: must be an EC2 instance type, such as c5.2xlarge"),
        (('["m8i.4xlarge"]', '["m5.large", "m5.large"]'), "profile lab, region us-east-1, instance_types: m5.large is there twice"),
        (("us-east-1", "everywhere"), "profile lab, region everywhere: must be an AWS region, such as us-east-1"),
        (("profiles.lab", "profiles.LAB"), "profile LAB: must be the name of a profile: at most 63 of a-z, 0-9 and -, and not - first"),
        (('{ name = "cml" }', "{}"), "profile lab, region us-east-1, image: must have either id or name"),
        (('{ name = "cml" }', '{ id = "cml" }'), "profile lab, region us-east-1, image[id]: must be the id of an image: ami- and 8 to 17 hexadecimal digits in lower case"),
        (('{ name = "cml" }', '{ name = "cml", owners = "self" }'), "profile lab, region us-east-1, image[owners]: there is no such field; did you mean owner?"),
        (("team =", '"aws:team" ='), "profile lab, tags: tag key 'aws:team' begins with a reserved prefix (aws: or cml:)"),
        (("us-east-1]\n", "us-east-1]\nsubnets = ['subnet-1']\n"), "profile lab, region us-east-1, subnets[0]: must be the id of a subnet: subnet- and hexadecimal digits"),
        (("us-east-1]\n", f"us-east-1]\nroot_volume.kms_key = '{KEY}'\n"), "profile lab, region us-east-1, root_volume.kms_key: is of region eu-west-1"),
        (("us-east-1]\n", "us-east-1]\nmetadata_tags = true\ntags = { 'cost centre' = '7' }\n"), "profile lab, region us-east-1, tags: 'cost centre' cannot be shown in instance metadata: letters, digits and -_+=,.@: only"),
        (("us-east-1]\n", "us-east-1]\nuser_data = '#!/bin/sh'\n"), "profile lab, region us-east-1, user_data: there is no such field; did you mean user_data_file?"),
        (("us-east-1]\n", "us-east-1]\nuser_data_file = 7\n"), "profile lab, region us-east-1, user_data_file: must be the path of a file, from the folder of this one"),
        (("[profiles.lab.regions.us-east-1]", "[profiles.lab.region.us-east-1]"), "profile lab: has no region: each is a table [profiles.lab.regions.REGION]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place_and_what_is_allowed(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    assert change[0] in LAB
    assert said in lines(written(tmp_path, LAB.replace(*change)))


def test_everything_that_is_wrong_is_said_at_once_and_once(tmp_path: Path) -> None:
    text = LAB.replace("gp3", "gp9") + '[profiles.lab.regions.eu-west-1]\nkey = ""\n[profiles.other]\n'
    assert [line.partition(":")[0] for line in lines(written(tmp_path, text))] == [
        "profile lab, root_volume[type]",
        "profile lab, region eu-west-1, key",
        "profile other",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"profiles", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"", "has no profile: each is a table [profiles.NAME]"),
        (b"profiles = 1", "has no profile: each is a table [profiles.NAME]"),
        (b"[profiles]\nlab = 1", "profile lab: has no region"),
        (b"[profiles.lab.regions]\nus-east-1 = 1", "profile lab, region us-east-1: must be a table"),
    ],
)
def test_a_file_of_another_kind_is_an_error_in_a_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "profiles.toml"
    path.write_bytes(content)
    (line,) = lines(path)
    assert line.startswith(said)


def test_user_data_is_read_from_beside_the_file_and_held_to_its_rules(tmp_path: Path) -> None:
    path = written(tmp_path, LAB + 'user_data_file = "init.yaml"\n')
    assert lines(path) == [
        f"profile lab, region us-east-1, user_data_file: {tmp_path}/init.yaml cannot be read: No such file or directory"
    ]
    (tmp_path / "init.yaml").write_bytes(b"\xff")
    assert lines(path) == [
        f"profile lab, region us-east-1, user_data_file: {tmp_path}/init.yaml is not text in UTF-8"
    ]
    (tmp_path / "init.yaml").write_text("#cloud-config\npassword: hunter2\n")
    (line,) = lines(path)
    assert line.startswith(
        "profile lab, region us-east-1, user_data_file: line 2 looks like a secret (password)"
    )
    assert "hunter2" not in line
    (tmp_path / "init.yaml").write_text("x" * 16_385)
    assert lines(path) == ["profile lab, region us-east-1, user_data_file: has 16385 bytes; EC2 takes 16384"]
    (tmp_path / "init.yaml").write_text("#cloud-config\n")
    assert read_profiles(path, Policy())["lab"].regions["us-east-1"].user_data == "#cloud-config\n"


def test_profiles_are_held_to_what_the_deployment_allows(tmp_path: Path) -> None:
    policy = Policy(allowed_regions=frozenset({"eu-west-1"}), allowed_instance_types=frozenset({"m5.large"}))
    assert lines(written(tmp_path, LAB), policy) == [
        "profile lab, region us-east-1: is not among CML_ALLOWED_REGIONS: eu-west-1",
        "profile lab, instance_types: m8i.4xlarge is not among CML_ALLOWED_INSTANCE_TYPES",
    ]


async def test_a_process_with_wrong_profiles_does_not_start(tmp_path: Path) -> None:
    settings = Settings(profiles_file=tmp_path / "none.toml", data_dir=tmp_path)
    for start in (lambda: single_role("lifecycle", settings), lambda: system(settings)):
        with pytest.raises(ProfilesError, match=r"^CML_PROFILES_FILE: .*none.toml cannot be read"):
            async with start():
                pass


def test_only_who_launches_reads_the_file(tmp_path: Path) -> None:
    """The other roles may have the same settings, and no such file."""
    Settings(profiles_file=tmp_path / "none.toml").check_roles()


def test_the_settings_are_the_default_profile_unless_the_file_has_one(tmp_path: Path) -> None:
    lab = written(tmp_path, LAB)
    settings = Settings(profiles_file=lab, worker_ami_ids={"us-east-1": "ami-11111111"})
    settings.check_profiles()
    profiles = settings.policy.profiles
    assert profiles.keys() == {DEFAULT, "lab"}
    assert profiles[DEFAULT].regions["us-east-1"].image == Image(id="ami-11111111")
    written(tmp_path, LAB.replace("profiles.lab", f"profiles.{DEFAULT}"))
    assert settings.policy.profiles[DEFAULT].regions["us-east-1"].image == Image(name="cml")
    with pytest.raises(SettingsError, match=r"^CML_WORKER_AMI_IDS has no effect"):
        settings.check_profiles()


def test_the_example_is_a_fleet_as_one_would_run_it() -> None:
    profiles = read_profiles(EXAMPLE, Policy())
    assert len({region for profile in profiles.values() for region in profile.regions}) == 3
    for profile in profiles.values():
        for chosen in profile.regions.values():
            assert chosen.root_volume.size_gib == 64
            assert chosen.root_volume.kms_key
            assert chosen.nested_virtualization
            assert len(chosen.subnets) == 3
