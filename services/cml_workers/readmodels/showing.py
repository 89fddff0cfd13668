"""The views through which queries see the active generation, and what tables of an earlier version lack for them."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn

from cml_workers.readmodels.model import active, generation_table


def show(connection: sa.Connection, tables: Sequence[sa.Table], number: int) -> None:
    """Let queries see this generation of the tables."""
    _hide(connection, tables)
    _show(connection, tables, number)


def lacks(connection: sa.Connection, table: sa.Table, number: int) -> bool:
    """Whether a column is missing in this generation of the table, or in its view."""
    wanted = {column.name for column in table.columns}
    names = (generation_table(table, number).name, active(table).name)
    return any(wanted - _columns(connection, name) for name in names)


def complete(connection: sa.Connection, tables: Sequence[sa.Table], number: int) -> None:
    """Add the columns that are missing, which have a default."""
    _hide(
        connection, tables
    )  # a query that has the view locked waits for the table, so not the other way round
    for table in tables:
        rows = generation_table(table, number)
        there = _columns(connection, rows.name)
        for column in rows.columns:
            if column.name not in there:
                added = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {rows.name} ADD COLUMN {added}")
    _show(connection, tables, number)


def _hide(connection: sa.Connection, tables: Sequence[sa.Table]) -> None:
    for table in tables:
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {active(table).name}")


def _show(connection: sa.Connection, tables: Sequence[sa.Table], number: int) -> None:
    for table in tables:
        rows = generation_table(table, number)
        columns = ", ".join(column.name for column in rows.columns)
        connection.exec_driver_sql(f"CREATE VIEW {active(table).name} AS SELECT {columns} FROM {rows.name}")  # noqa: S608 - our own names


def _columns(connection: sa.Connection, name: str) -> set[str]:
    return {column["name"] for column in sa.inspect(connection).get_columns(name)}
