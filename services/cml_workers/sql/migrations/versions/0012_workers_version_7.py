"""A read model of workers without rows becomes one of the seventh version, which has the workers' names with their tags."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Tables with rows stay as they are: the projector makes others beside them."""
    begun = op.get_bind().execute(
        sa.text(
            "UPDATE read_model_generations SET version = 7 "
            "WHERE name = 'workers' AND number = 1 AND version = 6 AND position IS NULL AND state = 'active'"
        )
    )
    if not begun.rowcount:
        return
    op.add_column("worker_tags", sa.Column("name", sa.String(256), nullable=False, server_default=""))
    op.drop_index("worker_tags_by_key", "worker_tags")
    op.create_index("worker_tags_by_key", "worker_tags", ["key", "value", "name", "worker_id"])
    op.execute("DROP VIEW active_worker_tags")
    op.execute("CREATE VIEW active_worker_tags AS SELECT worker_id, key, value, name FROM worker_tags")
