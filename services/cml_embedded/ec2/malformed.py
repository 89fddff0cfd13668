"""Requests that were refused for what they are: whoever sends one would be refused by EC2, too."""

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cml_embedded.ec2.answers import Refusal

VARIABLE = "EC2_SIMULATOR_MALFORMED"
"""Names a file that gets a line of JSON for each, of all simulators that run with it."""


class MalformedRequests:
    """The latest thousand, in their order."""

    def __init__(self) -> None:
        self._all: deque[dict[str, Any]] = deque(maxlen=1000)
        self._file = os.environ.get(VARIABLE)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._all)

    def add(self, form: Mapping[str, str], refusal: Refusal, user_agent: str) -> None:
        """``form``: the request, ``refusal``: what it was answered."""
        malformed = {
            "operation": form.get("Action", ""),
            "code": refusal.code,
            "message": str(refusal),
            "parameters": dict(form),
            "user_agent": user_agent,
        }
        self._all.append(malformed)
        if self._file:
            with Path(self._file).open("a") as lines:
                lines.write(json.dumps(malformed) + "\n")
