"""Filters match as EC2's do."""

import pytest

from cml_embedded.ec2.filters import matches


@pytest.mark.parametrize(
    ("pattern", "value", "does"),
    [
        ("lab", "lab", True),
        ("lab", "labs", False),
        ("lab*", "labs", True),
        ("l?b", "lab", True),
        ("l?b", "lb", False),
        ("*", "", True),
        (r"lab\*", "lab*", True),
        (r"lab\*", "labs", False),
        (r"a\\b", r"a\b", True),
        (r"what\?", "what?", True),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("a.c", "abc", False),
        ("two*", "two\nlines", True),
    ],
)
def test_a_value_matches_as_ec2_says(pattern: str, value: str, does: bool) -> None:
    assert matches(pattern, value) is does
