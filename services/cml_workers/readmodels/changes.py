"""What events change in the tables of a read model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Put:
    """A row of this table is new, or replaces the one with the same key."""

    table: str
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Remove:
    """A row of this table, given by its key, is no longer there."""

    table: str
    row: Mapping[str, Any]


Change = Put | Remove
