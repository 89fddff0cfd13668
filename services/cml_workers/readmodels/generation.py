"""One generation of a read model's tables, and the row that says what it is for."""

from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from cml_workers.eventstore.anchor import Anchor
from cml_workers.sql.schema import METADATA

GENERATIONS = sa.Table(
    "read_model_generations",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("position", sa.String(64), nullable=True),
    sa.Column("events", sa.Integer, nullable=False),
    sa.Column("anchor", sa.Text, nullable=True),
)
_ACTIVE = GENERATIONS.c.state == "active"
sa.Index(
    "one_active_generation", GENERATIONS.c.name, unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE
)


class State(StrEnum):
    """What a generation is for."""

    BUILDING = "building"
    """Filled from the beginning, by whoever resumes it."""
    ACTIVE = "active"
    """What queries see."""
    RETIRED = "retired"
    """About to be dropped."""
    TEMPORARY = "temporary"
    """Of one process alone, until another begins."""
    DROPPED = "dropped"
    """Without tables; kept until there is a higher number, so that none comes again."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Tables as they were last seen. ``position``: up to where their rows are; ``events``: how many made them; ``anchor``: the last one."""

    number: int
    version: int
    state: State
    position: str | None
    events: int
    anchor: Anchor | None = None
