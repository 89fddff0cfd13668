"""Pending operations can be found by their age."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("operations", sa.Column("pending_since", sa.String(32), nullable=True))
    op.create_index("ix_operations_pending_since", "operations", ["pending_since"])
    operations = sa.table("operations", *map(sa.column, ("command_id", "pending_since", "view")))
    connection = op.get_bind()
    for command_id, view in connection.execute(sa.select(operations.c.command_id, operations.c.view)).all():
        operation = json.loads(view)
        if operation["result"] is None:
            connection.execute(
                sa.update(operations)
                .where(operations.c.command_id == command_id)
                .values(pending_since=operation["requested_at"].replace("Z", "+00:00"))
            )
