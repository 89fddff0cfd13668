"""Tokens: signed, for one command, and for a short while."""

from datetime import UTC, datetime, timedelta

import pytest

from cml_contracts.tokens import LONGEST, InvalidTokenError, sign, verify

KEY, OLD_KEY = b"k" * 32, b"o" * 32
NOW = datetime(2026, 1, 2, tzinfo=UTC)
SOON = NOW + timedelta(minutes=1)


def token(**changes: object) -> str:
    content: dict[str, object] = {"actor": "ann", "command_id": "c-1", "expires": SOON}
    return sign(KEY, **(content | changes))  # type: ignore[arg-type]


def test_a_token_names_its_actor():
    assert verify(token(), [KEY], command_id="c-1", now=NOW) == "ann"


def test_keys_can_be_changed_without_a_gap():
    assert verify(token(), [OLD_KEY, KEY], command_id="c-1", now=NOW) == "ann"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (token(command_id="c-2"), "another command"),
        (token(expires=NOW), "expired"),
        (token(expires=NOW - timedelta(days=1)), "expired"),
        (token(expires=NOW + LONGEST + timedelta(minutes=1)), "longer"),
        (sign(OLD_KEY, actor="ann", command_id="c-1", expires=SOON), "signature"),
        (token().partition(".")[0] + "." + token(actor="ben").partition(".")[2], "signature"),
        (token()[:-2], "signature|malformed"),
        ("", "signature"),
        ("a.b.c", "signature|malformed"),
        ("." * 100, "signature|malformed"),
        ("ä.ö", "signature|malformed"),
    ],
)
def test_anything_else_is_refused(wrong: str, why: str):
    with pytest.raises(InvalidTokenError, match=why):
        verify(wrong, [KEY], command_id="c-1", now=NOW)


def test_without_keys_nothing_is_valid():
    with pytest.raises(InvalidTokenError):
        verify(token(), [], command_id="c-1", now=NOW)
