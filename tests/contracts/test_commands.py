"""What a command may say, and what it may not."""

from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from cml_contracts.commands import CreateCMLWorker, ImportCMLWorker, UpdateCMLWorkerTags
from cml_contracts.model import Strict

CREATE: dict[str, Any] = {"name": "lab", "aws_region": "us-east-1", "created_by": "ann"}
WORKER = UUID("11111111-1111-4111-8111-111111111111")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "x" * 129),
        ("name", "two\nlines"),
        ("name", 7),
        ("aws_region", "nowhere"),
        ("aws_region", "us-east-1; rm"),
        ("aws_region", "us-east-\N{ARABIC-INDIC DIGIT ONE}"),
        ("instance_type", "large"),
        ("ami_id", "ami-xyz"),
        ("ami_id", "i-0123456789abcdef0"),
        ("created_by", ""),
        ("tags", {"aws:x": "1"}),
        ("tags", {"cml:worker-id": "1"}),
        ("tags", {"CML:worker-id": "1"}),
        ("tags", {"": "1"}),
        ("tags", {"k" * 129: "1"}),
        ("tags", {"k": "v" * 257}),
        ("tags", {"k": "a\x00b"}),
        ("tags", {"k": 1}),
        ("tags", {f"k{n}": "" for n in range(51)}),
        ("worker_id", "not-a-uuid"),
    ],
)
def test_a_create_that_ec2_or_we_could_not_honour_is_refused(field: str, value: object):
    with pytest.raises(ValidationError):
        CreateCMLWorker.model_validate(CREATE | {field: value})


@pytest.mark.parametrize(
    "name",
    [
        "Gruppe \N{LATIN SMALL LETTER O WITH DIAERESIS}",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, with a ZWNJ
        "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}",
        "\N{WAVING BLACK FLAG}\N{TAG LATIN SMALL LETTER G}\N{TAG LATIN SMALL LETTER B}\N{CANCEL TAG}",
    ],
)
def test_names_and_tags_of_every_language_are_taken(name: str):
    taken = CreateCMLWorker.model_validate(CREATE | {"name": name, "tags": {name: name}})
    assert (taken.name, taken.tags) == (name, {name: name})


@pytest.mark.parametrize("trick", ["\N{RIGHT-TO-LEFT OVERRIDE}", "\N{ZERO WIDTH SPACE}", "\x1b[2J", "\x7f"])
def test_what_shows_something_else_than_it_says_is_refused(trick: str):
    for wrong in ({"name": f"a{trick}b"}, {"tags": {"k": f"a{trick}b"}}):
        with pytest.raises(ValidationError, match="control characters"):
            CreateCMLWorker.model_validate(CREATE | wrong)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("aws_region", "nowhere", "must be an AWS region, such as us-east-1"),
        ("aws_region", "us-east-1\n", "must be an AWS region, such as us-east-1"),
        ("instance_type", "large", "must be an EC2 instance type, such as c5.2xlarge"),
        (
            "ami_id",
            "ami-XYZ",
            "must be the id of an image: ami- and 8 to 17 hexadecimal digits in lower case",
        ),
    ],
)
def test_errors_describe_a_form_in_words(field: str, value: str, said: str):
    with pytest.raises(ValidationError) as raised:
        CreateCMLWorker.model_validate(CREATE | {field: value})
    assert said in str(raised.value)


@pytest.mark.parametrize("missing", ["name", "aws_region", "created_by"])
def test_required_fields_are_required(missing: str):
    with pytest.raises(ValidationError):
        CreateCMLWorker.model_validate({k: v for k, v in CREATE.items() if k != missing})


def test_no_tags_is_no_update():
    with pytest.raises(ValidationError):
        UpdateCMLWorkerTags(worker_id=WORKER, tags={})


def test_limits_are_inclusive():
    tags = {"k" * 128: "v" * 256, **{f"k{n}": "" for n in range(49)}}
    assert len(CreateCMLWorker.model_validate(CREATE | {"tags": tags}).tags) == 50


def test_the_worker_follows_from_the_command_unless_it_is_chosen():
    create = CreateCMLWorker.model_validate(CREATE)
    assert create.worker("one") == create.worker("one") != create.worker("two")
    assert create.model_copy(update={"worker_id": WORKER}).worker("one") == WORKER


def test_an_imported_worker_follows_from_its_instance():
    one = ImportCMLWorker(aws_region="us-east-1", instance_id="i-0123456789abcdef0", created_by="ann")
    other = one.model_copy(update={"aws_region": "us-east-2"})
    assert one.worker("a") == one.worker("b") != other.worker("a")


def test_commands_are_immutable():
    create: Strict = CreateCMLWorker.model_validate(CREATE)
    with pytest.raises(ValidationError, match="frozen"):
        create.name = "other"  # type: ignore[attr-defined]
