"""The tables of workers and operations, and the version of what is in them."""

import sqlalchemy as sa

from cml_workers.readmodels.workers.fold import NEVER

_TABLES = sa.MetaData()
_SORTS = ("created_at", "name", "status", "aws_region")
_CONDITIONS = ("status", "aws_region", "owner", "ended_at")


def lower_of(text: str) -> str:
    """PostgreSQL's expression for a text in lower case, as the database's language has it: without that, only the letters of ASCII."""
    return f'lower({text} COLLATE "default")'


def pairs_of(text: str) -> str:
    """The same in pairs of characters, as an array; the last one may be single."""
    pairs = f"regexp_replace({lower_of(text)}, '(..)', E'\\\\1\\x01', 'g')"
    return f"array_remove(string_to_array({pairs}, E'\\x01'), '')"


def parts_of(text: str) -> str:
    """The same for all its pairs and single characters: whatever contains another text has the pairs of that one among them.

    What the extension ``pg_trgm`` does, which not every server has or allows.
    """
    return f"string_to_array({lower_of(text)}, NULL) || {pairs_of(text)} || {pairs_of(f'substr({text}, 2)')}"


def _sorted(length: int) -> sa.String:
    """By code points, in PostgreSQL as in SQLite, whatever language the database has.

    That takes half the time, and its order never changes: with an operating system's new version that of a language may, and
    indexes are wrong then (https://wiki.postgresql.org/wiki/Locale_data_changes).
    """
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


WORKERS = sa.Table(
    "workers",
    _TABLES,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", _sorted(256), nullable=False),
    sa.Column("status", _sorted(16), nullable=False),
    sa.Column("aws_region", _sorted(32), nullable=False),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("created_at", _sorted(32), nullable=False),
    sa.Column("view", sa.Text, nullable=False),
    sa.Column("ended_at", sa.String(32), nullable=False, server_default=NEVER),
    # In the order of each sorting, and with what may be asked for besides: what is passed over is not read from the table.
    *(
        sa.Index(f"workers_by_{sort}", sort, "id", *(each for each in _CONDITIONS if each != sort))
        for sort in _SORTS
    ),
    sa.Index("workers_by_owner", "owner", "created_at", "id"),
)
WORKER_TAGS = sa.Table(
    "worker_tags",
    _TABLES,
    sa.Column("worker_id", sa.Uuid, primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("value", sa.String(256), nullable=False),
    # The worker's, so that an owner's with a tag are found, in the order of their names. In rows of earlier versions there is no owner.
    sa.Column("name", _sorted(256), nullable=False, server_default=""),
    sa.Column("owner", sa.String(128), nullable=False, server_default=""),
    sa.Index("worker_tags_by_key", "key", "value", "owner", "name", "worker_id"),
)
OPERATIONS = sa.Table(
    "operations",
    _TABLES,
    sa.Column("command_id", sa.String(256), primary_key=True),
    sa.Column("worker_id", sa.Uuid, nullable=False, index=True),
    sa.Column("pending_since", sa.String(32), nullable=True, index=True),
    sa.Column("view", sa.Text, nullable=False),
    # The key is the id as its user's. This is the id as it was sent, and that of the operation; empty in rows of earlier versions, whose key is both.
    sa.Column("sent_id", sa.String(256), nullable=False, server_default=""),
    sa.Column("operation_id", sa.String(256), nullable=False, server_default=""),
    sa.Index("operations_by_sent_id", "sent_id"),
)
TABLES = (WORKERS, WORKER_TAGS, OPERATIONS)
VERSION = 8
"""Count it up with every change of the tables above or of the rows that ``fold`` makes."""
USABLE = frozenset({1, 2, 3, 4, 5, 6, 7})
"""Earlier versions whose tables lack only columns that have a default; in the first one tags that were gone stayed, the second one had
no reasons of EC2, the third one showed the tags of an import as an operation of its own, the fourth one had no ``ended_at``, the fifth one had
one operation for each command id, whoever used it, the sixth one had no names with the tags, the seventh one no owners, and its
order was that of the database's language."""


def _in_postgresql(table: sa.Table, statement: str) -> None:
    """Beside each generation of the table; ``%(table)s`` is its name."""
    made = sa.DDL(statement).execute_if(dialect="postgresql")  # type: ignore[no-untyped-call]
    sa.event.listen(table, "after_create", made, propagate=True)


_in_postgresql(WORKERS, f"CREATE INDEX %(table)s_by_name_part ON %(table)s USING gin (({parts_of('name')}))")
# How often a value comes with its key is not how often it comes; nor with its owner.
_in_postgresql(WORKER_TAGS, "CREATE STATISTICS %(table)s_values (mcv) ON key, value, owner FROM %(table)s")
