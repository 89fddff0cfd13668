"""Read models say which event they are behind, by which they recognise the event store."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("read_model_generations", sa.Column("anchor", sa.Text, nullable=True))
