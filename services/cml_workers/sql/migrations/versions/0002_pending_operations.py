"""Pending operations can be found by their age."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_FIELD = {"sqlite": "json_extract(view, '$.{}')", "postgresql": "CAST(view AS json) ->> '{}'"}


def upgrade() -> None:
    op.add_column("operations", sa.Column("pending_since", sa.String(32), nullable=True))
    connection = op.get_bind()
    requested, result = map(_FIELD[connection.dialect.name].format, ("requested_at", "result"))
    # One statement: one for each row took seconds for every ten thousand of them.
    connection.exec_driver_sql(
        f"UPDATE operations SET pending_since = replace({requested}, 'Z', '+00:00') WHERE {result} IS NULL"  # noqa: S608 - constants
    )
    op.create_index("ix_operations_pending_since", "operations", ["pending_since"])
