"""A read model of workers without rows is like the fourth version's, which makes the same tables."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute(
        "UPDATE read_model_generations SET version = 4 WHERE name = 'workers' AND version = 3 AND position IS NULL"
    )
