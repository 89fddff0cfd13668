"""Secrets in texts and headers: what is printed, logged, or kept for long goes through here.

A text may come from anywhere, a library's error among them, so secrets are found by their shape: the user information of URLs,
headers and options whose names say that they hold one, signed tokens, values of SQL statements. Those that this process was
given are found by their value, too. Every repetition in a shape is bounded, as senders choose many of the texts.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import date, time
from enum import Enum
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

HIDDEN = "***"
"""What stands for a secret."""
SHORTEST = 8
"""Characters of a secret that is found by its value; shorter ones would be found in ordinary words."""

_MARKS = ("authorization", "cookie", "credential", "password", "secret", "token", "api-key", "apikey")
"""What the names of such headers contain, those of other people's systems included."""
_NAME = rf"[\w.-]{{0,60}}(?:{'|'.join(_MARKS)}|passwd|api_key)[\w.-]{{0,60}}"

_SHAPES: Iterable[tuple[re.Pattern[str], str]] = (
    # Up to the last @ of the word: a password that is not escaped may have some itself, and each of / ? # besides.
    (
        re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}:/{1,3}[^\s/:@\"'<>]{0,200}:)\S{0,2000}@", re.IGNORECASE),
        rf"\1{HIDDEN}@",
    ),
    # JSON, also within a text of JSON, and what Python shows of mappings and pairs.
    (
        re.compile(
            rf"(\\{{0,8}}[\"']{_NAME}\\{{0,8}}[\"']\s{{0,4}}[:=,]\s{{0,4}}b?)(\\{{0,8}}[\"']).*?(?:\2|$)",
            re.IGNORECASE | re.MULTILINE,
        ),
        rf"\1\2{HIDDEN}\2",
    ),
    # A line of a header, which may be cut by the quote that ends its text.
    (
        re.compile(
            r"((?<![\w-])(?:(?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]{0,60}(?:key|token|secret)):[ \t]{0,4})[^\r\n\"']+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(rf"((?<![\w.-]){_NAME}=)[^\s&;,)\"'\]]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(\b(?:Bearer|Basic)\s+)(?=\S*[0-9=])[\w+/=.~-]{8,}"), rf"\1{HIDDEN}"),
    # Tokens of ours, and of JSON Web Tokens: parts in base64, the last one a signature.
    (re.compile(r"(?<![\w-])[\w-]{16,900}\.[\w-]{40,900}(?:\.[\w-]{16,900})?"), HIDDEN),
    # The ids of keys of AWS, and what it answers with: JSON as above, or XML.
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(rf"(<{_NAME}>)[^<]*", re.IGNORECASE), rf"\1{HIDDEN}"),
    # The value that pydantic found no good, whose field may be a secret.
    (re.compile(r"(\binput_value=).*?(?=, input_type=|\]|$)", re.MULTILINE), rf"\1{HIDDEN}"),
    # What PostgreSQL and SQLAlchemy say of the values of a statement.
    (re.compile(r"(\bDETAIL:\s+).+"), rf"\1{HIDDEN}"),
    (re.compile(r"(\[parameters: ).+"), rf"\1{HIDDEN}]"),
)
_SUSPECT = re.compile(
    rf"@|{'|'.join(_MARKS)}|passwd|api_key|x-[\w-]{{0,60}}key|Bearer|Basic|\.[\w-]{{40}}|DETAIL|\[parameters|A[KS]IA|input_value=",
    re.IGNORECASE,
)
"""What a text has that one of the shapes may be in: most have none of it."""

_own: dict[str, None] = {}
_own_values: re.Pattern[str] | None = None


def may_be_secret(header: str) -> bool:
    """Whether its name says so. Such headers are not kept for longer than the message is handled."""
    name = header.lower().replace("_", "-")
    return any(mark in name for mark in _MARKS)


def without_secrets(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers, also those within others, that may be kept."""
    return {
        name: without_secrets(value) if isinstance(value, Mapping) else value
        for name, value in headers.items()
        if not may_be_secret(str(name))
    }


def conceal(secrets: Iterable[str], urls: Iterable[str] = ()) -> None:
    """Secrets of this process, and passwords in its URLs, that no text shows from now on, escaped or not."""
    global _own_values  # noqa: PLW0603 - of the process, as its logs are
    for secret in (*secrets, *map(_password, urls)):
        # Errors about a URL quote the part they do not like, and each form of text escapes others.
        parts = re.split(r"[^\w.~-]", secret)
        for form in (secret, unquote(secret), quote(secret, safe=""), *parts):
            if len(form) >= SHORTEST:
                _own[form] = None
    if _own:
        longest_first = sorted(_own, key=len, reverse=True)
        _own_values = re.compile("|".join(map(re.escape, longest_first)))


def _password(url: str) -> str:
    credentials, _, _ = url.partition("://")[2].rpartition("@")
    return credentials.partition(":")[2]


def redacted(text: str) -> str:
    """The text, or URL, without what nobody may read."""
    if _own_values is not None:
        text = _own_values.sub(HIDDEN, text)
    if _SUSPECT.search(text):
        for shape, instead in _SHAPES:
            text = shape.sub(instead, text)
    return text


def redacted_values(value: Any) -> Any:
    """The same for all texts in a value that is logged; of what is no plain value, for what Python shows of it."""
    match value:
        case str() if not isinstance(value, Enum):
            return redacted(value)
        case None | bool() | int() | float() | UUID() | Enum() | date() | time():
            return value
        case Mapping():
            return {
                name: HIDDEN if isinstance(name, str) and may_be_secret(name) else redacted_values(inner)
                for name, inner in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [redacted_values(each) for each in value]
        case bytes():
            return redacted(value.decode(errors="backslashreplace"))
        case _:
            return redacted(repr(value))
