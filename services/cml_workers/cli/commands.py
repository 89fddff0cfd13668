"""Commands for workers: each sends one message and shows its result."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated
from uuid import UUID, uuid4

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cml_contracts.client import WorkerClient
from cml_contracts.commands import (
    CreateCMLWorker,
    ImportCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.results import OperationResult
from cml_workers.cli.resolving import WorkerRef, resolve
from cml_workers.cli.show import as_text, print_json
from cml_workers.cli.terminal import (
    NOT_DONE,
    UNREACHABLE,
    USAGE,
    AsJson,
    By,
    Why,
    err,
    fail,
    me,
    out,
    valid,
    with_client,
)

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Await the result, or return at once.")]
Deadline = Annotated[float, typer.Option(help="Seconds to await the result.", min=0.1)]
CommandIdOption = Annotated[
    str | None, typer.Option(help="Idempotency key: a command sent again under it has no second effect.")
]
Owner = Annotated[str | None, typer.Option(help="Whose the worker is; default: who sends this.")]
TagOptions = Annotated[list[str] | None, typer.Option("--tag", help="KEY=VALUE; may be repeated.")]


def create(
    name: str,
    region: Annotated[str, typer.Option(help="AWS region.")] = "us-east-1",
    instance_type: Annotated[str | None, typer.Option("--type", help="EC2 instance type.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="Launch profile; default: the one that the settings make.")
    ] = None,
    ami_id: Annotated[
        str | None, typer.Option(help="Image id; default: the profile's image for the region.")
    ] = None,
    ami_name: Annotated[
        str | None, typer.Option(help="Image name, which is looked up in the region.")
    ] = None,
    cml_version: Annotated[str | None, typer.Option(help="The CML version it hosts.")] = None,
    tag: TagOptions = None,
    worker_id: Annotated[
        UUID | None,
        typer.Option(
            help="The new worker's id, or that of a worker whose launch failed, to launch it again; "
            "default: one that follows from the command id."
        ),
    ] = None,
    owner: Owner = None,
    by: By = None,
    reason: Why = None,
    command_id: CommandIdOption = None,
    wait: Wait = True,
    deadline: Deadline = 60.0,
    as_json: AsJson = False,
) -> None:
    """Create a worker, and launch an instance for it."""
    command = valid(
        lambda: CreateCMLWorker(
            name=name,
            aws_region=region,
            instance_type=instance_type,
            profile=profile,
            ami_id=ami_id,
            ami_name=ami_name,
            cml_version=cml_version,
            tags=_tags(tag),
            worker_id=worker_id,
            created_by=by or me(),
            owner=owner,
            reason=reason,
        )
    )
    _send(lambda _: _value(command), command_id, wait, deadline, as_json)


def _power(
    make: Callable[[UUID, str, str | None], WorkerCommand], what: str, patience: float = 60.0
) -> Callable[..., None]:
    """A command that needs nothing but a worker."""

    def command(
        worker: WorkerRef,
        by: By = None,
        reason: Why = None,
        command_id: CommandIdOption = None,
        wait: Wait = True,
        deadline: Deadline = patience,
        as_json: AsJson = False,
    ) -> None:
        _send_to(worker, lambda id_: make(id_, by or me(), reason), command_id, wait, deadline, as_json)

    command.__doc__ = what
    return command


start = _power(
    lambda worker, by, reason: StartCMLWorker(worker_id=worker, started_by=by, reason=reason),
    "Start a stopped worker.",
)
stop = _power(
    lambda worker, by, reason: StopCMLWorker(worker_id=worker, stopped_by=by, reason=reason),
    "Stop a running worker, or one that is starting, as soon as it runs.",
)
terminate = _power(
    lambda worker, by, reason: TerminateCMLWorker(worker_id=worker, terminated_by=by, reason=reason),
    "Terminate a worker and its instance. This is final.",
    patience=300.0,
)


def tag(
    worker: WorkerRef,
    tags: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="Tags to add or overwrite.")],
    by: By = None,
    reason: Why = None,
    command_id: CommandIdOption = None,
    wait: Wait = True,
    deadline: Deadline = 60.0,
    as_json: AsJson = False,
) -> None:
    """Add or overwrite tags; no tag is removed."""
    wanted = _tags(tags)
    _send_to(
        worker,
        lambda id_: UpdateCMLWorkerTags(worker_id=id_, tags=wanted, updated_by=by or me(), reason=reason),
        command_id,
        wait,
        deadline,
        as_json,
    )


def status(
    worker: WorkerRef,
    command_id: CommandIdOption = None,
    wait: Wait = True,
    deadline: Deadline = 60.0,
    as_json: AsJson = False,
) -> None:
    """Look up the worker's state in EC2 now, and record what changed."""
    _send_to(worker, lambda id_: UpdateCMLWorkerStatus(worker_id=id_), command_id, wait, deadline, as_json)


def import_(
    instance_id: str,
    region: Annotated[str, typer.Option(help="AWS region.")] = "us-east-1",
    owner: Owner = None,
    by: By = None,
    reason: Why = None,
    command_id: CommandIdOption = None,
    wait: Wait = True,
    deadline: Deadline = 60.0,
    as_json: AsJson = False,
) -> None:
    """Import an existing instance as a worker."""
    command = valid(
        lambda: ImportCMLWorker(
            aws_region=region, instance_id=instance_id, created_by=by or me(), owner=owner, reason=reason
        )
    )
    _send(lambda _: _value(command), command_id, wait, deadline, as_json)


BY_NAME: Mapping[str, Callable[..., None]] = {
    "create": create,
    "start": start,
    "stop": stop,
    "terminate": terminate,
    "tag": tag,
    "status": status,
    "import": import_,
}


def _send_to(
    worker: str,
    command: Callable[[UUID], WorkerCommand],
    command_id: str | None,
    wait: bool,
    deadline: float,
    as_json: bool,
) -> None:
    async def addressed(client: WorkerClient) -> WorkerCommand:
        worker_id = await resolve(client, worker)
        return valid(lambda: command(worker_id))

    _send(addressed, command_id, wait, deadline, as_json)


def _send(
    command: Callable[[WorkerClient], Awaitable[WorkerCommand]],
    command_id: str | None,
    wait: bool,
    deadline: float,
    as_json: bool,
) -> None:
    used_id = str(uuid4()) if command_id is None else command_id
    sent = False

    async def send(client: WorkerClient) -> OperationResult | str:
        nonlocal sent
        wanted = await command(client)
        sent = True
        if not wait:
            return await client.post(wanted, command_id=used_id)
        return await client.send(wanted, command_id=used_id, deadline=deadline)

    try:
        result = with_client(send)
    except (KeyboardInterrupt, typer.Exit) as ended:
        if sent and (isinstance(ended, KeyboardInterrupt) or ended.exit_code == UNREACHABLE):
            err.print(
                f"The command may have been sent; see its outcome with: cml-workers operation {escape(used_id)}",
                soft_wrap=True,
                highlight=False,
            )
        raise
    if isinstance(result, str):
        if as_json:
            print_json({"command_id": result})
        else:
            out.print(
                f"sent; see its outcome with: cml-workers operation {escape(result)}",
                soft_wrap=True,
                highlight=False,
            )
        return
    if as_json:
        print_json(result.model_dump(mode="json"))
    elif result.problem:
        err.print(
            f"[red]{result.outcome}[/red] {result.problem.code}: {escape(result.problem.detail)}",
            soft_wrap=True,
        )
        if result.problem.retryable:
            err.print("It may succeed later: send it again as a new command.")
    else:
        out.print(f"[green]succeeded[/green] worker {result.worker_id}", soft_wrap=True, highlight=False)
        if isinstance(result.data, dict):
            table = Table.grid(padding=(0, 2))
            for key, value in result.data.items():
                if value not in (None, [], {}):
                    text = as_text(value) if isinstance(value, dict | list) else str(value)
                    table.add_row(Text(key), Text(text))
            out.print(table)
    if result.outcome != "succeeded":
        raise typer.Exit(NOT_DONE)


def _tags(pairs: list[str] | None) -> dict[str, str]:
    tags: dict[str, str] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            fail(f"{pair!r} is not a tag: write KEY=VALUE", USAGE)
        if key in tags:
            fail(f"tag {key!r} is given twice", USAGE)
        tags[key] = value
    return tags


async def _value(command: WorkerCommand) -> WorkerCommand:
    return command
