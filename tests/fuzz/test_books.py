"""What counts as lost: the books of an attack have to notice it, and nothing else."""

import json
from dataclasses import replace

import pytest

from cml_workers.domain.messages import LookupRequested
from fuzz.books import is_of_no_effect, number_of
from fuzz.hostile import EXAMPLES, TARGETS, Hostile


@pytest.mark.parametrize("command_id", ["1-origin", "of-no-message"])
def test_a_lookup_whose_answer_is_no_dead_letter_is_lost_where_that_would_be_known(command_id: str):
    fields = json.loads((EXAMPLES / f"{LookupRequested.TYPE}.json").read_text())
    fields["origin"]["command_id"] = command_id
    body = json.dumps(fields).encode()
    message = Hostile(
        number=1,
        target=next(target for target in TARGETS if target.name == "lookups"),
        routing_key="cml.lookup.x",
        body=body,
        properties={"message_type": LookupRequested.TYPE},
        awaits=False,
        readable=True,
    )
    assert is_of_no_effect(message) is (command_id == "of-no-message")
    assert not is_of_no_effect(replace(message, body=b"{}"))


@pytest.mark.parametrize(
    ("identity", "number"),
    [
        ("15828", 15828),
        ("15828-origin", 15828),
        ("3fa85f64-5717-4562-b3fc-2c963f66afa6", None),
        ("12345678-5717-4562-b3fc-2c963f66afa6", None),
        ("", None),
        (None, None),
    ],
)
def test_a_random_id_is_the_number_of_no_message(identity: str | None, number: int | None):
    """A reply to an address without a correlation id gets a random one from the library."""
    assert number_of(identity) == number
