"""A read model of workers without rows becomes one of the sixth version, which has an operation for each user of a command id."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Tables with rows stay as they are: the projector makes others beside them."""
    begun = op.get_bind().execute(
        sa.text(
            "UPDATE read_model_generations SET version = 6 "
            "WHERE name = 'workers' AND number = 1 AND version = 5 AND position IS NULL AND state = 'active'"
        )
    )
    if not begun.rowcount:
        return
    for name in ("sent_id", "operation_id"):
        op.add_column("operations", sa.Column(name, sa.String(256), nullable=False, server_default=""))
    op.create_index("operations_by_sent_id", "operations", ["sent_id"])
    op.execute("DROP VIEW active_operations")
    op.execute(
        "CREATE VIEW active_operations AS SELECT command_id, worker_id, pending_since, view, sent_id, operation_id FROM operations"
    )
