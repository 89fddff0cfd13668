"""Two tables of a read model, row by row."""

from dataclasses import dataclass

import sqlalchemy as sa

SHOWN = 5
"""Keys of different rows that are listed for each table."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How two generations of a table differ. ``examples``: keys of rows that do."""

    table: str
    missing: int
    """Rows of the active generation that the other does not have, or not like that."""
    added: int
    examples: tuple[str, ...]


def difference(connection: sa.Connection, name: str, old: sa.Table, new: sa.Table) -> Difference:
    """How two tables of the same columns differ; ``name``: what to call them."""

    def only_in(one: sa.Table, other: sa.Table) -> sa.Subquery:
        return sa.except_(sa.select(*one.columns), sa.select(*other.columns)).subquery()

    missing, added = only_in(old, new), only_in(new, old)

    def count(rows: sa.Subquery) -> int:
        return connection.scalar(sa.select(sa.func.count()).select_from(rows)) or 0

    key = [column.name for column in old.primary_key]
    examples = {
        " ".join(map(str, row))
        for rows in (missing, added)
        for row in connection.execute(sa.select(*(rows.c[each] for each in key)).limit(SHOWN))
    }
    return Difference(name, count(missing), count(added), tuple(sorted(examples)[:SHOWN]))
