"""Requests as EC2 takes them: by the service model that the SDK ships, and by the filters documented for that very action.

So a request that only AWS would refuse is refused here as well.
"""

import base64
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Any

import botocore.session
from botocore.model import (
    ListShape,
    OperationModel,
    OperationNotFoundError,
    ServiceModel,
    Shape,
    StructureShape,
)

from cml_embedded.ec2.answers import Refusal

COMMON = frozenset({"Action", "Version"})
MOST_FILTER_VALUES = 200
MOST_STATUSES = 100
"""Instances that DescribeInstanceStatus takes by their ids (EC2 API reference)."""
PAGES = range(5, 1001)
"""Values of MaxResults where the model has no limits of its own, likewise."""
PAGED = frozenset({"DescribeInstances", "DescribeInstanceStatus"})
"""The actions for which the reference says so."""
TAG_KEYS, TAG_VALUES = range(1, 129), range(257)
"""Lengths (EC2 user guide, *Tag restrictions*)."""
MOST_TAGS = 50
"""Of one resource, likewise."""
TAG_FILTERS = frozenset({"tag:<key>", "tag"})
"""How the reference names the filters by the value of a tag."""
TOKEN = re.compile(r"[\x00-\x7f]{1,64}")
"""A ClientToken (EC2 API reference, *Ensuring idempotency*)."""
MOST_USER_DATA = 16384
"""Bytes before they are encoded (EC2 user guide, *User data*)."""
IDS: Mapping[str, tuple[str, str]] = {
    "ImageId": ("ami", "InvalidAMIID.Malformed"),
    "SecurityGroupId": ("sg", "InvalidGroupId.Malformed"),
    "SubnetId": ("subnet", "InvalidSubnetID.Malformed"),
}
"""Of parameters that are the id of something: its prefix, and the code (EC2 API reference, *Error codes*). Instances: ``Instances``."""

_NUMBER = re.compile(r"(?<=\.)[1-9][0-9]*(?=\.|$)")
_TAG = re.compile(r"(?P<resource>(.*\.)?)Tag\.\d+\.(?P<part>Key|Value)")
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
def _service() -> ServiceModel:
    """The SDK's model, with the option that SDKs before botocore 1.42 do not know (EC2 API reference, *CpuOptionsRequest*)."""
    loader: Any = botocore.session.get_session().get_component("data_loader")
    model = loader.load_service_model("ec2", "service-2")
    members = model["shapes"]["CpuOptionsRequest"]["members"]
    members.setdefault("NestedVirtualization", {"shape": "AmdSevSnpSpecification"})  # has the same values
    return ServiceModel(model, "ec2")


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
    # There are more instance types than the installed model knows.
    allowed = None if name == "InstanceType" else getattr(shape, "enum", None)
    if (allowed and value not in allowed) or not _is_valid(shape, value):
        raise Refusal("InvalidParameterValue", f"Invalid value '{value[:100]}' for {name}.")
    parameter = name.partition(".")[0]
    if parameter in IDS:
        prefix, code = IDS[parameter]
        if not re.fullmatch(rf"{prefix}-([0-9a-f]{{8}}|[0-9a-f]{{17}})", value):
            raise Refusal(code, f'Invalid id: "{value[:100]}" (expecting "{prefix}-...")')


def _is_valid(shape: Shape, value: str) -> bool:
    """Whether it is of the model's type, and within the limits that the model has for it."""
    limits = shape.metadata
    match shape.type_name:
        case "boolean":
            return value in ("true", "false")
        case "integer" | "long":
            return bool(re.fullmatch(r"-?\d+", value)) and _is_within(int(value), limits)
        case "float" | "double":
            return _is_made_by(float, value) and _is_within(float(value), limits)
        case "timestamp":
            return _is_made_by(datetime.fromisoformat, value)
        case "string":
            pattern = limits.get("pattern")
            return _is_within(len(value), limits) and (
                pattern is None or re.fullmatch(pattern, value) is not None
            )
        case "blob":
            return _is_made_by(_decoded, value)
        case _:
            return value == ""  # a list or a structure has no value; an empty list is sent as one


def _is_within(size: float, limits: Mapping[str, float]) -> bool:
    return limits.get("min", size) <= size <= limits.get("max", size)


def _is_made_by(convert: Callable[[str], object], value: str) -> bool:
    try:
        convert(value)
    except ValueError:
        return False
    return True


def _decoded(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


def _check_required(shape: Shape | None, form: Mapping[str, str], prefix: str) -> None:
    if isinstance(shape, ListShape):
        numbers = {
            name.removeprefix(prefix).split(".")[0]
            for name in form
            if name.startswith(prefix) and name != prefix
        }
        if not _is_within(len(numbers), shape.metadata):
            raise Refusal("InvalidParameterValue", f"{len(numbers)} values of {prefix.removesuffix('.')}")
        for number in numbers:
            _check_required(shape.member, form, f"{prefix}{number}.")
    elif isinstance(shape, StructureShape):
        for member, (name, of_member) in zip(shape.members, _names(shape), strict=True):
            path = f"{prefix}{name}"
            given = path in form or any(each.startswith(f"{path}.") for each in form)
            if member in shape.required_members and not given:
                raise Refusal("MissingParameter", f"The request must contain the parameter {path}")
            if given:
                _check_required(of_member, form, f"{path}.")


def _check_filters(operation: OperationModel, form: Mapping[str, str]) -> None:
    documented = _filters(operation.name)
    for name, value in form.items():
        if (
            re.fullmatch(r"Filter\.\d+\.Name", name)
            and value not in documented
            and not (value.startswith("tag:") and documented & TAG_FILTERS)
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
    if "MaxResults" in form and ids:
        raise Refusal(
            "InvalidParameterCombination",
            "The parameter instancesSet cannot be used with the parameter maxResults",
        )
    if action in PAGED and int(form.get("MaxResults", PAGES[0])) not in PAGES:
        raise Refusal(
            "InvalidParameterValue",
            f"Value ( {form['MaxResults']} ) for parameter maxResults is invalid.",
        )
    if action == "DescribeInstanceStatus" and len(ids) > MOST_STATUSES:
        raise Refusal("InvalidParameterValue", f"At most {MOST_STATUSES} instance ids can be given")
    if "ClientToken" in form and not TOKEN.fullmatch(form["ClientToken"]):
        raise Refusal("InvalidParameterValue", "A client token has 1 to 64 ASCII characters")
    if "UserData" in form:
        if not _is_made_by(_decoded, form["UserData"]):
            raise Refusal("InvalidParameterValue", "Invalid BASE64 encoding of user data.")
        if len(_decoded(form["UserData"])) > MOST_USER_DATA:
            raise Refusal("InvalidParameterValue", f"User data is limited to {MOST_USER_DATA} bytes")
    _check_tags(form)


def _check_tags(form: Mapping[str, str]) -> None:
    """The rules of tags, of a launch as well as later."""
    keys: dict[str, list[str]] = {}
    for name, value in form.items():
        found = _TAG.fullmatch(name)
        if found is None:
            continue
        if found["part"] == "Key":
            if value.lower().startswith("aws:") or len(value) not in TAG_KEYS:
                raise Refusal(
                    "InvalidParameterValue", "Tag keys have 1 to 128 characters and never begin with aws:"
                )
            keys.setdefault(found["resource"], []).append(value)
        elif len(value) not in TAG_VALUES:
            raise Refusal("InvalidParameterValue", "Tag values have at most 256 characters")
    for of_resource in keys.values():
        key, times = Counter(of_resource).most_common(1)[0]
        if times > 1:
            raise Refusal("InvalidParameterValue", f"Duplicate tag key '{key}' specified.")
        if len(of_resource) > MOST_TAGS:
            raise Refusal("TagLimitExceeded", f"More than {MOST_TAGS} tags for one resource")
