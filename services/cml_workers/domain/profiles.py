"""Launch profiles: what is launched under a name in a region, and which of it a command gets. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from cml_contracts.instance import LaunchPlace, RootVolume
from cml_contracts.model import Strict
from cml_contracts.results import ProblemCode
from cml_contracts.texts import AmiId, Form, InstanceType, Tags, Text
from cml_workers.domain.decisions import rejected

DEFAULT = "default"
"""The profile of a create that names none."""
MOST_USER_DATA = 16_384
"""Bytes (EC2 user guide, *Run commands when you launch an EC2 instance with user data input*)."""

ImageOwner = Annotated[str, Form("self|[0-9]{12}", "self or the 12 digits of an AWS account")]
SecurityGroupId = Annotated[
    str, Form(r"sg-[0-9a-f]{8,17}", "the id of a security group: sg- and hexadecimal digits")
]
SubnetId = Annotated[
    str, Form(r"subnet-[0-9a-f]{8,17}", "the id of a subnet: subnet- and hexadecimal digits")
]
KeyName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
"""https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateKeyPair.html"""
KmsKey = Annotated[
    str,
    Form(
        r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:(key|alias)/[\w/-]+",
        "the ARN of a KMS key or alias: arn:aws:kms:REGION:ACCOUNT:key/ID",
    ),
]
InstanceProfile = Annotated[
    str,
    Form(
        r"arn:aws[a-z-]*:iam::[0-9]{12}:instance-profile/[\w+=,.@/-]+|[\w+=,.@-]{1,128}",
        "the name or the ARN of an IAM instance profile",
    ),
]
"""https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateInstanceProfile.html"""

_METADATA_KEY = re.compile(r"(?!(\.|\.\.|_index)$)[0-9a-zA-Z\-_+=,.@:]+")
"""EC2 user guide, *View tags for your EC2 instances using instance metadata*."""
_REFERENCE = re.compile(
    r"[\"']?(\$|`|arn:|/|ssm:|secretsmanager:|\{\{)|(true|false|yes|no|null|~)\b|[\"']*$", re.IGNORECASE
)
_ASSIGNMENT = re.compile(
    r"(?<![\w.-])(?P<name>[\w.-]*(?:password|passwd|secret|token|api_?key|access_?key)[\w.-]*)[\"']?[ \t]*[:=][ \t]*(?P<value>[^\s#]*)",
    re.IGNORECASE,
)
_ARN = re.compile(r"arn:[^\s\"')]+")
_OF_REFERENCES = re.compile(r"(arn|id|name|file|path|url|ttl)s?", re.IGNORECASE)
_CREDENTIALS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|://[^/\s:@]+:[^/\s:@${]+@"
)
"""Private keys, ids of AWS access keys (IAM user guide, *Unique identifiers*), passwords in URLs."""


def _usable_user_data(text: str) -> str:
    if len(text.encode()) > MOST_USER_DATA:
        raise ValueError(f"has {len(text.encode())} bytes; EC2 takes {MOST_USER_DATA}")
    for number, line in enumerate(text.splitlines(), 1):
        if name := _secret(line):
            raise ValueError(
                f"line {number} looks like a secret ({name}): whoever may describe instances or reads events would see it; "
                "name one of Secrets Manager or SSM by its ARN, and let the instance read it by its instance profile"
            )
    return text


def _secret(line: str) -> str | None:
    if _CREDENTIALS.search(line):
        return "a key or a password"
    for found in _ASSIGNMENT.finditer(_ARN.sub("arn:", line)):
        last = re.split(r"[_.-]", found["name"])[-1]
        if not _REFERENCE.match(found["value"]) and not _OF_REFERENCES.fullmatch(last):
            return found["name"]
    return None


class Image(Strict):
    """Named by its ``id``, or by its ``name`` among those of its ``owner``; unset: those of CML_IMAGE_OWNERS."""

    id: AmiId | None = None
    name: Text | None = None
    owner: ImageOwner | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.id is None) == (self.name is None):
            raise ValueError("must have either id or name")
        if self.id is not None and self.owner is not None:
            raise ValueError("owner goes with a name; an id is of one image alone")
        return self


class Volume(Strict):
    """The root volume; what is unset is as in the image. It is always encrypted: unset ``kms_key``: by the region's default."""

    size_gib: Annotated[int, Field(ge=1, le=16_384)] | None = None
    type: Literal["gp3", "gp2"] | None = None
    kms_key: KmsKey | None = None

    @property
    def root_volume(self) -> RootVolume | None:
        """As a launch asks for it; None: as in the image."""
        if self == Volume():
            return None
        return RootVolume(size_gib=self.size_gib, volume_type=self.type, kms_key_id=self.kms_key)


class RegionProfile(Strict):
    """What a profile launches in one region. ``instance_types`` and ``subnets`` in the order of preference.

    ``metadata_tags``: whether instance metadata shows the tags; None: as the account prescribes.
    """

    image: Image | None = None
    instance_types: Annotated[tuple[InstanceType, ...], Field(min_length=1)]
    subnets: tuple[SubnetId, ...] = ()
    security_groups: tuple[SecurityGroupId, ...] = ()
    key: KeyName | None = None
    root_volume: Volume = Volume()
    instance_profile: InstanceProfile | None = None
    user_data: Annotated[str, AfterValidator(_usable_user_data)] | None = None
    nested_virtualization: bool = False
    metadata_tags: bool | None = None
    tags: Tags = {}


@dataclass(frozen=True, slots=True)
class Profile:
    """``regions``: where it launches; ``elsewhere``: in all others, None: nowhere else.

    ``any_type``: it launches every instance type; its ``instance_types`` are what a command that names none gets.
    """

    name: str
    regions: Mapping[str, RegionProfile] = field(default_factory=dict)
    elsewhere: RegionProfile | None = None
    any_type: bool = False

    def of(self, region: str) -> RegionProfile | None:
        """What it launches there; None: nothing."""
        return self.regions.get(region, self.elsewhere)


Profiles = Mapping[str, Profile]
"""By their names."""


def default_profile(
    *,
    images: Mapping[str, Image] | None = None,
    instance_type: str = "c5.2xlarge",
    subnet: str | None = None,
    security_groups: tuple[str, ...] = (),
    key: str | None = None,
) -> Profile:
    """The one that needs no file: ``images`` by region, all else the same everywhere, and every instance type."""
    everywhere = RegionProfile(
        instance_types=(instance_type,),
        subnets=(subnet,) if subnet else (),
        security_groups=security_groups,
        key=key,
    )
    regions = {
        region: everywhere.model_copy(update={"image": image}) for region, image in (images or {}).items()
    }
    return Profile(DEFAULT, regions, elsewhere=everywhere, any_type=True)


def choose(profiles: Profiles, name: str | None, region: str) -> tuple[Profile, RegionProfile]:
    """The profile of a launch. Raises RejectedError: there is none, or it does not launch in this region."""
    profile = profiles.get(name or DEFAULT)
    if profile is None:
        raise rejected(
            ProblemCode.VALIDATION_FAILED,
            f"there is no profile {name or DEFAULT!r}; there are: {_listed(profiles)}",
        )
    chosen = profile.of(region)
    if chosen is None:
        raise rejected(
            ProblemCode.VALIDATION_FAILED,
            f"profile {profile.name!r} has no region {region}; it has: {_listed(profile.regions)}",
        )
    return profile, chosen


def no_image(profile: Profile, region: str) -> Exception:
    """The rejection of a create for which nobody names an image."""
    known = [each for each, of_region in profile.regions.items() if of_region.image]
    return rejected(
        ProblemCode.VALIDATION_FAILED,
        f"no image is given, and profile {profile.name!r} has none in region {region}; it has one in: {_listed(known)}",
    )


def places(profile: Profile, chosen: RegionProfile, wanted: str | None) -> list[LaunchPlace]:
    """Where to launch, the preferred place first: each type in each subnet, before the next type.

    ``wanted``: the type of the command. Raises RejectedError: it is none of the profile's.
    """
    if wanted is not None and not profile.any_type and wanted not in chosen.instance_types:
        raise rejected(
            ProblemCode.VALIDATION_FAILED,
            f"profile {profile.name!r} does not launch {wanted}; it launches: {', '.join(chosen.instance_types)}",
        )
    return [
        LaunchPlace(
            instance_type=instance_type,
            subnet_id=subnet,
            nested_virtualization=chosen.nested_virtualization and not _is_metal(instance_type),
        )
        for instance_type in ((wanted,) if wanted else chosen.instance_types)
        for subnet in (chosen.subnets or (None,))
    ]


def _is_metal(instance_type: str) -> bool:
    """Such types run virtual machines as they are, and refuse the option for nested virtualization."""
    return instance_type.partition(".")[2].startswith("metal")


def can_be_shown(key: str) -> bool:
    """Whether instance metadata can show a tag with this key."""
    return _METADATA_KEY.fullmatch(key) is not None


def check_metadata_keys(chosen: RegionProfile, tags: Mapping[str, str]) -> None:
    """Raises RejectedError: instance metadata, which has to show the tags, cannot show one of them."""
    wrong = [key for key in tags if not can_be_shown(key)]
    if chosen.metadata_tags and wrong:
        raise rejected(
            ProblemCode.VALIDATION_FAILED,
            f"tag key {wrong[0]!r} cannot be shown in instance metadata, as the profile asks for: letters, digits and "
            "-_+=,.@: only, and not ., .. or _index",
        )


def inconsistencies(region: str, chosen: RegionProfile, default_tags: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with a profile beyond its single fields."""
    key = chosen.root_volume.kms_key
    if key and key.split(":")[3] != region:
        yield f"root_volume.kms_key: is of region {key.split(':')[3]}"
    for name in ("instance_types", "subnets", "security_groups"):
        values = getattr(chosen, name)
        if twice := sorted({each for each in values if values.count(each) > 1}):
            yield f"{name}: {twice[0]} is there twice"
    if chosen.metadata_tags:
        for tag in {**default_tags, **chosen.tags}:
            if not can_be_shown(tag):
                yield f"tags: {tag!r} cannot be shown in instance metadata: letters, digits and -_+=,.@: only"


def _listed(names: Mapping[str, object] | list[str]) -> str:
    return ", ".join(sorted(names)) or "none"
