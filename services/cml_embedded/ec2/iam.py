"""Policies evaluated as AWS does, as far as they are about EC2's instances.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from cml_embedded.ec2.answers import Refusal

CHANGES = frozenset(
    {
        "StartInstances",
        "StopInstances",
        "TerminateInstances",
        "CreateTags",
        "DeleteTags",
        "ModifyInstanceAttribute",
    }
)
"""Actions on instances that are there."""


def allows(policy: Mapping[str, Any], action: str, context: Mapping[str, Any], resource: str) -> bool:
    """Whether any statement does; none that denies is known here. Raises ValueError for an operator that is not."""
    return any(
        action in _list(statement["Action"])
        and any(fnmatch.fnmatchcase(resource, each) for each in _list(statement["Resource"]))
        and all(
            _holds(operator, values, context.get(key))
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        )
        for statement in policy["Statement"]
    )


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


def _holds(operator: str, wanted: str | Sequence[str], given: Any) -> bool:
    values = _list(wanted)
    match operator:
        case "StringEquals" | "Bool":
            return given in values
        case "StringEqualsIfExists":
            return given is None or given in values
        case "Null":
            return (given is None) == (values == ["true"])
        case "ForAllValues:StringEquals":
            return all(each in values for each in given or [])
        case "ForAllValues:StringNotLike":
            return not any(fnmatch.fnmatchcase(each, value) for each in given or [] for value in values)
        case _:
            raise ValueError(f"the operator {operator} is not known")


def check(policy: Mapping[str, Any], form: Mapping[str, str], resource: str, tags: Mapping[str, str]) -> None:
    """Raise EC2's refusal of a change of an instance with these ``tags`` that the policy does not allow."""
    action = f"ec2:{form['Action']}"
    asked = {
        value: form.get(name.removesuffix("Key") + "Value", "")
        for name, value in form.items()
        if name.startswith("Tag.") and name.endswith(".Key")
    }
    context = {
        **{f"aws:ResourceTag/{key}": value for key, value in tags.items()},
        **{f"aws:RequestTag/{key}": value for key, value in asked.items()},
        "aws:TagKeys": list(asked),
    }
    if not allows(policy, action, context, resource):
        raise Refusal(
            "UnauthorizedOperation",
            f"You are not authorized to perform this operation. No identity-based policy allows the {action} action on "
            f"resource: {resource}",
            status=403,
        )
