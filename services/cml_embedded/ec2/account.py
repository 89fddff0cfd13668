"""What the account is set up with in each region, and may lack: ``POST /simulator/account/REGION`` takes it away."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cml_embedded.ec2 import iam
from cml_embedded.ec2.answers import Answer, Refusal, response
from cml_embedded.ec2.backend import Backend

STANDARD_QUOTA = "L-1216C47A"
"""Running On-Demand Standard instances, in vCPUs (Service Quotas)."""
ACCOUNT_ID = "123456789012"
_EBS_KEY = "alias/aws/ebs"
_METADATA_KEY = re.compile(r"(?!(\.|\.\.|_index)$)[0-9a-zA-Z\-_+=,.@:]{1,255}")
"""Keys of tags that instance metadata can show (EC2 user guide, *View tags for your EC2 instances using instance metadata*)."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One region of the account.

    ``denied``: actions that the caller's policies do not allow, as ``ec2:RunInstances``; ``not_offered``: instance types that
    a zone, or the whole region, does not have; ``quotas``: in vCPUs, by their codes; ``keys``: states of customer keys by their
    ARNs; ``instance_profiles``: by their names; ``policies``: by access key, what its user may do to instances that are there.
    """

    enabled: bool = True
    denied: tuple[str, ...] = ()
    not_offered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    quotas: Mapping[str, int] = field(default_factory=dict)
    ebs_encryption: bool = False
    ebs_key: str = _EBS_KEY
    keys: Mapping[str, str] = field(default_factory=dict)
    instance_profiles: tuple[str, ...] = ()
    metadata_tags: str = "no-preference"
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Account:
    """``vcpu_limit``: the quota of standard types where no region has another one; None: as many as anybody starts."""

    def __init__(self, backend: Backend, vcpu_limit: int | None) -> None:
        self._backend = backend
        self._vcpu_limit = vcpu_limit
        self._regions: dict[str, Setup] = {}

    def of(self, region: str) -> Setup:
        return self._regions.get(region, Setup())

    def change(self, region: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """What is set up now. Raises TypeError: there is no such field."""
        setup = self._regions[region] = replace(self.of(region), **changes)
        return asdict(setup)

    def reset(self) -> None:
        """Nothing is missing any more."""
        self._regions.clear()

    def authorize(self, region: str, action: str) -> None:
        """Raise EC2's refusal of a caller that may not do this here."""
        setup = self.of(region)
        if not setup.enabled:
            raise Refusal(
                "AuthFailure", "AWS was not able to validate the provided access credentials", status=401
            )
        if action in setup.denied:
            raise Refusal(
                "UnauthorizedOperation",
                "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/simulator is not "
                f"authorized to perform: {action} because no identity-based policy allows the {action} action",
                status=403,
            )

    def authorize_change(
        self, region: str, access_key: str, form: Mapping[str, str], instance_id: str, tags: Mapping[str, str]
    ) -> None:
        """Likewise of a change of an instance with these ``tags``, by whose key has a policy here."""
        policy = self.of(region).policies.get(access_key)
        if policy is not None and form["Action"] in iam.CHANGES:
            iam.check(policy, form, f"arn:aws:ec2:{region}:{ACCOUNT_ID}:instance/{instance_id}", tags)

    def quota(self, region: str) -> int | None:
        """VCPUs of standard types that may run at once; None: no limit."""
        return self.of(region).quotas.get(STANDARD_QUOTA, self._vcpu_limit)

    def is_offered(self, region: str, instance_type: str, zone: str | None) -> bool:
        """In the zone, or in any one of the region."""
        zones = [zone] if zone else self._backend.zones(region)
        return any(
            self._backend.is_offered(region, instance_type, each)
            and not self._is_withdrawn(region, instance_type, each)
            for each in zones
        )

    def check_tag_keys(self, region: str, form: Mapping[str, str], launch: Mapping[str, str]) -> None:
        """Raise EC2's refusal of keys that the metadata of the instance cannot show, where its ``launch`` has it show them."""
        shown = launch.get("MetadataOptions.InstanceMetadataTags", self.of(region).metadata_tags)
        for name, value in form.items():
            if (
                shown == "enabled"
                and re.search(r"(^|\.)Tag\.\d+\.Key$", name)
                and not _METADATA_KEY.fullmatch(value)
            ):
                raise Refusal(
                    "InvalidParameterValue",
                    f"'{value}' is not a valid tag key. Tag keys must match pattern ([0-9a-zA-Z\\-_+=,.@:]{{1,255}}), and "
                    "must not be a reserved name ('.', '..', '_index')",
                )

    def check_instance_profile(self, region: str, form: Mapping[str, str]) -> None:
        """Raise EC2's refusal of an instance profile that there is not."""
        for part in ("Name", "Arn"):
            given = form.get(f"IamInstanceProfile.{part}")
            if given is not None and given.rpartition("/")[2] not in self.of(region).instance_profiles:
                raise Refusal(
                    "InvalidParameterValue",
                    f"Value ({given}) for parameter iamInstanceProfile.{part.lower()} is invalid. "
                    f"Invalid IAM Instance Profile {part if part == 'Arn' else 'name'}",
                )

    def lost_key(self, region: str, form: Mapping[str, str]) -> tuple[str, str] | None:
        """Why an instance does not live whose key cannot be used, as EC2 shows it; a launch does not look at keys.

        EBS user guide, *Amazon EBS encryption*: a key that is not valid makes a request fail later, without an error.
        """
        keys = {value for name, value in form.items() if name.endswith(".Ebs.KmsKeyId")}
        if all(self.of(region).keys.get(key) == "Enabled" for key in keys):
            return None
        code = "Client.InvalidKMSKey.InvalidState"
        return code, f"{code}: The KMS key provided is in an incorrect state"

    def answer(self, region: str, form: Mapping[str, str]) -> Answer | None:
        """The answer to an action about the account itself; None: it is about something else."""
        setup = self.of(region)
        match form["Action"]:
            case "DescribeRegions":
                return 200, response("DescribeRegions", self._regions_shown(form))
            case "GetEbsDefaultKmsKeyId" as action:
                return 200, response(action, f"<kmsKeyId>{setup.ebs_key}</kmsKeyId>")
            case "GetEbsEncryptionByDefault" as action:
                shown = str(setup.ebs_encryption).lower()
                return 200, response(action, f"<ebsEncryptionByDefault>{shown}</ebsEncryptionByDefault>")
            case "GetInstanceMetadataDefaults" as action:
                shown = f"<instanceMetadataTags>{setup.metadata_tags}</instanceMetadataTags>"
                return 200, response(action, f"<accountLevel>{shown}</accountLevel>")
            case _:
                return None

    def corrected(self, region: str, form: Mapping[str, str], answer: Answer) -> Answer:
        """Moto's answer with what was taken away."""
        status, content = answer
        if status == 200 and form["Action"] == "DescribeInstanceTypeOfferings":
            content = re.sub(
                rb"<item><instanceType>([^<]*)</instanceType>.*?<location>([^<]*)</location>.*?</item>",
                lambda item: (
                    b"" if self._is_withdrawn(region, item[1].decode(), item[2].decode()) else item[0]
                ),
                content,
            )
        return status, content

    def other_service(self, region: str, target: str, body: bytes) -> Answer:
        """Service Quotas and KMS, as far as they are about what EC2 needs."""
        asked = json.loads(body or b"{}")
        try:
            match target.rpartition(".")[2]:
                case "GetServiceQuota":
                    self.authorize(region, "servicequotas:GetServiceQuota")
                    return 200, json.dumps({"Quota": self._quota(region, asked)}).encode()
                case "DescribeKey":
                    self.authorize(region, "kms:DescribeKey")
                    return 200, json.dumps({"KeyMetadata": self._key(region, asked["KeyId"])}).encode()
                case other:
                    raise Refusal("UnknownOperationException", other)  # noqa: TRY301 - an answer like the others
        except Refusal as refusal:
            code = {
                "UnauthorizedOperation": "AccessDeniedException",
                "AuthFailure": "UnrecognizedClientException",
            }
            problem = {"__type": code.get(refusal.code, refusal.code), "message": str(refusal)}
            return 400, json.dumps(problem).encode()

    def _is_withdrawn(self, region: str, instance_type: str, location: str) -> bool:
        withdrawn = self.of(region).not_offered.get(instance_type, ())
        return region in withdrawn or location in withdrawn

    def _regions_shown(self, form: Mapping[str, str]) -> str:
        named = {value for name, value in form.items() if name.startswith("RegionName.")}
        known = self._backend.regions()
        for name in named - known.keys():
            raise Refusal("InvalidParameterValue", f"Invalid region names: [{name}]")
        items = []
        for name, endpoint in known.items():
            enabled = self.of(name).enabled
            if (named and name not in named) or not (enabled or form.get("AllRegions") == "true"):
                continue
            status = "opt-in-not-required" if enabled else "not-opted-in"
            items.append(
                f"<item><regionName>{name}</regionName><regionEndpoint>{endpoint}</regionEndpoint>"
                f"<optInStatus>{status}</optInStatus></item>"
            )
        return f"<regionInfo>{''.join(items)}</regionInfo>"

    def _quota(self, region: str, asked: Mapping[str, str]) -> dict[str, Any]:
        code = asked["QuotaCode"]
        value = self.of(region).quotas.get(code, self._vcpu_limit if code == STANDARD_QUOTA else None)
        if asked["ServiceCode"] != "ec2" or not re.fullmatch("L-[0-9A-F]{8}", code):
            raise Refusal("NoSuchResourceException", f"The request failed because of no quota {code}")
        return {
            "ServiceCode": "ec2",
            "QuotaCode": code,
            "Value": 1152.0 if value is None else float(value),
            "Unit": "None",
        }

    def _key(self, region: str, key_id: str) -> dict[str, Any]:
        state = self.of(region).keys.get(key_id)
        if state is None:
            raise Refusal("NotFoundException", f"Key '{key_id}' does not exist")
        return {
            "AWSAccountId": ACCOUNT_ID,
            "KeyId": key_id.rpartition("/")[2],
            "Arn": key_id,
            "KeyState": state,
            "Enabled": state == "Enabled",
            "KeyManager": "CUSTOMER",
        }
