"""Requests of the adapter that EC2 would refuse for what they are, as any simulator of a test run has seen them.

Simulators in whatever process write them to one file, so no test has to ask, and one that was killed has said it before.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cml_embedded.ec2.malformed import VARIABLE

OURS = "cml-workers"
"""In the user agent of every client of the adapter; the tests' own clients may send what they like."""


class MalformedRequests:
    """Those that came since they were last taken."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0

    def taken(self) -> list[str]:
        """The adapter's, in words."""
        if not self._file.exists():
            return []
        with self._file.open() as lines:
            lines.seek(self._read)
            found = [json.loads(line) for line in iter(lines.readline, "")]
            self._read = lines.tell()
        return in_words(found)


@contextmanager
def malformed_requests(folder: Path) -> Iterator[MalformedRequests]:
    """Of all simulators that are started meanwhile, here and in other processes."""
    file = folder / f"malformed-{os.getpid()}.jsonl"
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(file)
    try:
        yield MalformedRequests(file)
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def in_words(requests: list[dict[str, Any]]) -> list[str]:
    """Those of them that the adapter sent."""
    return [
        f"EC2 would refuse {each['parameters']}: {each['code']}, {each['message']}"
        for each in requests
        if OURS in each["user_agent"]
    ]
