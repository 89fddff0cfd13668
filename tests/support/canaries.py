"""Secrets that are planted, each a text of its own, so that it is found wherever it should not be."""

import base64
import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

CANARY = "canary"
"""What each of them begins with: nothing else may contain it."""


class Canaries:
    """``canaries["the database's password"]`` is the same text each time, and occurs nowhere else."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def __getitem__(self, what: str) -> str:
        return self._texts.setdefault(what, f"{CANARY}{uuid4().hex}")

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


def _forms(secret: str) -> list[str]:
    """As it is, and its middle in base64, which depends on where in its text it begins."""
    return [secret, *(base64.b64encode(secret[skipped:].encode()).decode()[4:36] for skipped in range(3))]


def _text(content: Any) -> str:
    if isinstance(content, bytes):
        return content.decode(errors="replace")
    return content if isinstance(content, str) else json.dumps(content, default=str)
