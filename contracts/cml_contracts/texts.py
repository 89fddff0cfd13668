"""The texts that callers may write: each has a form, and an error describes it in words."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema

from cml_contracts.instance import RESERVED_TAG_PREFIX

MAX_TAGS = 50
"""Tags an EC2 resource can have, ours included (EC2 user guide, *Tag restrictions*)."""

MAX_TAG_KEY = 128
MAX_TAG_VALUE = 256
"""Characters, likewise."""
MAX_TEXT = 128
MAX_REGION = 32
MAX_COMMAND_ID = 200
MAX_PROPERTY = 255
"""Bytes of a property of an AMQP message (AMQP 0-9-1, *short string*)."""

_JOINING = re.compile("[\u200c\u200d\U000e0020-\U000e007f]")
"""Joiners (ZWNJ is a letter of Persian words, ZWJ of emoji) and the tags of flags; they print nothing by themselves, and are
no control characters (Unicode 15.1, 23.2 and 23.9)."""


def is_printable(text: str) -> bool:
    """Whether all of it can be shown."""
    return text.isprintable() or _JOINING.sub("", text).isprintable()


def _printable(text: str) -> str:
    if not is_printable(text):
        raise ValueError("must not contain control characters")
    return text


def _without_spaces(text: str) -> str:
    if " " in text:
        raise ValueError("must not contain spaces")
    return text


def as_property(text: str) -> str:
    """A text that has been, or will be, a property of an AMQP message. Raises ValueError."""
    if len(text.encode()) > MAX_PROPERTY:
        raise ValueError(f"must not have more than {MAX_PROPERTY} bytes, as an AMQP property")
    return text


@dataclass(frozen=True, slots=True)
class Form:
    """Annotates a text of one form. ``meaning``: what it is, for whoever wrote another."""

    pattern: str
    meaning: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), "pattern": f"^{self.pattern}$"}

    def _check(self, text: str) -> str:
        if not re.fullmatch(self.pattern, text, re.ASCII):
            raise ValueError(f"must be {self.meaning}")
        return text


def _usable_tags(tags: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in tags.items():
        if not 1 <= len(key) <= MAX_TAG_KEY:
            raise ValueError(
                f"tag key {key[:32]!r} has {len(key)} characters; 1 to {MAX_TAG_KEY} are allowed"
            )
        if len(value) > MAX_TAG_VALUE:
            raise ValueError(
                f"the value of tag {key!r} has {len(value)} characters; at most {MAX_TAG_VALUE} are allowed"
            )
        if key.lower().startswith("aws:") or key.lower().startswith(RESERVED_TAG_PREFIX):
            raise ValueError(f"tag key {key!r} begins with a reserved prefix (aws: or {RESERVED_TAG_PREFIX})")
        if not is_printable(key + value):
            raise ValueError(f"tag {key!r} contains control characters")
    if len(tags) > MAX_TAGS:
        raise ValueError(f"{len(tags)} tags; at most {MAX_TAGS} are allowed")
    return tags


Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT), AfterValidator(_printable)]
CommandId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_COMMAND_ID),
    AfterValidator(_printable),
    AfterValidator(_without_spaces),
    AfterValidator(as_property),
]
"""The AMQP ``message_id`` of a command."""
_COMMAND_ID: TypeAdapter[str] = TypeAdapter(CommandId)
Actor = Text
"""An opaque id of who sent it; no personal data."""
_ACTOR: TypeAdapter[str] = TypeAdapter(Actor)
Reason = Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(_printable)]
Region = Annotated[
    str,
    StringConstraints(max_length=MAX_REGION),
    Form(r"[a-z]{2,3}(-[a-z]+)+-[0-9]{1,2}", "an AWS region, such as us-east-1"),
]
InstanceType = Annotated[
    str,
    StringConstraints(max_length=64),
    Form(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", "an EC2 instance type, such as c5.2xlarge"),
]
ProfileName = Annotated[
    str,
    Form("[a-z0-9][a-z0-9-]{0,62}", "the name of a profile: at most 63 of a-z, 0-9 and -, and not - first"),
]
AmiId = Annotated[
    str, Form(r"ami-[0-9a-f]{8,17}", "the id of an image: ami- and 8 to 17 hexadecimal digits in lower case")
]
InstanceId = Annotated[
    str, Form(r"i-[0-9a-f]{8,17}", "the id of an instance: i- and 8 to 17 hexadecimal digits in lower case")
]
Tags = Annotated[dict[str, str], AfterValidator(_usable_tags)]


def as_command_id(text: str) -> str:
    """The text, if it can be a command id. Raises ValueError."""
    try:
        return _COMMAND_ID.validate_python(text)
    except ValidationError as error:
        raise ValueError(
            f"a command id has 1 to {MAX_COMMAND_ID} printable characters without spaces, "
            f"and at most {MAX_PROPERTY} bytes"
        ) from error


def as_actor(text: str) -> str:
    """The text, if it can name an actor. Raises ValueError."""
    try:
        return _ACTOR.validate_python(text)
    except ValidationError as error:
        raise ValueError(f"an actor has 1 to {MAX_TEXT} printable characters") from error
