"""Dead letters on the command line: list, show, redrive, edit and discard them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import BaseModel

from cml_contracts.deadletters import (
    DeadLetterPage,
    DeadLetterState,
    DeadLetterView,
    DiscardDeadLetter,
    EditDeadLetter,
    ListDeadLetters,
    RedriveDeadLetter,
)
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.cli.editing import check, in_editor, pretty, read_body
from cml_workers.cli.operating import ask, ask_all, details_of, find_all
from cml_workers.cli.show import counts_table, dead_letter_panel, dead_letter_table, history_table, print_json
from cml_workers.cli.terminal import (
    NOT_DONE,
    USAGE,
    AsJson,
    By,
    Why,
    err,
    fail,
    me,
    out,
    valid,
)
from cml_workers.eventstore.quarantine import QUARANTINE_STREAMS

deadletters = typer.Typer(
    name="deadletters",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Messages that could not be handled: see why, and [bold]redrive[/bold] them once the cause is fixed, "
    "[bold]edit[/bold] what is wrong in them, or [bold]discard[/bold] them. Each is kept permanently, with its history.",
    epilog="Begin with `list` and its causes, then `show` one. Unauthorized: fix CML_COMMAND_USERS, then redrive. "
    "ValidationFailed: the message itself is invalid: edit or discard it. HandlerFailed, DeliveryLimit: a bug of this "
    "service, or a part that was down: update or repair it, then redrive. Quarantined: an event that the relay or the projector "
    "cannot handle: redrive it to have it tried again, discard it to have it skipped (docs/operations.md). On a RabbitMQ of your own, use a user of "
    "CML_OPERATOR_USERS.",
)


Id = Annotated[UUID, typer.Argument(metavar="ID", help="As `list` shows it.")]


OfQueue = Annotated[str | None, typer.Option("--queue", help="Only those that died in this queue.")]


OfType = Annotated[str | None, typer.Option("--type", help="Only of this message type.")]


OfCause = Annotated[str | None, typer.Option("--cause", help="Only of this cause, e.g. Unauthorized.")]


Containing = Annotated[str | None, typer.Option("--reason-part", help="Only with this in the reason.")]


Since = Annotated[
    str | None,
    typer.Option(help="Only those that died since: 2026-01-31, 2026-01-31T12:00Z, or 90m, 12h, 7d ago."),
]


@deadletters.command("list")
def list_letters(
    queue: OfQueue = None,
    message_type: OfType = None,
    cause: OfCause = None,
    reason_part: Containing = None,
    since: Since = None,
    state: Annotated[DeadLetterState, typer.Option(help="Only in this state.")] = DeadLetterState.WAITING,
    every: Annotated[bool, typer.Option("--all", help="In any state.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Dead letters on one page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Where the next page begins.")] = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the latest first, and how many there are of each cause; by default those that wait."""
    wanted = _conditions(queue, message_type, cause, reason_part, since, None if every else state)
    wanted = valid(
        lambda: ListDeadLetters.model_validate({**wanted.model_dump(), "limit": limit, "cursor": cursor})
    )
    page = DeadLetterPage.model_validate(ask(wanted).data)
    if as_json:
        print_json(_json(page))
        return
    if not page.dead_letters:
        out.print(
            "no dead letters" if every else f"no dead letters {state}; --all shows those in other states too"
        )
        return
    out.print(dead_letter_table(page.dead_letters, out.width))
    out.print()
    out.print(counts_table(page.counts))
    if page.next_cursor:
        out.print(f"more: --cursor {page.next_cursor}", soft_wrap=True, highlight=False)


@deadletters.command()
def show(dead_letter_id: Id, as_json: AsJson = False) -> None:
    """Show a dead letter: the message, why it died, and its history."""
    details = details_of(dead_letter_id)
    if as_json:
        print_json(_json(details))
        return
    out.print(dead_letter_panel(details))
    out.print(pretty(details.body), markup=False, soft_wrap=True)
    if details.size > len(details.body.encode()) and details.encoding == "utf-8":
        out.print(f"(cut; it has {details.size} bytes)")
    out.print(history_table(details.history))


@deadletters.command()
def redrive(
    ids: Annotated[list[UUID] | None, typer.Argument(metavar="ID", help="As `list` shows them.")] = None,
    queue: OfQueue = None,
    message_type: OfType = None,
    cause: OfCause = None,
    reason_part: Containing = None,
    since: Since = None,
    every: Annotated[bool, typer.Option("--all", help="All that wait.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show which they are.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    by: By = None,
    reason: Why = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters to the queue they died in again: those named, or all that wait and meet the conditions.

    They go in their senders' names, with cleared counters. A command that was decided before is only replied to again.
    One that dies again is the same dead letter, with a higher count. Redriving twice is harmless.
    """
    conditions = (queue, message_type, cause, reason_part, since)
    chosen = every or any(condition is not None for condition in conditions)
    if bool(ids) == chosen:
        fail(
            "name dead letters by their ids, or choose them by conditions, or all that wait with --all", USAGE
        )
    if ids and not dry_run:
        wanted = ids
    else:
        waiting = DeadLetterState.WAITING
        letters = [details_of(each) for each in ids or ()] or find_all(_conditions(*conditions, waiting))
        if dry_run and as_json:
            print_json({"dead_letters": [_json(each) for each in letters]})
            return
        if not letters:
            out.print("nothing to redrive")
            return
        if dry_run or not yes:
            shown_on = out if dry_run else err
            shown_on.print(dead_letter_table(letters, shown_on.width))
        if dry_run:
            out.print(f"{len(letters)} would be redriven")
            return
        if not yes:
            typer.confirm(f"Redrive these {len(letters)}?", abort=True, err=True)
        wanted = [each.id for each in letters]
    by = by or me()
    requests = valid(
        lambda: [RedriveDeadLetter(dead_letter_id=each, by=by, reason=reason) for each in wanted]
    )
    results = ask_all(requests)
    for each, result in zip(wanted, results, strict=True):
        if as_json:
            print_json({"dead_letter_id": str(each), **_json(result)}, compact=True)
        elif result.problem:
            _say(f"{each} {result.problem.code}: {result.problem.detail}")
        else:
            queue = DeadLetterView.model_validate(result.data).queue
            taken_up = queue.startswith(QUARANTINE_STREAMS)
            _say(f"{each} {'is taken up again by the follower of' if taken_up else 'redriven to'} {queue}")
    if any(result.problem for result in results):
        raise typer.Exit(NOT_DONE)


@deadletters.command()
def edit(
    dead_letter_id: Id,
    body: Annotated[str | None, typer.Option(help="The new body.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="A file with the new body; - is the standard input.", allow_dash=True)
    ] = None,
    message_type: Annotated[str | None, typer.Option("--type", help="The new message type.")] = None,
    by: By = None,
    reason: Why = None,
    as_json: AsJson = False,
) -> None:
    """Fix what is wrong in a dead letter and redrive it; without --body, --file or --type in your $EDITOR.

    Of messages of other programs only, not of those within the system. An edited command is yours: you need the right to send it
    (CML_COMMAND_USERS), and its body names you, or nobody, as who asks for it.

    The old body is kept in the history. A command keeps its id unless the old body has used it: then it gets a new one,
    under which its operation is found.
    """
    if body is not None and file is not None:
        fail("--body and --file exclude each other", USAGE)
    details = details_of(dead_letter_id)
    if file is not None:
        body = read_body(file)
    elif body is None and message_type is None:
        body = in_editor(details)
    if details.queue == LIFECYCLE_COMMANDS.name:
        check(message_type or details.type, details.body if body is None else body)
    request = valid(
        lambda: EditDeadLetter(
            dead_letter_id=dead_letter_id, body=body, type=message_type, by=by or me(), reason=reason
        )
    )
    view = DeadLetterView.model_validate(ask(request).data)
    if as_json:
        print_json(_json(view))
        return
    _say(f"{view.id} edited and redriven to {view.queue}")
    if view.message_id != details.message_id:
        _say(f"the old body has used its id {details.message_id}; it is now command {view.message_id}")
    if view.queue == LIFECYCLE_COMMANDS.name:
        _say(f"see its operation: cml-workers operation {view.message_id}")


@deadletters.command()
def discard(
    dead_letter_id: Id,
    reason: Annotated[str, typer.Option(help="Why nothing is done; kept in the history.")],
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Decide that nothing is done about a dead letter. It is kept, and can still be redriven."""
    request = valid(lambda: DiscardDeadLetter(dead_letter_id=dead_letter_id, reason=reason, by=by or me()))
    view = DeadLetterView.model_validate(ask(request).data)
    if as_json:
        print_json(_json(view))
    else:
        out.print(f"{view.id} discarded", markup=False, highlight=False)


def _say(line: str) -> None:
    """Print a line without wrapping or markup."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def _json(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


def _conditions(
    queue: str | None,
    message_type: str | None,
    cause: str | None,
    reason_part: str | None,
    since: str | None,
    state: DeadLetterState | None,
) -> ListDeadLetters:
    return valid(
        lambda: ListDeadLetters(
            queue=queue,
            type=message_type,
            cause=cause,
            reason_part=reason_part,
            since=moment(since) if since else None,
            state=state,
            limit=500,
        )
    )


def moment(text: str) -> datetime:
    """What ``--since`` says."""
    unit = {"m": "minutes", "h": "hours", "d": "days"}.get(text[-1])
    try:
        if unit:
            if float(text[:-1]) < 0:
                fail(f"--since says how long ago; {text!r} would be in the future", USAGE)
            return datetime.now(UTC) - timedelta(**{unit: float(text[:-1])})
        time = datetime.fromisoformat(text)
        return time if time.tzinfo else time.astimezone()
    except (ValueError, OverflowError):
        fail(
            f"--since is a time like 2026-01-31T12:00Z, or how long ago like 90m, 12h, 7d; not {text!r}",
            USAGE,
        )
