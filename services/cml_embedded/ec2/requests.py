"""Requests as EC2 takes them: by the service model that the SDK ships, and by the filters documented for that very action.

So a request that only AWS would refuse is refused here as well.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache

import botocore.session
from botocore.model import ListShape, OperationModel, OperationNotFoundError, Shape, StructureShape

from cml_embedded.ec2.answers import Refusal

COMMON = frozenset({"Action", "Version"})
MOST_FILTER_VALUES = 200
MOST_STATUSES = 100
"""Instances that DescribeInstanceStatus takes by their ids (EC2 API reference)."""
PAGES = range(5, 1001)
"""Values of MaxResults of the actions that describe instances, likewise."""
TAG_KEYS, TAG_VALUES = range(1, 129), range(257)
"""Lengths (EC2 user guide, *Tag restrictions*)."""

_NUMBER = re.compile(r"(?<=\.)[1-9][0-9]*(?=\.|$)")
_FILTER = re.compile(r"<li>\s*<p>\s*<code>([^<]+)</code>")


def check(form: Mapping[str, str]) -> None:
    """Raises Refusal, with EC2's code, for what EC2 would not take."""
    action = form.get("Action", "")
    try:
        operation = _model(action)
    except OperationNotFoundError:
        raise Refusal("InvalidAction", f"The action {action} is not valid for this web service.") from None
    for name, value in form.items():
        if name not in COMMON:
            _check_parameter(action, name, value)
    _check_required(operation.input_shape, form, "")
    _check_filters(operation, form)
    _check_sizes(action, form)


@cache
def _model(action: str) -> OperationModel:
    return _service().operation_model(action)


@cache
def _service() -> botocore.session.ServiceModel:
    return botocore.session.get_session().get_service_model("ec2")


def _names(shape: StructureShape) -> Iterator[tuple[str, Shape]]:
    """The members, by the names they have in a request of EC2's protocol."""
    for member, of_member in shape.members.items():
        given = of_member.serialization
        name = given.get("queryName") or given.get("name") or member
        yield name[0].upper() + name[1:], of_member


@cache
def _parameter(action: str, path: str) -> Shape | None:
    """What stands at this place of a request, where 1 stands for every number; None: there is no such parameter."""
    shape: Shape | None = _model(action).input_shape
    for part in path.split("."):
        if isinstance(shape, ListShape):
            shape = shape.member if part == "1" else None
        elif isinstance(shape, StructureShape):
            shape = dict(_names(shape)).get(part)
        else:
            return None
    return shape


def _check_parameter(action: str, name: str, value: str) -> None:
    shape = _parameter(action, _NUMBER.sub("1", name))
    if shape is None:
        raise Refusal("UnknownParameter", f"The parameter {name} is not recognized")
    allowed = getattr(shape, "enum", None)
    wrong = (
        (
            allowed and value not in allowed and name != "InstanceType"
        )  # of which there are more than the model knows
        or (shape.type_name == "boolean" and value not in ("true", "false"))
        or (shape.type_name in ("integer", "long") and not re.fullmatch(r"-?\d+", value))
    )
    if wrong:
        raise Refusal("InvalidParameterValue", f"Invalid value '{value}' for {name}.")


def _check_required(shape: Shape | None, form: Mapping[str, str], prefix: str) -> None:
    if isinstance(shape, ListShape):
        numbers = {
            name.removeprefix(prefix).split(".")[0]
            for name in form
            if name.startswith(prefix) and name != prefix
        }
        for number in numbers:
            _check_required(shape.member, form, f"{prefix}{number}.")
    elif isinstance(shape, StructureShape):
        required = {
            dict(zip(shape.members, (name for name, _ in _names(shape)), strict=True))[each]
            for each in shape.required_members
        }
        for name, member in _names(shape):
            path = f"{prefix}{name}"
            given = path in form or any(each.startswith(f"{path}.") for each in form)
            if name in required and not given:
                raise Refusal("MissingParameter", f"The request must contain the parameter {path}")
            if given:
                _check_required(member, form, f"{path}.")


def _check_filters(operation: OperationModel, form: Mapping[str, str]) -> None:
    documented = _filters(operation.name)
    for name, value in form.items():
        if (
            re.fullmatch(r"Filter\.\d+\.Name", name)
            and value not in documented
            and not ("tag:<key>" in documented and value.startswith("tag:"))
        ):
            raise Refusal("InvalidParameterValue", f"The filter '{value}' is invalid")
    values = [name for name in form if re.fullmatch(r"Filter\.\d+\.Value\.\d+", name)]
    if len(values) > MOST_FILTER_VALUES:
        raise Refusal("FilterLimitExceeded", f"The maximum number of filter values is {MOST_FILTER_VALUES}")


@cache
def _filters(action: str) -> frozenset[str]:
    """The names that the API reference lists for this very action."""
    shape = _model(action).input_shape
    filters = shape.members.get("Filters") if isinstance(shape, StructureShape) else None
    documentation = filters.documentation if filters else ""
    return frozenset(
        name.replace("&lt;", "<").replace("&gt;", ">") for name in _FILTER.findall(documentation)
    )


def _check_sizes(action: str, form: Mapping[str, str]) -> None:
    ids = [name for name in form if re.fullmatch(r"InstanceId\.\d+", name)]
    if action in ("DescribeInstances", "DescribeInstanceStatus") and "MaxResults" in form:
        if ids:
            raise Refusal(
                "InvalidParameterCombination",
                "The parameter instancesSet cannot be used with the parameter maxResults",
            )
        if int(form["MaxResults"]) not in PAGES:
            raise Refusal(
                "InvalidParameterValue",
                f"Value ( {form['MaxResults']} ) for parameter maxResults is invalid.",
            )
    if action == "DescribeInstanceStatus" and len(ids) > MOST_STATUSES:
        raise Refusal("InvalidParameterValue", f"At most {MOST_STATUSES} instance ids can be given")
    for name, value in form.items():
        if re.search(r"(^|\.)Tag\.\d+\.Key$", name) and (
            value.lower().startswith("aws:") or len(value) not in TAG_KEYS
        ):
            raise Refusal(
                "InvalidParameterValue", "Tag keys have 1 to 128 characters and never begin with aws:"
            )
        if re.search(r"(^|\.)Tag\.\d+\.Value$", name) and len(value) not in TAG_VALUES:
            raise Refusal("InvalidParameterValue", "Tag values have at most 256 characters")
