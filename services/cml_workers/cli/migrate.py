"""``cml-workers migrate``: the tables that this version needs, made by a user who may make them."""

from typing import TYPE_CHECKING, Annotated

import typer

from cml_workers.cli.terminal import NOT_DONE, configured, out, run_to_end
from cml_workers.runtime.endpoints import database_options
from cml_workers.runtime.settings import Settings

if TYPE_CHECKING:  # slow to load, of no use to a client
    from cml_workers.sql.database import Schema


def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing: say what would be changed, with exit code 1.")
    ] = False,
) -> None:
    """Make the tables in DATABASE_URL, or change them to what this version needs; all of it, or nothing.

    Roles do this themselves when they start, if their user may. Where it may not, run this first, with the
    DATABASE_URL of the user that owns the tables, then [bold]deploy/postgresql/rights.sql[/bold] as the same user, which gives the
    roles' users their rights; then start the roles of this version. Processes of the version before go on meanwhile: nothing
    is removed that they need. Rows of read models are not changed here: the projector of this version makes its own tables
    beside the old ones.

    Run again, it changes nothing. It waits two seconds at most for a table that somebody else has locked, lets others have their
    turn, and tries again for five minutes.

    Exit codes: 0 the schema is what this version needs; 1 with --check: it is not; 2 it cannot be changed: rights, the encoding, a
    newer version's schema, DATABASE_URL; 3 the database does not answer.
    """
    before = run_to_end(_schema(configured(), check=check))
    for change in before.pending:
        out.print(f"{'to do' if check else 'done'}: {change}", highlight=False, soft_wrap=True)
    if not before.pending:
        out.print(f"up to date: {before.revision}", highlight=False)
    elif check:
        raise typer.Exit(NOT_DONE)


async def _schema(settings: Settings, *, check: bool) -> "Schema":
    from cml_workers.sql import database  # noqa: PLC0415 - see above

    engine = database.open_database(database_options(settings))
    try:
        return await (database.schema(engine) if check else database.migrate(engine))
    finally:
        await database.dispose(engine)
