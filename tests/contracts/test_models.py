"""A misspelt field in our own code is an error, for mypy and when it runs; a field of a later version is ignored."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from cml_contracts.commands import COMMANDS
from cml_contracts.deadletters import OPERATOR_REQUESTS, ListDeadLetters
from cml_contracts.events import InstanceLaunched, StartRequested
from cml_contracts.model import Tolerant
from cml_contracts.queries import QUERIES
from support.given import instance

ROOT = Path(__file__).parents[2]


def subclasses(model: type[Tolerant]) -> Iterator[type[Tolerant]]:
    for each in model.__subclasses__():
        yield each
        yield from subclasses(each)


@pytest.mark.parametrize("model", sorted(subclasses(Tolerant), key=str))
def test_a_model_cannot_be_made_with_an_unknown_field(model: type[Tolerant]):
    with pytest.raises(ValidationError, match=r"(?s)misspelt\n.*Extra inputs are not permitted"):
        model(misspelt=1)


def test_what_is_read_may_have_fields_of_a_later_version_at_any_depth():
    event = InstanceLaunched(operation_id="c", instance=instance())
    written = event.model_dump(mode="json")
    newer = {**written, "later": 1, "instance": {**written["instance"], "later": {"deep": 2}}}
    assert InstanceLaunched.model_validate(newer) == event
    assert InstanceLaunched.model_validate_json(json.dumps(newer)) == event


def test_a_part_that_is_given_as_fields_may_not_have_unknown_ones_either():
    with pytest.raises(ValidationError, match="Extra inputs"):
        InstanceLaunched(operation_id="c", instance={**instance().model_dump(), "publicip": "192.0.2.1"})  # type: ignore[arg-type]


def test_reading_calls_no_constructor(monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("each event would be constructed twice")

    monkeypatch.setattr(Tolerant, "__init__", never)
    assert StartRequested.model_validate_json(b'{"operation_id": "c"}').operation_id == "c"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (model, name)
        for model in (*COMMANDS.values(), *QUERIES.values(), *OPERATOR_REQUESTS.values())
        for name, field in model.model_fields.items()
        if "datetime" in str(field.annotation)
    ],
)
@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-01:00"])
def test_a_time_that_utc_has_no_year_for_is_refused_and_does_not_overflow(model, name: str, time: str):
    with pytest.raises(ValidationError, match="the years 1 to 9999"):
        model.model_validate_json(json.dumps({name: time}))


def test_the_first_and_the_last_time_are_kept_and_one_without_an_offset_is_in_utc():
    for time in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
        assert ListDeadLetters.model_validate_json(
            json.dumps({"since": time})
        ).since == datetime.fromisoformat(time)
    plain = ListDeadLetters.model_validate_json('{"since": "2026-01-31T12:00:00"}')
    assert plain.since == datetime(2026, 1, 31, 12, tzinfo=UTC)
    shifted = ListDeadLetters.model_validate_json('{"since": "2026-01-31T12:00:00+02:00"}')
    assert shifted.since == datetime(2026, 1, 31, 10, tzinfo=UTC)


def test_mypy_reports_an_unknown_field_of_an_event(tmp_path: Path):
    planted = tmp_path / "planted.py"
    planted.write_text(
        "from cml_contracts.events import InstanceLaunched\n"
        "from cml_contracts.instance import Ec2Instance\n"
        "def made(instance: Ec2Instance) -> InstanceLaunched:\n"
        '    return InstanceLaunched(operation_id="c", instance=instance, publicip="192.0.2.1")\n'
        "def mistyped(instance: Ec2Instance) -> InstanceLaunched:\n"
        "    return InstanceLaunched(operation_id=1, instance=instance)\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache"), str(planted)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line.partition(" error: ")[2] for line in done.stdout.splitlines() if " error: " in line]
    assert [each.rpartition("  [")[0] for each in errors] == [
        'Unexpected keyword argument "publicip" for "InstanceLaunched"',
        'Argument "operation_id" to "InstanceLaunched" has incompatible type "int"; expected "str"',
    ]
