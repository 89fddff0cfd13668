"""Alembic's entry: runs on the connection that it is given, within the caller's transaction."""

from alembic import context

from cml_workers.sql.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=False,  # the caller's transaction holds all of it
)
context.run_migrations()
