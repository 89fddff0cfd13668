"""What the doctor says: one line for each thing that is not as it has to be."""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Status(StrEnum):
    """``MISSING``: a launch, or a later operation, will fail, or wait while a node of RabbitMQ is lost. ``UNKNOWN``: it could not be asked. ``NOTE``: good to know."""

    MISSING = "missing"
    UNKNOWN = "unknown"
    NOTE = "note"


class Line(NamedTuple):
    """``subject``: what kind of thing; ``problem``: what is wrong with which one; ``fix``: what to do about it."""

    region: str
    status: Status
    subject: str
    problem: str
    fix: str


MISSING, UNKNOWN = 1, 2
"""Exit codes; 0: nothing is missing."""


def exit_code(lines: Iterable[Line]) -> int:
    """What is missing counts more than what could not be asked."""
    found = {line.status for line in lines}
    return MISSING if Status.MISSING in found else UNKNOWN if Status.UNKNOWN in found else 0
