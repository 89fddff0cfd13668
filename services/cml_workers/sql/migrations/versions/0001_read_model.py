"""The read model and the checkpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("follower", sa.String(64), primary_key=True),
        sa.Column("position", sa.String(64), nullable=False),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("status", sa.String(16), nullable=False, index=True),
        sa.Column("aws_region", sa.String(32), nullable=False, index=True),
        sa.Column("owner", sa.String(128), nullable=False, index=True),
        sa.Column("created_at", sa.String(32), nullable=False, index=True),
        sa.Column("view", sa.Text, nullable=False),
    )
    op.create_table(
        "worker_tags",
        sa.Column("worker_id", sa.Uuid, primary_key=True),
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("value", sa.String(256), nullable=False),
    )
    op.create_index("worker_tags_by_key", "worker_tags", ["key", "value"])
    op.create_table(
        "operations",
        sa.Column("command_id", sa.String(256), primary_key=True),
        sa.Column("worker_id", sa.Uuid, nullable=False, index=True),
        sa.Column("view", sa.Text, nullable=False),
    )
