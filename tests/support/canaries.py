"""Secrets that are planted, each a text of its own, so that it is found wherever it should not be."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

CANARY = "canary"
"""What each of them begins with: nothing else may contain it."""
SPECIAL = ":/?#[]@!$&'()*+,;=% \"<>\\^`{|}~"
"""All that means something in a URL, in JSON, in SQL or to a shell."""


class Canaries:
    """``canaries["the database's password"]`` is the same text each time, and occurs nowhere else.

    ``between``: each has it in its middle, so that one which is cut or escaped there is seen, too.
    """

    def __init__(self, between: str = "") -> None:
        self._between = between
        self._texts: dict[str, str] = {}

    def __getitem__(self, what: str) -> str:
        return self._texts.get(what) or self.with_between(what, self._between)

    def with_between(self, what: str, between: str) -> str:
        """One that may have other characters than the others."""
        parts = [f"{CANARY}{uuid4().hex}" for _ in range(2 if between else 1)]
        return self.plant(what, between.join(parts))

    def plant(self, what: str, secret: str) -> str:
        """A secret that cannot be any text, e.g. a signed one."""
        self._texts[what] = secret
        return secret

    def found(self, places: Mapping[str, Any]) -> list[str]:
        """Which of them are in which place, as they are or in base64."""
        texts = {place: _text(content) for place, content in places.items()}
        return [
            f"{what} in {place}"
            for place, text in texts.items()
            for what, secret in self._texts.items()
            if any(form in text for form in _forms(secret))
        ]


def _forms(secret: str) -> Iterator[str]:
    """Each part that no escaping changes, as it is, and its middle in base64, which depends on where in its text it begins."""
    for part in re.findall(r"[A-Za-z0-9_-]{16,}", secret):
        yield part
        yield from (base64.b64encode(part[skipped:].encode()).decode()[4:36] for skipped in range(3))


def _text(content: Any) -> str:
    if isinstance(content, bytes):
        return content.decode(errors="replace")
    return content if isinstance(content, str) else json.dumps(content, default=str)
