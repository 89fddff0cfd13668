"""The tables of workers and operations, and the version of what is in them."""

import sqlalchemy as sa

_TABLES = sa.MetaData()

WORKERS = sa.Table(
    "workers",
    _TABLES,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("aws_region", sa.String(32), nullable=False, index=True),
    sa.Column("owner", sa.String(128), nullable=False, index=True),
    sa.Column("created_at", sa.String(32), nullable=False, index=True),
    sa.Column("view", sa.Text, nullable=False),
)
WORKER_TAGS = sa.Table(
    "worker_tags",
    _TABLES,
    sa.Column("worker_id", sa.Uuid, primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("value", sa.String(256), nullable=False),
    sa.Index("worker_tags_by_key", "key", "value"),
)
OPERATIONS = sa.Table(
    "operations",
    _TABLES,
    sa.Column("command_id", sa.String(256), primary_key=True),
    sa.Column("worker_id", sa.Uuid, nullable=False, index=True),
    sa.Column("pending_since", sa.String(32), nullable=True, index=True),
    sa.Column("view", sa.Text, nullable=False),
)
TABLES = (WORKERS, WORKER_TAGS, OPERATIONS)
VERSION = 4
"""Count it up with every change of the tables above or of the rows that ``fold`` makes."""
USABLE = frozenset({1, 2, 3})
"""Earlier versions with the same tables; in the first one tags that were gone stayed, the second one had no reasons of EC2, the third one
showed the tags of an import as an operation of its own."""
