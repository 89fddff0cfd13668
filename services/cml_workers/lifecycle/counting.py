"""What lifecycle counts: the events it appended, and the commands that these settled."""

from collections.abc import Iterable
from datetime import datetime
from typing import get_args

from cml_contracts.commands import COMMANDS
from cml_contracts.events import EVENTS, WorkerEvent
from cml_contracts.results import Outcome
from cml_workers.domain.ledger import Entry
from cml_workers.foundation.metrics import (
    COMMAND_PROBLEMS,
    COMMAND_SECONDS,
    COMMANDS_SETTLED,
    EVENTS_RECORDED,
)

# There from the start, or a rate would miss the first of each.
for _command in COMMANDS:
    for _outcome in get_args(Outcome):
        COMMANDS_SETTLED.labels(_command, _outcome)
for _event in EVENTS:
    EVENTS_RECORDED.labels(_event)


def count(events: Iterable[WorkerEvent], settled: Iterable[Entry], now: datetime) -> None:
    """What one append recorded, and which commands have their outcome by it: each once, as only one append settles a command."""
    for event in events:
        EVENTS_RECORDED.labels(event.TYPE).inc()
    for entry in settled:
        result = entry.result
        if result is None:
            continue
        labels = entry.command_type, result.outcome
        COMMANDS_SETTLED.labels(*labels).inc()
        COMMAND_SECONDS.labels(*labels).observe(max((now - entry.requested.time).total_seconds(), 0.0))
        if result.problem is not None:
            COMMAND_PROBLEMS.labels(entry.command_type, result.problem.code).inc()
