"""Of a dead letter with more than is kept of a body: how long it was, and its hash."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("dead_letters", sa.Column("whole_size", sa.Integer))
    op.add_column("dead_letters", sa.Column("whole_sha256", sa.String(64)))
