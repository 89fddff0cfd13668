"""The IAM policy of the adapter, evaluated as AWS does: what no fleet may do to what is not its own, whatever the rules decided."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cml_embedded.ec2 import iam

POLICY = json.loads((Path(__file__).parents[2] / "deploy/aws/iam-policy.json").read_text())
OURS, THEIRS = "DEPLOYMENT", "other"
INSTANCE = "arn:aws:ec2:REGION:ACCOUNT_ID:instance/i-0123456789abcdef0"
DEPLOYMENT, WORKER, CONSENT = "cml:deployment", "cml:worker-id", "cml:import"
POWER = ("ec2:StartInstances", "ec2:StopInstances", "ec2:TerminateInstances")


def tagged(deployment: str | None, consent: str | None = None) -> dict[str, str]:
    """An instance with this deployment's tag, and its owner's consent to an import, as a condition sees them."""
    tags = {DEPLOYMENT: deployment, CONSENT: consent}
    return {f"aws:ResourceTag/{key}": value for key, value in tags.items() if value}


def asking_for(tags: Mapping[str, str], **more: str) -> dict[str, Any]:
    """The tags of a request, likewise."""
    return {
        "aws:TagKeys": list(tags),
        **{f"aws:RequestTag/{key}": value for key, value in tags.items()},
        **more,
    }


def allows(action: str, context: Mapping[str, Any], resource: str = INSTANCE) -> bool:
    return iam.allows(POLICY, action, context, resource)


@pytest.mark.parametrize("action", POWER)
def test_power_is_over_instances_of_this_deployment_alone(action: str):
    assert allows(action, tagged(OURS))
    assert not allows(action, tagged(THEIRS))
    assert not allows(action, tagged(None))
    assert not allows(action, tagged(None, consent=OURS))


@pytest.mark.parametrize(
    ("instance", "consent", "tags", "allowed"),
    [
        (OURS, None, {"course": "a"}, True),
        (THEIRS, OURS, {"course": "a"}, False),
        (None, OURS, {"course": "a"}, False),
        (None, OURS, {DEPLOYMENT: OURS, WORKER: "w"}, True),
        (None, None, {DEPLOYMENT: OURS, WORKER: "w"}, False),
        (None, THEIRS, {DEPLOYMENT: OURS, WORKER: "w"}, False),
        (OURS, OURS, {DEPLOYMENT: OURS, WORKER: "w"}, True),
        (OURS, None, {DEPLOYMENT: OURS, WORKER: "w"}, False),
        (THEIRS, OURS, {DEPLOYMENT: OURS, WORKER: "w"}, False),
        (None, OURS, {DEPLOYMENT: OURS, "course": "a"}, False),
        (None, OURS, {DEPLOYMENT: THEIRS, WORKER: "w"}, False),
        (OURS, OURS, {DEPLOYMENT: THEIRS}, False),
        (OURS, OURS, {WORKER: "w"}, False),
        (OURS, None, {CONSENT: OURS}, False),
        (None, OURS, {CONSENT: OURS}, False),
        (THEIRS, OURS, {WORKER: "w"}, False),
    ],
)
def test_an_instance_is_neither_tagged_nor_adopted_without_its_owners_consent_nor_given_away(
    instance: str | None, consent: str | None, tags: dict[str, str], allowed: bool
):
    assert allows("ec2:CreateTags", {**tagged(instance, consent), **asking_for(tags)}) is allowed


def test_nothing_is_launched_for_another_deployment():
    launch = {"ec2:InstanceType": "INSTANCE_TYPE", "ec2:MetadataHttpTokens": "required"}
    assert allows("ec2:RunInstances", asking_for({DEPLOYMENT: OURS, WORKER: "w"}, **launch))
    assert not allows("ec2:RunInstances", asking_for({DEPLOYMENT: THEIRS, WORKER: "w"}, **launch))
    assert not allows("ec2:RunInstances", asking_for({DEPLOYMENT: OURS}, **launch))
    assert not allows("ec2:RunInstances", asking_for({}, **launch))


def test_tags_at_a_launch_are_no_way_to_an_instance_that_is_there():
    assert allows("ec2:CreateTags", asking_for({WORKER: "w"}, **{"ec2:CreateAction": "RunInstances"}))
    assert not allows("ec2:CreateTags", {**tagged(THEIRS), **asking_for({WORKER: "w"})})


@pytest.mark.parametrize("sid", ["PowerOfOurs", "AdoptOnImport", "TagOursLater"])
def test_a_policy_without_one_of_its_conditions_would_be_seen(sid: str, monkeypatch: pytest.MonkeyPatch):
    """The test of the test."""
    statement = next(each for each in POLICY["Statement"] if each["Sid"] == sid)
    theirs = {
        **tagged(THEIRS, OURS),
        **asking_for({DEPLOYMENT: OURS} if sid == "AdoptOnImport" else {"course": "a"}),
    }
    actions = statement["Action"]
    action = actions if isinstance(actions, str) else actions[0]
    assert not allows(action, theirs)
    conditions = {
        operator: kept
        for operator, keys in statement["Condition"].items()
        if (kept := {key: each for key, each in keys.items() if not key.startswith("aws:ResourceTag/")})
    }
    monkeypatch.setitem(statement, "Condition", conditions)
    assert allows(action, theirs)
