"""What lifecycle counts: the events it appended, and the commands that these settled."""

from collections.abc import Iterable
from datetime import datetime
from typing import get_args

from cml_contracts.commands import COMMANDS
from cml_contracts.events import EVENTS, WorkerEvent
from cml_contracts.results import Outcome
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

    Each has a span as long as it was pending; ``worker``: as it is then.
    """
    for event in events:
        EVENTS_RECORDED.labels(event.TYPE).inc()
    for entry in settled:
        result = entry.result
        if result is None:
            continue
        labels = entry.command_type, result.outcome
        COMMANDS_SETTLED.labels(*labels).inc()
        COMMAND_SECONDS.labels(*labels).observe(max((now - entry.requested.time).total_seconds(), 0.0))
        past(
            "operation",
            {
                COMMAND: entry.command_type,
                COMMAND_ID: result.command_id,
                OUTCOME: result.outcome,
                PROBLEM: result.problem.code if result.problem else None,
                WORKER: str(worker.id),
                STATUS: worker.status,
                REGION: worker.aws_region or None,
                INSTANCE: worker.instance.instance_id if worker.instance else None,
            },
            since=entry.requested.time,
            until=now,
            parent=entry.requested.traceparent,
        )
        if result.problem is not None:
            COMMAND_PROBLEMS.labels(entry.command_type, result.problem.code).inc()
