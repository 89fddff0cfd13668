"""What a report may say: it becomes part of events, so a read model must be able to hold it."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cml_workers.domain.messages import LookupAnswered, LookupRequested, OperationSucceeded

EXAMPLES = Path(__file__).parents[2] / "contracts" / "examples"


def example(kind: str, *path: str, value: object) -> bytes:
    """The frozen example with another value at this place."""
    message = json.loads((EXAMPLES / f"{kind}.json").read_text())
    place: Any = message
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return json.dumps(message).encode()


@pytest.mark.parametrize("kind", [LookupRequested, LookupAnswered])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("command_type", "cml.worker.nonsense.v1"),
        ("command_type", ["cml.worker.start.v1"]),
        ("command", {}),
        ("command_id", "with space"),
        ("command_id", "x" * 201),
        ("correlation_id", "\N{GRINNING FACE}" * 64),
        ("reply", {"reply_to": "x" * 256}),
        ("traceparent", "x" * 256),
    ],
)
def test_the_command_that_comes_back_is_one_that_can_have_been_sent(kind: Any, field: str, value: object):
    with pytest.raises(ValidationError):
        kind.model_validate_json(example(kind.TYPE, "origin", field, value=value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tags", {"k" * 129: ""}),
        ("tags", {"k": "v" * 257}),
        ("aws_region", "x" * 33),
        ("state", "exploded"),
    ],
)
def test_an_instance_is_as_ec2_can_show_it(field: str, value: object):
    with pytest.raises(ValidationError):
        OperationSucceeded.model_validate_json(
            example(OperationSucceeded.TYPE, "instance", field, value=value)
        )
