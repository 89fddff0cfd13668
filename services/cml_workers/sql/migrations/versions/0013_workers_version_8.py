"""A read model of workers without rows becomes one of the eighth version, which has the workers' owners with their tags, and sorts by code points."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_LENGTHS = {
    "workers": {"name": 256, "status": 16, "aws_region": 32, "created_at": 32},
    "worker_tags": {"name": 256},
}
_PAIRS = "array_remove(string_to_array(regexp_replace(lower({} COLLATE \"default\"), '(..)', E'\\\\1\\x01', 'g'), E'\\x01'), '')"
_PARTS = (
    'string_to_array(lower(name COLLATE "default"), NULL) || '
    f"{_PAIRS.format('name')} || {_PAIRS.format('substr(name, 2)')}"
)


def upgrade() -> None:
    """Tables with rows stay as they are: the projector makes others beside them."""
    begun = op.get_bind().execute(
        sa.text(
            "UPDATE read_model_generations SET version = 8 "
            "WHERE name = 'workers' AND number = 1 AND version = 7 AND position IS NULL AND state = 'active'"
        )
    )
    if not begun.rowcount:
        return
    op.execute("DROP VIEW active_workers")
    op.execute("DROP VIEW active_worker_tags")
    op.add_column("worker_tags", sa.Column("owner", sa.String(128), nullable=False, server_default=""))
    op.drop_index("worker_tags_by_key", "worker_tags")
    if op.get_bind().dialect.name == "postgresql":
        _sort_by_code_points(op.get_bind())
    op.create_index("worker_tags_by_key", "worker_tags", ["key", "value", "owner", "name", "worker_id"])
    op.execute(
        "CREATE VIEW active_workers AS SELECT id, name, status, aws_region, owner, created_at, view, ended_at FROM workers"
    )
    op.execute("CREATE VIEW active_worker_tags AS SELECT worker_id, key, value, name, owner FROM worker_tags")


def _sort_by_code_points(connection: sa.Connection) -> None:
    connection.exec_driver_sql("DROP INDEX workers_by_name_part")
    connection.exec_driver_sql("DROP STATISTICS worker_tags_values")
    for table, lengths in _LENGTHS.items():
        changes = (f'ALTER {column} TYPE varchar({length}) COLLATE "C"' for column, length in lengths.items())
        connection.exec_driver_sql(f"ALTER TABLE {table} {', '.join(changes)}")
    connection.exec_driver_sql(f"CREATE INDEX workers_by_name_part ON workers USING gin (({_PARTS}))")
    connection.exec_driver_sql(
        "CREATE STATISTICS worker_tags_values (mcv) ON key, value, owner FROM worker_tags"
    )
