"""The command line: run the system, show it, and use it as a client."""

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.error import HTTPError
from urllib.request import urlopen
from uuid import UUID

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
from cml_contracts.envelope import EventEnvelope
from cml_contracts.instance import WorkerStatus
from cml_contracts.queries import ListCMLWorkers, WorkerView
from cml_contracts.results import OperationResult
from cml_workers.cli.deadletters import deadletters
from cml_workers.cli.rebuild import rebuild
from cml_workers.cli.show import event_line, operation_panel, print_json, worker_panel, worker_table
from cml_workers.cli.terminal import (
    REFUSED,
    UNREACHABLE,
    USAGE,
    AsJson,
    By,
    Why,
    configured,
    err,
    fail,
    me,
    out,
    run_to_end,
    valid,
    with_client,
)
from cml_workers.eventstore.port import StreamNotFoundError
from cml_workers.eventstore.worker_streams import published, stream_of
from cml_workers.runtime.endpoints import amqp_url, event_store_uri

SYSTEM, CLIENT, OPERATE = "Run the system", "Use it", "Operate it"

app = typer.Typer(
    name="cml-workers",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Run fleets of [bold]CML workers[/bold]: AWS EC2 instances that each host Cisco Modeling Labs.",
    epilog="Exit codes: 0 done; 1 rejected or failed; 2 wrong usage or configuration; 3 a service cannot be "
    "reached; 4 no result within the deadline (the command stands: ask with `cml-workers operation`).",
)
app.add_typer(deadletters, rich_help_panel=OPERATE)
app.command(rich_help_panel=OPERATE)(rebuild)


# -- the system -------------------------------------------------------------------------------------------


@app.command(rich_help_panel=SYSTEM)
def run() -> None:
    """Run all roles in one process, until Ctrl-C.

    Parts without a setting are embedded, on loopback: AMQP broker, event store, read model, EC2 simulator.
    RABBITMQ_URL, KURRENTDB_URI, DATABASE_URL and CML_AWS=true (or AWS_ENDPOINT_URL) switch each to a real
    one. Data is kept in CML_DATA_DIR (default .cml-workers), where endpoints.json says what was opened.
    """
    from cml_workers.process.signals import ended_by_signals  # noqa: PLC0415 - slow to load, of no use to a client
    from cml_workers.process.system import system, until_one_fails  # noqa: PLC0415 - likewise

    settings = configured()

    async def serve() -> None:
        with ended_by_signals():
            async with system(settings) as (endpoints, running):
                for name, url in endpoints.items():
                    out.print(f"[bold]{name:12}[/bold] {escape(url)}", soft_wrap=True, highlight=False)
                out.print("Ready. In another terminal: cml-workers create --help. Ctrl-C stops.")
                await until_one_fails(running)
        out.print("Stopped.")

    run_to_end(serve())


@app.command(rich_help_panel=SYSTEM)
def role(
    name: Annotated[str | None, typer.Argument(help="Which one; without it, they are listed.")] = None,
) -> None:
    """Run one role, until SIGTERM; the other parts run elsewhere."""
    from cml_workers.process.registry import ROLES  # noqa: PLC0415 - slow to load, of no use to a client
    from cml_workers.process.signals import ended_by_signals  # noqa: PLC0415 - likewise
    from cml_workers.process.system import single_role, until_one_fails  # noqa: PLC0415 - likewise

    if name is None:
        for each in ROLES.values():
            out.print(
                f"[bold]{each.name:12}[/bold] {each.does} Needs {', '.join(each.needs)}.", soft_wrap=True
            )
        return
    if name not in ROLES:
        fail(f"there is no role {name!r}; there are: {', '.join(ROLES)}", USAGE)
    settings = configured()

    async def serve() -> None:
        with ended_by_signals():
            async with single_role(name, settings) as running:
                err.print(f"{name} is ready")
                await until_one_fails(running)

    run_to_end(serve())


@app.command(rich_help_panel=SYSTEM)
def health() -> None:
    """Ask the process on this machine whether it is ready (CML_HEALTH_PORT); for container health checks."""
    settings = configured()
    if settings.health_port is None:
        fail("CML_HEALTH_PORT is not set", USAGE)
    url = f"http://127.0.0.1:{settings.health_port}/readyz"
    try:
        with urlopen(url, timeout=10) as answer:
            sys.stdout.write(answer.read().decode() + "\n")
    except HTTPError as error:
        fail(error.read().decode(), REFUSED)
    except OSError as error:
        fail(f"{url}: {error}", UNREACHABLE)


@app.command(rich_help_panel=SYSTEM)
def demo() -> None:
    """Start an embedded system, take a worker through its life, and check all that can be seen of it."""
    from cml_workers.cli.demo import show  # noqa: PLC0415 - see `run`

    if not run_to_end(show(out)):
        raise typer.Exit(1)


# -- commands ---------------------------------------------------------------------------------------------

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Await the result, or return at once.")]
Deadline = Annotated[float, typer.Option(help="Seconds to await the result.", min=0.1)]
CommandId = Annotated[
    str | None, typer.Option(help="Idempotency key; the same one again has the effect of once.")
]
WorkerRef = Annotated[str, typer.Argument(metavar="WORKER", help="Worker id, or its name if unique.")]
TagOptions = Annotated[list[str] | None, typer.Option("--tag", help="KEY=VALUE; may be repeated.")]


@app.command(rich_help_panel=CLIENT)
def create(
    name: str,
    region: Annotated[str, typer.Option(help="AWS region.")] = "us-east-1",
    instance_type: Annotated[str | None, typer.Option("--type", help="EC2 instance type.")] = None,
    ami_id: Annotated[str | None, typer.Option(help="Image id; default: the deployment's.")] = None,
    ami_name: Annotated[str | None, typer.Option(help="Image name, looked up in the region.")] = None,
    cml_version: Annotated[str | None, typer.Option(help="Which CML it hosts.")] = None,
    tag: TagOptions = None,
    worker_id: Annotated[UUID | None, typer.Option(help="Choose the worker's id.")] = None,
    by: By = None,
    reason: Why = None,
    command_id: CommandId = None,
    wait: Wait = True,
    deadline: Deadline = 60.0,
    as_json: AsJson = False,
) -> None:
    """Create a worker: launch an instance for it."""
    command = valid(
        lambda: CreateCMLWorker(
            name=name,
            aws_region=region,
            instance_type=instance_type,
            ami_id=ami_id,
            ami_name=ami_name,
            cml_version=cml_version,
            tags=_tags(tag),
            worker_id=worker_id,
            created_by=by or me(),
            reason=reason,
        )
    )
    _send(lambda _: _value(command), command_id, wait, deadline, as_json)


def _power(
    name: str, make: Callable[[UUID, str, str | None], WorkerCommand], what: str, patience: float = 60.0
) -> None:
    """Add one of the commands that need nothing but a worker."""

    def command(
        worker: WorkerRef,
        by: By = None,
        reason: Why = None,
        command_id: CommandId = None,
        wait: Wait = True,
        deadline: Deadline = patience,
        as_json: AsJson = False,
    ) -> None:
        _send_to(worker, lambda id_: make(id_, by or me(), reason), command_id, wait, deadline, as_json)

    app.command(name, help=what, rich_help_panel=CLIENT)(command)


_power(
    "start",
    lambda worker, by, reason: StartCMLWorker(worker_id=worker, started_by=by, reason=reason),
    "Start a stopped worker.",
)
_power(
    "stop",
    lambda worker, by, reason: StopCMLWorker(worker_id=worker, stopped_by=by, reason=reason),
    "Stop a running worker; one that is still starting is awaited first.",
)
_power(
    "terminate",
    lambda worker, by, reason: TerminateCMLWorker(worker_id=worker, terminated_by=by, reason=reason),
    "Give a worker and its instance up for good.",
    patience=300.0,
)


@app.command(rich_help_panel=CLIENT)
def tag(
    worker: WorkerRef,
    tags: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="Tags to add or overwrite.")],
    by: By = None,
    reason: Why = None,
    command_id: CommandId = None,
    wait: Wait = True,
    deadline: Deadline = 60.0,
    as_json: AsJson = False,
) -> None:
    """Add or overwrite tags; none is ever dropped."""
    wanted = _tags(tags)
    _send_to(
        worker,
        lambda id_: UpdateCMLWorkerTags(worker_id=id_, tags=wanted, updated_by=by or me(), reason=reason),
        command_id,
        wait,
        deadline,
        as_json,
    )


@app.command(rich_help_panel=CLIENT)
def status(
    worker: WorkerRef,
    command_id: CommandId = None,
    wait: Wait = True,
    deadline: Deadline = 60.0,
    as_json: AsJson = False,
) -> None:
    """Ask EC2 how the worker is now, and record what changed."""
    _send_to(worker, lambda id_: UpdateCMLWorkerStatus(worker_id=id_), command_id, wait, deadline, as_json)


@app.command("import", rich_help_panel=CLIENT)
def import_(
    instance_id: str,
    region: Annotated[str, typer.Option(help="AWS region.")] = "us-east-1",
    by: By = None,
    reason: Why = None,
    command_id: CommandId = None,
    wait: Wait = True,
    deadline: Deadline = 60.0,
    as_json: AsJson = False,
) -> None:
    """Adopt an existing instance as a worker."""
    command = valid(
        lambda: ImportCMLWorker(
            aws_region=region, instance_id=instance_id, created_by=by or me(), reason=reason
        )
    )
    _send(lambda _: _value(command), command_id, wait, deadline, as_json)


# -- queries ----------------------------------------------------------------------------------------------


@app.command(rich_help_panel=CLIENT)
def get(worker: WorkerRef, as_json: AsJson = False) -> None:
    """Show a worker as the read model has it."""

    async def ask(client: WorkerClient) -> WorkerView | None:
        return await client.worker(await _resolve(client, worker))

    view = with_client(ask)
    if view is None:
        fail(f"worker {worker} is not known (yet); `cml-workers list` shows all", REFUSED)
    if as_json:
        print_json(view.model_dump(mode="json"))
    else:
        out.print(worker_panel(view))


@app.command("list", rich_help_panel=CLIENT)
def list_(
    region: Annotated[str | None, typer.Option(help="Only in this AWS region.")] = None,
    status: Annotated[
        WorkerStatus | None, typer.Option(help="Only in this status.", case_sensitive=False)
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Only those created by.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag: KEY or KEY=VALUE.")] = None,
    name: Annotated[str | None, typer.Option(help="Only with this part in the name.")] = None,
    sort: Annotated[str, typer.Option(help="created_at, name, status or aws_region.")] = "created_at",
    descending: Annotated[bool, typer.Option("--descending", help="Sort downwards.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Workers on one page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on behind the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """List workers."""
    wanted = valid(
        lambda: ListCMLWorkers.model_validate(
            {
                "aws_region": region,
                "status": status,
                "owner": owner,
                "tag": tag,
                "name_part": name,
                "sort": sort,
                "descending": descending,
                "limit": limit,
                "cursor": cursor,
            }
        )
    )
    page = with_client(lambda client: client.workers(wanted))
    if as_json:
        print_json(page.model_dump(mode="json"))
        return
    out.print(worker_table(page.workers, out.width) if page.workers else "no workers")
    if page.next_cursor:
        out.print(f"more: --cursor {page.next_cursor}", soft_wrap=True, highlight=False)


@app.command(rich_help_panel=CLIENT)
def operation(command_id: str, as_json: AsJson = False) -> None:
    """Show what became of a command."""
    view = with_client(lambda client: client.operation(command_id))
    if view is None:
        fail(f"no operation of command {command_id} is recorded (yet)", REFUSED)
    if as_json:
        print_json(view.model_dump(mode="json"))
    else:
        out.print(operation_panel(view))


@app.command(rich_help_panel=CLIENT)
def history(worker: WorkerRef, as_json: AsJson = False) -> None:
    """Show a worker's event stream, straight from the event store."""
    from cml_workers.eventstore.opening import open_event_store  # noqa: PLC0415 - see `run`

    settings = configured()

    async def read() -> list[EventEnvelope]:
        try:
            worker_id = UUID(worker)
        except ValueError:
            async with WorkerClient(amqp_url(settings), deadline=10) as client:
                worker_id = await _resolve(client, worker)
        store = open_event_store(event_store_uri(settings))
        try:
            stored = await store.read(stream_of(worker_id))
        except StreamNotFoundError:
            fail(f"worker {worker} has no history", REFUSED)
        finally:
            await store.close()
        return [published(f"/cml-workers/{settings.deployment}", each) for each in stored]

    for envelope in run_to_end(read()):
        if as_json:
            print_json(envelope.to_cloudevent(), compact=True)
        else:
            out.print(event_line(envelope), soft_wrap=True)


@app.command(rich_help_panel=CLIENT)
def watch(
    pattern: Annotated[
        str, typer.Argument(help="Topic pattern of event types, e.g. 'cml.worker.#'.")
    ] = "cml.#",
    as_json: AsJson = False,
) -> None:
    """Print events as they happen, until Ctrl-C."""

    async def follow(client: WorkerClient) -> None:
        async with client.events(pattern) as events:
            async for envelope in events:
                if as_json:
                    print_json(envelope.to_cloudevent(), compact=True)
                else:
                    out.print(event_line(envelope), soft_wrap=True)

    try:
        with_client(follow)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


# -- in common --------------------------------------------------------------------------------------------


def _send_to(
    worker: str,
    command: Callable[[UUID], WorkerCommand],
    command_id: str | None,
    wait: bool,
    deadline: float,
    as_json: bool,
) -> None:
    async def addressed(client: WorkerClient) -> WorkerCommand:
        worker_id = await _resolve(client, worker)
        return valid(lambda: command(worker_id))

    _send(addressed, command_id, wait, deadline, as_json)


def _send(
    command: Callable[[WorkerClient], Awaitable[WorkerCommand]],
    command_id: str | None,
    wait: bool,
    deadline: float,
    as_json: bool,
) -> None:
    async def send(client: WorkerClient) -> OperationResult | str:
        wanted = await command(client)
        if not wait:
            return await client.post(wanted, command_id=command_id)
        return await client.send(wanted, command_id=command_id, deadline=deadline)

    result = with_client(send)
    if isinstance(result, str):
        if as_json:
            print_json({"command_id": result})
        else:
            out.print(
                f"sent; ask with: cml-workers operation {escape(result)}", soft_wrap=True, highlight=False
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
            err.print("It may succeed later: try again.")
    else:
        out.print(f"[green]succeeded[/green] worker {result.worker_id}", soft_wrap=True, highlight=False)
        if isinstance(result.data, dict):
            table = Table.grid(padding=(0, 2))
            for key, value in result.data.items():
                if value not in (None, [], {}):
                    told = json.dumps(value) if isinstance(value, dict | list) else str(value)
                    table.add_row(Text(key), Text(told))
            out.print(table)
    if result.outcome != "succeeded":
        raise typer.Exit(REFUSED)


async def _resolve(client: WorkerClient, worker: str) -> UUID:
    """A worker by id, or by its name if only one living worker bears it."""
    try:
        return UUID(worker)
    except ValueError:
        pass
    wanted: ListCMLWorkers | None = valid(lambda: ListCMLWorkers(name_part=worker, limit=500))
    named = []
    while wanted:
        page = await client.workers(wanted)
        named += [view for view in page.workers if view.name == worker]
        wanted = wanted.model_copy(update={"cursor": page.next_cursor}) if page.next_cursor else None
    living = [view for view in named if view.status is not WorkerStatus.TERMINATED] or named
    if len(living) == 1:
        return living[0].id
    if living:
        them = ", ".join(str(view.id) for view in living)
        fail(f"{len(living)} workers are named {worker!r}; take the id: {them}", REFUSED)
    return fail(f"no worker is named {worker!r}; `cml-workers list` shows all", REFUSED)


def _tags(pairs: list[str] | None) -> dict[str, str]:
    tags = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            fail(f"a tag is KEY=VALUE, not {pair!r}", USAGE)
        tags[key] = value
    return tags


async def _value(command: WorkerCommand) -> WorkerCommand:
    return command
