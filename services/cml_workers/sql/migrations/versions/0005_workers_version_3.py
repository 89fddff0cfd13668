"""A read model of workers without rows is like the third version's, which makes the same tables."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute(
        "UPDATE read_model_generations SET version = 3 WHERE name = 'workers' AND version = 2 AND position IS NULL"
    )
