"""What lifecycle counts: the events it appended, and the outcomes of commands."""

from collections.abc import Iterable
from datetime import datetime
from typing import get_args

from cml_contracts.commands import COMMANDS
from cml_contracts.events import EVENTS, WorkerEvent
from cml_contracts.results import OperationResult, Outcome
from cml_workers.domain.ledger import Entry
from cml_workers.domain.worker import Worker
from cml_workers.foundation.metrics import (
    COMMAND_PROBLEMS,
    COMMAND_SECONDS,
    COMMANDS_SETTLED,
    EVENTS_RECORDED,
)
from cml_workers.foundation.tracing import (
    COMMAND,
    COMMAND_ID,
    INSTANCE,
    OUTCOME,
    PROBLEM,
    REGION,
    STATUS,
    WORKER,
    Attributes,
    past,
)

# There from the start, or a rate would miss the first of each.
for _command in COMMANDS:
    for _outcome in get_args(Outcome):
        COMMANDS_SETTLED.labels(_command, _outcome)
for _event in EVENTS:
    EVENTS_RECORDED.labels(_event)


def count(events: Iterable[WorkerEvent], settled: Iterable[Entry], worker: Worker, now: datetime) -> None:
    """What one append recorded, and which commands have their outcome by it: each once, as only one append settles a command.

    ``worker``: as it is then.
    """
    for event in events:
        EVENTS_RECORDED.labels(event.TYPE).inc()
    for entry in settled:
        if entry.result is None:
            continue
        command, result, requested = entry.command_type, entry.result, entry.requested
        COMMAND_SECONDS.labels(command, result.outcome).observe(
            max((now - requested.time).total_seconds(), 0.0)
        )
        _outcome_of(command, result, worker, since=requested.time, now=now, parent=requested.traceparent)


def count_unrecorded(command: str, result: OperationResult, worker: Worker | None, now: datetime) -> None:
    """A command that is answered and of which nothing is recorded: each time that it is. What is no command of ours is not counted.

    ``worker``: None where the answer says nothing of it.
    """
    if command in COMMANDS:
        _outcome_of(command, result, worker, since=now, now=now, parent=None)


def _outcome_of(
    command: str,
    result: OperationResult,
    worker: Worker | None,
    *,
    since: datetime,
    now: datetime,
    parent: str | None,
) -> None:
    """Count it, and make its span, as long as the command was pending; ``parent``: None for the current one."""
    code = result.problem.code if result.problem else None
    COMMANDS_SETTLED.labels(command, result.outcome).inc()
    if code is not None:
        COMMAND_PROBLEMS.labels(command, code).inc()
    of_worker: Attributes = (
        {}
        if worker is None
        else {
            STATUS: worker.status,
            REGION: worker.aws_region or None,
            INSTANCE: worker.instance.instance_id if worker.instance else None,
        }
    )
    about = {
        COMMAND: command,
        COMMAND_ID: result.command_id,
        OUTCOME: result.outcome,
        PROBLEM: code,
        WORKER: str(result.worker_id) if result.worker_id else None,
        **of_worker,
    }
    past("operation", about, since=since, until=now, parent=parent)
