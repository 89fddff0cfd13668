"""A read model of workers without rows becomes one of the fifth version, which has indexes for every filter and sorting."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_SORTS = ("created_at", "name", "status", "aws_region")
_CONDITIONS = ("status", "aws_region", "owner", "ended_at")
_PAIRS = "array_remove(string_to_array(regexp_replace(lower({}), '(..)', E'\\\\1\\x01', 'g'), E'\\x01'), '')"
_PARTS = (
    f"string_to_array(lower(name), NULL) || {_PAIRS.format('name')} || {_PAIRS.format('substr(name, 2)')}"
)


def upgrade() -> None:
    """Tables with rows stay as they are: the projector makes others beside them."""
    begun = op.get_bind().execute(
        sa.text(
            "UPDATE read_model_generations SET version = 5 "
            "WHERE name = 'workers' AND number = 1 AND version = 4 AND position IS NULL AND state = 'active'"
        )
    )
    if not begun.rowcount:
        return
    op.add_column(
        "workers",
        sa.Column(
            "ended_at", sa.String(32), nullable=False, server_default="9999-12-31T23:59:59.999999+00:00"
        ),
    )
    for column in ("status", "aws_region", "owner", "created_at"):
        op.drop_index(f"ix_workers_{column}", "workers")
    for sort in _SORTS:
        others = [each for each in _CONDITIONS if each != sort]
        op.create_index(f"workers_by_{sort}", "workers", [sort, "id", *others])
    op.create_index("workers_by_owner", "workers", ["owner", "created_at", "id"])
    op.drop_index("worker_tags_by_key", "worker_tags")
    op.create_index("worker_tags_by_key", "worker_tags", ["key", "value", "worker_id"])
    op.execute("DROP VIEW active_workers")
    op.execute(
        "CREATE VIEW active_workers AS SELECT id, name, status, aws_region, owner, created_at, view, ended_at FROM workers"
    )
    if op.get_bind().dialect.name == "postgresql":
        connection = op.get_bind()
        connection.exec_driver_sql(f"CREATE INDEX workers_by_name_part ON workers USING gin (({_PARTS}))")
        connection.exec_driver_sql(
            "CREATE STATISTICS worker_tags_values (mcv) ON key, value FROM worker_tags"
        )
