"""Dead letters and what became of them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("death", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("cause", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("message_id", sa.Text),
        sa.Column("user", sa.Text),
        sa.Column("properties", sa.Text, nullable=False),
        sa.Column("deaths", sa.Integer, nullable=False),
        sa.Column("redrives", sa.Integer, nullable=False),
        sa.Column("deliveries", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("faults", sa.Integer, nullable=False),
        sa.Column("first_died_at", sa.String(32), nullable=False),
        sa.Column("last_died_at", sa.String(32), nullable=False, index=True),
    )
    op.create_table(
        "dead_letter_outcomes",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("dead_letter_id", sa.Uuid, nullable=False, index=True),
        sa.Column("time", sa.String(32), nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("user", sa.Text),
        sa.Column("by", sa.String(128)),
        sa.Column("reason", sa.Text),
        sa.Column("message_id", sa.Text),
        sa.Column("replaced_type", sa.Text),
        sa.Column("replaced_body", sa.LargeBinary),
    )
