"""Finds the worker that an id or a name stands for."""

from typing import Annotated
from uuid import UUID

import typer

from cml_contracts.client import WorkerClient
from cml_contracts.instance import WorkerStatus
from cml_contracts.queries import ListCMLWorkers
from cml_contracts.texts import MAX_TEXT
from cml_workers.cli.terminal import (
    NOT_DONE,
    fail,
    valid,
)

ENDED = {WorkerStatus.FAILED, WorkerStatus.TERMINATED}
"""A worker in one of these gives its name free."""

WorkerRef = Annotated[str, typer.Argument(metavar="WORKER", help="Worker id, or its name if unique.")]


async def resolve(client: WorkerClient, worker: str) -> UUID:
    """A worker by id, or by its name if only one has it; of several, failed and terminated ones do not count."""
    try:
        return UUID(worker)
    except ValueError:
        pass
    part = worker[:MAX_TEXT]  # a name may come from a tag, which may be longer
    wanted: ListCMLWorkers | None = valid(lambda: ListCMLWorkers(name_part=part, limit=500))
    named = []
    while wanted:
        page = await client.workers(wanted)
        named += [view for view in page.workers if view.name == worker]
        wanted = wanted.model_copy(update={"cursor": page.next_cursor}) if page.next_cursor else None
    for over in (ENDED, {WorkerStatus.TERMINATED}, set[WorkerStatus]()):
        found = [view for view in named if view.status not in over]
        if len(found) == 1:
            return found[0].id
        if found:
            them = ", ".join(str(view.id) for view in found)
            fail(f"{len(found)} workers are named '{worker}'; use an id: {them}", NOT_DONE)
    return fail(f"no worker is named '{worker}'; `cml-workers list --all` shows all", NOT_DONE)
