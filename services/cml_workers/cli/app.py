"""The command line: run the system, show it, and use it as a client."""

import asyncio
import getpass
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Annotated, Any, NoReturn, TypeVar
from urllib.error import HTTPError
from urllib.request import urlopen
from uuid import UUID

import typer
import uvloop
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from cml_contracts.client import NoResultYetError, WorkerClient
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
from cml_contracts.envelope import EventEnvelope, stream_of
from cml_contracts.events import EventMetadata
from cml_contracts.instance import WorkerStatus
from cml_contracts.queries import ListCMLWorkers, WorkerView
from cml_contracts.results import OperationResult
from cml_workers.cli.show import event_line, operation_panel, print_json, worker_panel, worker_table
from cml_workers.endpoints import amqp_url, event_store_uri
from cml_workers.eventstore.port import StreamNotFoundError
from cml_workers.failures import ConfigurationError, RoleFailedError
from cml_workers.logs import configure_logging
from cml_workers.settings import Settings, load_settings

REFUSED, USAGE, UNREACHABLE, NO_RESULT_YET = 1, 2, 3, 4

app = typer.Typer(
    name="cml-workers",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Run fleets of [bold]CML workers[/bold]: AWS EC2 instances that each host Cisco Modeling Labs.",
    epilog="Exit codes: 0 done; 1 rejected or failed; 2 wrong usage or configuration; 3 a service cannot be "
    "reached; 4 no result within the deadline (the command stands: ask with `cml-workers operation`).",
)
out = Console()
err = Console(stderr=True)

SYSTEM, CLIENT = "Run the system", "Use it"
T = TypeVar("T")


def main() -> None:
    """Entry point of the ``cml-workers`` command."""
    app()


# -- the system -------------------------------------------------------------------------------------------


@app.command(rich_help_panel=SYSTEM)
def run() -> None:
    """Run all roles in one process, until Ctrl-C.

    Parts without a setting are embedded, on loopback: AMQP broker, event store, read model, EC2 simulator.
    RABBITMQ_URL, KURRENTDB_URI, DATABASE_URL and CML_AWS=true (or AWS_ENDPOINT_URL) switch each to a real
    one. Data is kept in CML_DATA_DIR (default .cml-workers), where endpoints.json says what was opened.
    """
    from cml_workers.process import ended_by_signals, system, until_one_fails  # noqa: PLC0415 - slow to load, of no use to a client

    settings = _settings()

    async def serve() -> None:
        with ended_by_signals():
            async with system(settings) as (endpoints, running):
                for name, url in endpoints.items():
                    out.print(f"[bold]{name:12}[/bold] {url}", soft_wrap=True, highlight=False)
                out.print("Ready. In another terminal: cml-workers create --help. Ctrl-C stops.")
                await until_one_fails(running)
        out.print("Stopped.")

    _run(serve())


@app.command(rich_help_panel=SYSTEM)
def role(name: Annotated[str, typer.Argument(help="lifecycle, relay, ec2-adapter or projector")]) -> None:
    """Run one role, until SIGTERM; the other parts run elsewhere."""
    from cml_workers.process import (  # noqa: PLC0415 - see `run`
        ROLES,
        ended_by_signals,
        single_role,
        until_one_fails,
    )

    if name not in ROLES:
        _fail(f"there is no role {name!r}; there are: {', '.join(ROLES)}", USAGE)
    settings = _settings()

    async def serve() -> None:
        with ended_by_signals():
            async with single_role(name, settings) as running:
                err.print(f"{name} is ready")
                await until_one_fails(running)

    _run(serve())


@app.command(rich_help_panel=SYSTEM)
def health() -> None:
    """Ask the process on this machine whether it is ready (CML_HEALTH_PORT); for container health checks."""
    settings = _settings()
    if settings.health_port is None:
        _fail("CML_HEALTH_PORT is not set", USAGE)
    url = f"http://127.0.0.1:{settings.health_port}/readyz"
    try:
        with urlopen(url, timeout=10) as answer:
            sys.stdout.write(answer.read().decode() + "\n")
    except HTTPError as error:
        _fail(error.read().decode(), REFUSED)
    except OSError as error:
        _fail(f"{url}: {error}", UNREACHABLE)


@app.command(rich_help_panel=SYSTEM)
def demo() -> None:
    """Start an embedded system, take a worker through its life, and check all that can be seen of it."""
    from cml_workers.cli.demo import show  # noqa: PLC0415 - see `run`

    if not _run(show(out)):
        raise typer.Exit(1)


# -- commands ---------------------------------------------------------------------------------------------

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Await the result, or return at once.")]
Deadline = Annotated[float, typer.Option(help="Seconds to await the result.", min=0.1)]
CommandId = Annotated[
    str | None, typer.Option(help="Idempotency key; the same one again has the effect of once.")
]
By = Annotated[str | None, typer.Option("--by", help="Who asks; an opaque id.")]
Why = Annotated[str | None, typer.Option("--reason", help="Kept in the audit trail.")]
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
    command = _valid(
        lambda: CreateCMLWorker(
            name=name,
            aws_region=region,
            instance_type=instance_type,
            ami_id=ami_id,
            ami_name=ami_name,
            cml_version=cml_version,
            tags=_tags(tag),
            worker_id=worker_id,
            created_by=by or _me(),
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
        _send_to(worker, lambda id_: make(id_, by or _me(), reason), command_id, wait, deadline, as_json)

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
        lambda id_: UpdateCMLWorkerTags(worker_id=id_, tags=wanted, updated_by=by or _me(), reason=reason),
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
    command = _valid(
        lambda: ImportCMLWorker(
            aws_region=region, instance_id=instance_id, created_by=by or _me(), reason=reason
        )
    )
    _send(lambda _: _value(command), command_id, wait, deadline, as_json)


# -- queries ----------------------------------------------------------------------------------------------


@app.command(rich_help_panel=CLIENT)
def get(worker: WorkerRef, as_json: AsJson = False) -> None:
    """Show a worker as the read model has it."""

    async def ask(client: WorkerClient) -> WorkerView | None:
        return await client.worker(await _resolve(client, worker))

    view = _with_client(ask)
    if view is None:
        _fail(f"worker {worker} is not known (yet); `cml-workers list` shows all", REFUSED)
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
    wanted = _valid(
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
    page = _with_client(lambda client: client.workers(wanted))
    if as_json:
        print_json(page.model_dump(mode="json"))
        return
    out.print(worker_table(page.workers, out.width) if page.workers else "no workers")
    if page.next_cursor:
        out.print(f"more: --cursor {page.next_cursor}", soft_wrap=True, highlight=False)


@app.command(rich_help_panel=CLIENT)
def operation(command_id: str, as_json: AsJson = False) -> None:
    """Show what became of a command."""
    view = _with_client(lambda client: client.operation(command_id))
    if view is None:
        _fail(f"no operation of command {command_id} is recorded (yet)", REFUSED)
    if as_json:
        print_json(view.model_dump(mode="json"))
    else:
        out.print(operation_panel(view))


@app.command(rich_help_panel=CLIENT)
def history(worker: WorkerRef, as_json: AsJson = False) -> None:
    """Show a worker's event stream, straight from the event store."""
    from cml_workers.eventstore.opening import open_event_store  # noqa: PLC0415 - see `run`

    settings = _settings()

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
            _fail(f"worker {worker} has no history", REFUSED)
        finally:
            await store.close()
        return [
            EventEnvelope.of(
                f"/cml-workers/{settings.deployment}",
                worker_id,
                each.revision,
                EventMetadata.model_validate_json(each.metadata),
                each.type,
                json.loads(each.data),
            )
            for each in stored
        ]

    for envelope in _run(read()):
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
        _with_client(follow)
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
        return _valid(lambda: command(worker_id))

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

    result = _with_client(send)
    if isinstance(result, str):
        if as_json:
            print_json({"command_id": result})
        else:
            out.print(f"sent; ask with: cml-workers operation {result}", soft_wrap=True, highlight=False)
        return
    if as_json:
        print_json(result.model_dump(mode="json"))
    elif result.problem:
        err.print(
            f"[red]{result.outcome}[/red] {result.problem.code}: {result.problem.detail}", soft_wrap=True
        )
        if result.problem.retryable:
            err.print("It may succeed later: try again.")
    else:
        out.print(f"[green]succeeded[/green] worker {result.worker_id}", soft_wrap=True, highlight=False)
        if isinstance(result.data, dict):
            table = Table.grid(padding=(0, 2))
            for key, value in result.data.items():
                if value not in (None, [], {}):
                    table.add_row(key, json.dumps(value) if isinstance(value, dict | list) else str(value))
            out.print(table)
    if result.outcome != "succeeded":
        raise typer.Exit(REFUSED)


async def _resolve(client: WorkerClient, worker: str) -> UUID:
    """A worker by id, or by its name if only one living worker bears it."""
    try:
        return UUID(worker)
    except ValueError:
        pass
    wanted = _valid(lambda: ListCMLWorkers(name_part=worker, limit=500))
    named = [view for view in (await client.workers(wanted)).workers if view.name == worker]
    living = [view for view in named if view.status is not WorkerStatus.TERMINATED] or named
    if len(living) == 1:
        return living[0].id
    if living:
        them = ", ".join(str(view.id) for view in living)
        _fail(f"{len(living)} workers are named {worker!r}; take the id: {them}", REFUSED)
    return _fail(f"no worker is named {worker!r}; `cml-workers list` shows all", REFUSED)


def _with_client(use: Callable[[WorkerClient], Coroutine[Any, Any, T]]) -> T:
    settings = _settings()

    async def connected() -> T:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(WorkerClient(amqp_url(settings), deadline=15))
            return await use(client)

    return _run(connected())


def _settings() -> Settings:
    try:
        settings = load_settings()
    except ConfigurationError as error:
        _fail(str(error), USAGE)
    configure_logging(settings)
    return settings


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; what can be foreseen becomes one clear line and an exit code."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    except ConfigurationError as error:
        _fail(str(error), USAGE)
    except NoResultYetError as error:
        _fail(f"{error}: cml-workers operation {error.command_id}", NO_RESULT_YET)
    except ConnectionError as error:
        _fail(str(error), UNREACHABLE)
    except RoleFailedError as error:
        _fail(str(error), REFUSED)
    except ValueError as error:
        _fail(str(error), USAGE)


def _fail(sentence: str, code: int) -> NoReturn:
    err.print(f"[red]cml-workers:[/red] {sentence}", soft_wrap=True, highlight=False)
    raise typer.Exit(code)


def _valid(make: Callable[[], T]) -> T:
    try:
        return make()
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        _fail("; ".join(told), USAGE)


def _tags(pairs: list[str] | None) -> dict[str, str]:
    tags = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            _fail(f"a tag is KEY=VALUE, not {pair!r}", USAGE)
        tags[key] = value
    return tags


async def _value(command: WorkerCommand) -> WorkerCommand:
    return command


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, where no user has a name
        return "cml-workers"
