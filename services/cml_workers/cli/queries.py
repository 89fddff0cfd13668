"""Commands that show workers, operations and events."""

import asyncio
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

import typer

from cml_contracts.client import WorkerClient
from cml_contracts.envelope import EventEnvelope
from cml_contracts.events import EVENTS
from cml_contracts.instance import WorkerStatus
from cml_contracts.queries import ListCMLWorkers, WorkerView
from cml_workers.cli.resolving import WorkerRef, resolve
from cml_workers.cli.show import event_line, operation_panel, print_json, worker_panel, worker_table
from cml_workers.cli.terminal import (
    NOT_DONE,
    USAGE,
    AsJson,
    client_of,
    client_settings,
    err,
    fail,
    out,
    run_to_end,
    valid,
    with_client,
)
from cml_workers.domain.history import described
from cml_workers.eventstore.names import stream_of
from cml_workers.eventstore.port import StoredEvent, StreamDeletedError, StreamNotFoundError
from cml_workers.eventstore.worker_streams import published
from cml_workers.foundation.secrets import redacted
from cml_workers.runtime.endpoints import amqp_url, existing_event_store_uri
from cml_workers.runtime.settings import Settings, SettingsError

SHOWN_FOR = timedelta(days=1)
"""How long a terminated worker is listed."""
LOOKS_AGAIN = 1.0
"""Seconds between two looks at where a system runs."""


def get(worker: WorkerRef, as_json: AsJson = False) -> None:
    """Show a worker."""

    async def ask(client: WorkerClient) -> WorkerView | None:
        return await client.worker(await resolve(client, worker))

    view = with_client(ask)
    if view is None:
        fail(f"worker {worker} is not in the read model (yet); `cml-workers list --all` shows all", NOT_DONE)
    if as_json:
        print_json(view.model_dump(mode="json"))
    else:
        out.print(worker_panel(view))


def show_workers(
    region: Annotated[str | None, typer.Option(help="Only in this AWS region.")] = None,
    status: Annotated[
        WorkerStatus | None, typer.Option(help="Only in this status.", case_sensitive=False)
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Only those of this actor.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag: KEY or KEY=VALUE.")] = None,
    name: Annotated[str | None, typer.Option(help="Only with this in the name.")] = None,
    sort: Annotated[str, typer.Option(help="created_at, name, status or aws_region.")] = "created_at",
    descending: Annotated[bool, typer.Option("--descending", help="Sort in descending order.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Workers on one page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Where the next page begins.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also those that were terminated more than a day ago.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List workers; of the terminated only those of the last day, unless they are asked for."""
    asked_for = every or status is WorkerStatus.TERMINATED
    wanted = valid(
        lambda: ListCMLWorkers.model_validate(
            {
                "aws_region": region,
                "status": status,
                "owner": owner,
                "tag": tag,
                "name_part": name,
                "terminated_since": None if asked_for else datetime.now(UTC) - SHOWN_FOR,
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


def show_operation(command_id: str, as_json: AsJson = False) -> None:
    """Show the operation of a command, and its outcome."""
    view = with_client(lambda client: client.operation(command_id))
    if view is None:
        fail(f"no operation of command {command_id} is recorded (yet)", NOT_DONE)
    if as_json:
        print_json(view.model_dump(mode="json"))
    else:
        out.print(operation_panel(view))


def history(worker: WorkerRef, as_json: AsJson = False) -> None:
    """Show the events of a worker, from the event store."""
    from cml_workers.eventstore.opening import open_event_store  # noqa: PLC0415 - see `run`

    settings = client_settings()

    async def read() -> list[EventEnvelope | str]:
        uri = existing_event_store_uri(settings)
        try:
            worker_id = UUID(worker)
        except ValueError:
            async with client_of(settings) as client:
                worker_id = await resolve(client, worker)
        store = open_event_store(uri)
        try:
            stored = await store.read(stream_of(worker_id))
        except StreamNotFoundError:
            fail(f"worker {worker} has no history in {redacted(uri)}", NOT_DONE)
        except StreamDeletedError as error:
            fail(str(error), NOT_DONE)
        finally:
            await store.close()
        return [shown(each) for each in stored]

    def shown(stored: StoredEvent) -> EventEnvelope | str:
        try:
            return published(f"/cml-workers/{settings.deployment}", stored)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others can be read
            return f"event {stored.revision} ({stored.type}) cannot be read: {described(error)}"

    for envelope in run_to_end(read()):
        if isinstance(envelope, str):
            err.print(envelope, soft_wrap=True, markup=False, highlight=False)
        elif as_json:
            print_json(envelope.to_cloudevent(), compact=True)
        else:
            out.print(event_line(envelope), soft_wrap=True)


def watch(
    pattern: Annotated[
        str, typer.Argument(help="Topic pattern of event types, e.g. 'cml.worker.#'.")
    ] = "cml.#",
    as_json: AsJson = False,
) -> None:
    """Print events as they happen, until Ctrl-C; also of a system that is started again meanwhile."""
    known_pattern(pattern)
    settings = client_settings()

    async def show(client: WorkerClient) -> None:
        async with client.events(pattern) as events:
            async for envelope in events:
                if as_json:
                    print_json(envelope.to_cloudevent(), compact=True)
                else:
                    out.print(event_line(envelope), soft_wrap=True)

    async def follow() -> None:
        url: str | None = amqp_url(settings)
        while url is not None:
            async with WorkerClient(url, deadline=15) as client:
                showing = asyncio.create_task(show(client))
                moved = asyncio.create_task(_moved(settings, url))
                done, left = await asyncio.wait({showing, moved}, return_when=asyncio.FIRST_COMPLETED)
                for task in left:
                    task.cancel()
            url = moved.result() if moved in done else showing.result()
            if url is not None:
                err.print("The system was started again; events that came meanwhile are not shown.")

    try:
        run_to_end(follow())
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def known_pattern(pattern: str) -> None:
    """End if no event matches it."""
    if not any(matches(pattern, event) for event in EVENTS):
        fail(f"no event matches {pattern!r}; there are: {', '.join(EVENTS)}", USAGE)


def matches(pattern: str, event_type: str) -> bool:
    """As a topic exchange matches: ``*`` stands for one word, ``#`` for any number of them."""
    words = {"*": r"[^.]+\.", "#": r"([^.]+\.)*"}
    expression = "".join(words.get(word, re.escape(word) + r"\.") for word in pattern.split("."))
    return re.fullmatch(expression, f"{event_type}.") is not None


async def _moved(settings: Settings, before: str) -> str:
    """The new address of the broker, once the running system has another: an embedded one takes a free port at each start."""
    while True:
        await asyncio.sleep(LOOKS_AGAIN)
        with suppress(SettingsError):  # it does not run, for now
            if (now := amqp_url(settings)) != before:
                return now
