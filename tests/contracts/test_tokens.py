"""Tokens: signed, for one command, and for a short while."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cml_contracts.tokens import LONGEST, ExpiredTokenError, InvalidTokenError, sign, verify

KEY, OLD_KEY = b"k" * 32, b"o" * 32
NOW = datetime(2026, 1, 2, tzinfo=UTC)
SOON = NOW + timedelta(minutes=1)


SENT: dict[str, Any] = {"user": "portal", "command_id": "c-1", "command_type": "t.v1", "body": b"{}"}


def token(key: bytes = KEY, **changes: Any) -> str:
    return sign(key, **{"actor": "ann", "expires": SOON, **SENT, **changes})


def test_a_token_names_its_actor():
    assert verify(token(), [KEY], now=NOW, **SENT) == "ann"


def test_keys_can_be_changed_without_a_gap():
    assert verify(token(), [OLD_KEY, KEY], now=NOW, **SENT) == "ann"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (token(command_id="c-2"), "its command_id differs"),
        (token(command_type="u.v1"), "its type differs"),
        (token(body=b'{"a": 1}'), "its body differs"),
        (token(user="other"), "its user differs"),
        (token(actor=""), "names no actor"),
        (token(actor="a" * 129), "names no actor"),
        (token(actor="ann\x1b[2J"), "names no actor"),
        (token().removeprefix("v2."), "malformed"),
        ("v2." + "a" * 5000, "at most 4096"),
        (token(expires=NOW), "expired"),
        (token(expires=NOW - timedelta(days=1)), "expired"),
        (token(expires=NOW + LONGEST + timedelta(minutes=1)), "longer"),
        (token(OLD_KEY), "signature"),
        (token().rpartition(".")[0] + "." + token(actor="ben").rpartition(".")[2], "signature"),
        (token()[:-2], "signature|malformed"),
        ("", "malformed"),
        ("v2.", "signature|malformed"),
        ("v2.a.c", "signature|malformed"),
        ("v2" + "." * 100, "signature|malformed"),
        ("v2.ä.ö", "signature|malformed"),
    ],
)
def test_anything_else_is_refused(wrong: str, why: str):
    with pytest.raises(InvalidTokenError, match=why):
        verify(wrong, [KEY], now=NOW, **SENT)


def test_a_token_that_is_right_but_late_says_so():
    with pytest.raises(ExpiredTokenError):
        verify(token(expires=NOW), [KEY], now=NOW, **SENT)
    with pytest.raises(InvalidTokenError) as wrong:
        verify(token(expires=NOW, body=b"[]"), [KEY], now=NOW, **SENT)
    assert not isinstance(wrong.value, ExpiredTokenError)


def test_without_keys_nothing_is_valid():
    with pytest.raises(InvalidTokenError):
        verify(token(), [], now=NOW, **SENT)
