"""One frozen JSON example for each type and version; what was valid once decodes without end."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from cml_contracts.commands import COMMANDS
from cml_contracts.deadletters import OPERATOR_REQUESTS, DeadLetterDetails, DeadLetterPage, DeadLetterView
from cml_contracts.envelope import EventEnvelope
from cml_contracts.events import EVENTS
from cml_contracts.queries import QUERIES, OperationView, WorkerPage, WorkerView
from cml_contracts.results import OperationResult
from cml_workers.domain.messages import REPORTS, LookupRequested, Reminder

EXAMPLES = Path(__file__).parents[2] / "contracts" / "examples"
TYPES: dict[str, type[BaseModel]] = {
    **COMMANDS,
    **QUERIES,
    **OPERATOR_REQUESTS,
    **EVENTS,
    **REPORTS,
    LookupRequested.TYPE: LookupRequested,
    Reminder.TYPE: Reminder,
    "cml.operation_result.v1": OperationResult,
    "cml.worker_view.v1": WorkerView,
    "cml.worker_page.v1": WorkerPage,
    "cml.operation_view.v1": OperationView,
    "cml.dead_letter_view.v1": DeadLetterView,
    "cml.dead_letter_page.v1": DeadLetterPage,
    "cml.dead_letter_details.v1": DeadLetterDetails,
    "cml.event_envelope.v1": EventEnvelope,
}


def example(name: str) -> Any:
    return json.loads((EXAMPLES / f"{name}.json").read_text())


def normal(value: Any) -> Any:
    """Without what is None: an absent field and an empty one say the same."""
    if isinstance(value, dict):
        return {key: normal(inner) for key, inner in value.items() if inner is not None}
    return [normal(inner) for inner in value] if isinstance(value, list) else value


def test_every_type_has_its_example_and_every_example_its_type():
    assert {path.stem for path in EXAMPLES.glob("*.json")} == set(TYPES)


@pytest.mark.parametrize("name", sorted(TYPES))
def test_an_example_decodes_and_says_the_same_when_written_again(name: str):
    written = example(name)
    decoded = TYPES[name].model_validate_json(json.dumps(written))
    again = json.loads(decoded.model_dump_json(exclude_none=True))
    assert normal(again) == normal(written)


@pytest.mark.parametrize("name", sorted({**COMMANDS, **QUERIES, **OPERATOR_REQUESTS}))
def test_commands_and_queries_refuse_an_unknown_field(name: str):
    with pytest.raises(ValidationError, match="Extra inputs"):
        TYPES[name].model_validate_json(json.dumps({**example(name), "colour": "red"}))


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_events_pass_over_what_a_later_version_added(name: str):
    newer = json.dumps({**example(name), "added_later": {"deep": [1]}})
    assert TYPES[name].model_validate_json(newer) == TYPES[name].model_validate_json(
        json.dumps(example(name))
    )


def test_an_event_survives_its_journey_as_a_cloudevent():
    envelope = EventEnvelope.model_validate(example("cml.event_envelope.v1"))
    travelled = EventEnvelope.from_cloudevent(json.loads(json.dumps(envelope.to_cloudevent())))
    assert travelled == envelope
    assert envelope.to_cloudevent()["subject"] == str(envelope.worker_id)
    assert envelope.event is not None


def test_the_reply_address_is_never_published():
    assert "reply" not in EventEnvelope.model_fields
