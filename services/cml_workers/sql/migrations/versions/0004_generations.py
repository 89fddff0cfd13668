"""Read models are kept in generations of tables, of which queries see the active generation through views."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_COLUMNS = {
    "workers": ("id", "name", "status", "aws_region", "owner", "created_at", "view"),
    "worker_tags": ("worker_id", "key", "value"),
    "operations": ("command_id", "worker_id", "pending_since", "view"),
}


def upgrade() -> None:
    op.create_table(
        "read_model_generations",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("position", sa.String(64), nullable=True),
        sa.Column("events", sa.Integer, nullable=False),
    )
    active = sa.text("state = 'active'")
    op.create_index(
        "one_active_generation",
        "read_model_generations",
        ["name"],
        unique=True,
        sqlite_where=active,
        postgresql_where=active,
    )
    _adopt()
    for table, columns in _COLUMNS.items():
        op.execute(f"CREATE VIEW active_{table} AS SELECT {', '.join(columns)} FROM {table}")  # noqa: S608 - constants


def _adopt() -> None:
    """The tables of before are the first generation, which goes on where it is; without rows they are like the second version's."""
    connection = op.get_bind()
    position = connection.scalar(sa.text("SELECT position FROM checkpoints WHERE follower = 'read-model'"))
    revision = (
        "json_extract(view, '$.revision')"
        if connection.dialect.name == "sqlite"
        else "CAST(CAST(view AS json) ->> 'revision' AS integer)"
    )
    events = connection.exec_driver_sql(f"SELECT sum({revision} + 1) FROM workers")  # noqa: S608 - a constant
    connection.execute(
        sa.text(
            "INSERT INTO read_model_generations VALUES ('workers', 1, :version, 'active', :position, :events)"
        ),
        {
            "version": 1 if position else 2,
            "position": position,
            "events": events.scalar_one() or 0,
        },
    )
    connection.execute(sa.text("DELETE FROM checkpoints WHERE follower = 'read-model'"))
