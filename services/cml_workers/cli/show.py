"""How workers, operations, events and dead letters look on a terminal.

Texts from outside are ``Text``: in a ``str`` rich would read ``[...]`` as markup.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cml_contracts.deadletters import (
    DeadLetterCount,
    DeadLetterDetails,
    DeadLetterOutcome,
    DeadLetterState,
    DeadLetterView,
)
from cml_contracts.envelope import EventEnvelope
from cml_contracts.instance import NAME_TAG, StateReason, WorkerStatus
from cml_contracts.queries import OperationView, WorkerView
from cml_contracts.results import Delay
from cml_workers.foundation.texts import visible, visible_json

_COLOURS = {
    WorkerStatus.PENDING: "yellow",
    WorkerStatus.STARTING: "yellow",
    WorkerStatus.RUNNING: "green",
    WorkerStatus.STOPPING: "yellow",
    WorkerStatus.STOPPED: "blue",
    WorkerStatus.TERMINATED: "bright_black",
    WorkerStatus.FAILED: "red",
}
_STATE_COLOURS = {
    DeadLetterState.WAITING: "red",
    DeadLetterState.REDRIVEN: "yellow",
    DeadLetterState.EDITED: "yellow",
    DeadLetterState.DISCARDED: "bright_black",
}

WIDE = 120
"""Columns from which a table shows everything."""


def print_json(value: Any, *, compact: bool = False) -> None:
    """JSON on stdout; compact: on one line."""
    sys.stdout.write(visible_json(json.dumps(value, indent=None if compact else 2)) + "\n")
    sys.stdout.flush()


def as_text(value: Any) -> str:
    """JSON for people: every language's letters as they are."""
    return json.dumps(value, ensure_ascii=False)


def worker_table(workers: Iterable[WorkerView], width: int) -> Table:
    """One line for each worker; a narrow terminal shows fewer columns than ``get``."""
    table = Table("id", "name", "status", "region", "type", box=None)
    table.columns[0].min_width = 36
    if width >= WIDE:
        for name in ("instance", "owner", "created"):
            table.add_column(name)
    for worker in workers:
        cells: list[str | Text] = [
            str(worker.id),
            Text(worker.name),
            Text(worker.status, style=_COLOURS[worker.status]),
            Text(worker.aws_region),
            Text(worker.instance_type),
            worker.instance.aws_instance_id if worker.instance else "",
            Text(worker.owner),
            f"{worker.created_at:%Y-%m-%d %H:%M}",
        ]
        table.add_row(*cells[: len(table.columns)])
    return table


def worker_panel(worker: WorkerView) -> Panel:
    """A worker with all that the read model has of it."""
    instance = worker.instance
    facts = {
        "id": worker.id,
        "status": Text(worker.status, style=_COLOURS[worker.status]),
        "region": worker.aws_region,
        "type": worker.instance_type,
        "profile": worker.profile,
        "owner": worker.owner,
        "launch": (worker.generation or 0) > 1 and f"number {worker.generation}; the ones before failed",
        "CML version": worker.cml_version,
        "instance": instance and instance.aws_instance_id,
        "instance state": instance and instance.instance_state,
        "status checks": instance
        and instance.instance_status_check
        and f"{instance.instance_status_check} / {instance.ec2_system_status_check}",
        "image": instance and instance.ami_id,
        "addresses": instance and " ".join(filter(None, (instance.public_ip, instance.private_ip))),
        "tags": ", ".join(f"{key}={value}" for key, value in sorted(worker.tags.items())),
        "problem": worker.problem,
        "waits for": worker.waits_for and _delay(worker.waits_for),
        "reason": worker.reason and Text(worker.reason),
        "last change": instance
        and instance.state_transition_reason
        and Text(instance.state_transition_reason),
        "created": f"{worker.created_at:%Y-%m-%d %H:%M:%S %Z}",
        "updated": f"{worker.updated_at:%Y-%m-%d %H:%M:%S %Z}",
        "revision": worker.revision,
    }
    return Panel(_grid(facts), title=Text(worker.name), title_align="left", expand=False)


def operation_panel(operation: OperationView) -> Panel:
    """A command and its outcome."""
    result = operation.result
    facts = {
        "command": operation.command_type,
        "worker": operation.worker_id,
        "requested": f"{operation.requested_at:%Y-%m-%d %H:%M:%S %Z}",
        "settled": operation.settled_at and f"{operation.settled_at:%Y-%m-%d %H:%M:%S %Z}",
        "outcome": result.outcome if result else "pending",
        "waits for": operation.waits_for and _delay(operation.waits_for),
        "problem": result and result.problem and f"{result.problem.code}: {result.problem.detail}",
        "data": result and result.data is not None and as_text(result.data),
    }
    return Panel(_grid(facts), title=Text(operation.command_id), title_align="left", expand=False)


def _delay(delay: Delay) -> str:
    """What an operation waits for."""
    then = "only looked at since" if delay.next_at is None else f"next at {delay.next_at:%H:%M:%S %Z}"
    return (
        f"{delay.problem.code}: {delay.problem.detail} "
        f"({delay.attempts} {'attempt' if delay.attempts == 1 else 'attempts'} by {delay.last_at:%H:%M:%S}, {then})"
    )


def event_line(envelope: EventEnvelope) -> Text:
    """An event on one line, with the plain values of its payload."""
    payload = {
        key: value
        for key, value in envelope.data.items()
        if key != "operation_id" and not isinstance(value, dict | list)
    }
    instance = envelope.data.get("instance")
    if isinstance(instance, dict):
        payload |= {key: instance[key] for key in ("instance_id", "state") if key in instance}
    problem = envelope.data.get("problem")
    if isinstance(problem, dict):
        payload |= {key: problem[key] for key in ("code", "detail") if key in problem}
    reason = envelope.data.get("state_reason")
    if isinstance(reason, dict) and "reason" not in payload:
        payload["reason"] = str(StateReason.model_validate(reason))
    tags = envelope.data.get("tags")
    if isinstance(tags, dict) and NAME_TAG in tags:
        payload.setdefault("name", tags[NAME_TAG])
    if envelope.data.get("changed"):
        payload["changed"] = ",".join(envelope.data["changed"])
    return Text.assemble(
        (f"{envelope.time:%H:%M:%S.%f}"[:-3], "bright_black"),
        f" {str(envelope.worker_id)[:8]}",
        (f" {envelope.revision:>3}", "bright_black"),
        (f" {envelope.type.removeprefix('cml.').removesuffix('.v1'):<30}", "cyan"),
        visible(" " + " ".join(f"{key}={value}" for key, value in payload.items()), keep=""),
        (visible(f" by {envelope.actor}" if envelope.actor else "", keep=""), "bright_black"),
    )


def dead_letter_table(letters: Iterable[DeadLetterView], width: int) -> Table:
    """One line for each; a narrow terminal shows fewer columns than ``show``."""
    table = Table("id", "state", "cause", "type", "deaths", box=None)
    table.columns[0].min_width = 36
    if width >= WIDE:
        for name in ("died", "reason"):
            table.add_column(name)
    for letter in letters:
        cells: list[str | Text] = [
            str(letter.id),
            Text(letter.state, style=_STATE_COLOURS[letter.state]),
            Text(letter.cause),
            Text(letter.type.removeprefix("cml.")),
            str(letter.deaths),
            f"{letter.last_died_at:%Y-%m-%d %H:%M}",
            Text(letter.reason),
        ]
        table.add_row(*cells[: len(table.columns)])
    return table


def counts_table(counts: Iterable[DeadLetterCount]) -> Table:
    """How many dead letters there are of each cause, on all pages."""
    table = Table("count", "cause", "queue", box=None)
    for each in counts:
        table.add_row(str(each.count), Text(each.cause), Text(each.queue))
    return table


def dead_letter_panel(letter: DeadLetterDetails) -> Panel:
    """A dead letter without its body and its history."""
    facts = {
        "state": Text(letter.state, style=_STATE_COLOURS[letter.state]),
        "cause": letter.cause,
        "reason": Text(letter.reason),
        "queue": letter.queue,
        "type": Text(letter.type),
        "message id": letter.message_id and Text(letter.message_id),
        "sender": Text(letter.user) if letter.user else "unknown",
        "correlation id": letter.correlation_id and Text(letter.correlation_id),
        "reply to": letter.reply_to and Text(letter.reply_to),
        "content type": letter.content_type and Text(letter.content_type),
        "headers": letter.headers and Text(as_text(letter.headers)),
        "died": f"{letter.deaths} times, redriven {letter.redrives} times",
        "before its death": f"delivered {letter.deliveries} times, retried {letter.attempts} times, "
        f"failed {letter.faults} times",
        "first died": f"{letter.first_died_at:%Y-%m-%d %H:%M:%S %Z}",
        "last died": f"{letter.last_died_at:%Y-%m-%d %H:%M:%S %Z}",
        "bytes": letter.size,
    }
    return Panel(_grid(facts), title=str(letter.id), title_align="left", expand=False)


def history_table(history: Iterable[DeadLetterOutcome]) -> Table:
    """The history of a dead letter, one line for each entry."""
    table = Table("when", "what", "who", "why", "message id", box=None)
    for each in history:
        who = f"{each.by} ({each.user})" if each.by and each.user else each.by or each.user
        table.add_row(
            f"{each.time:%Y-%m-%d %H:%M:%S}",
            each.what,
            Text("" if each.what == "died" or not who else who),
            Text(each.reason or ""),
            Text(each.message_id or ""),
        )
        if each.replaced_body is not None:
            table.add_row("", "replaced", "", Text(each.replaced_body), Text(each.replaced_type or ""))
    return table


def _grid(facts: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            table.add_row(Text(name, style="bold"), value if isinstance(value, Text) else Text(str(value)))
    return table
