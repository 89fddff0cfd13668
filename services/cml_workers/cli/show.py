"""How workers, operations and events look on a terminal."""

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cml_contracts.envelope import EventEnvelope
from cml_contracts.instance import WorkerStatus
from cml_contracts.queries import OperationView, WorkerView

_COLOURS = {
    WorkerStatus.PENDING: "yellow",
    WorkerStatus.STARTING: "yellow",
    WorkerStatus.RUNNING: "green",
    WorkerStatus.STOPPING: "yellow",
    WorkerStatus.STOPPED: "blue",
    WorkerStatus.TERMINATED: "bright_black",
    WorkerStatus.FAILED: "red",
}


WIDE = 120
"""Columns from which a table of workers shows everything."""


def print_json(value: Any, *, compact: bool = False) -> None:
    """JSON on stdout; compact: on one line."""
    sys.stdout.write(json.dumps(value, indent=None if compact else 2) + "\n")
    sys.stdout.flush()


def worker_table(workers: Iterable[WorkerView], width: int) -> Table:
    """One line for each worker; on a narrow terminal what can be asked for with ``get`` is left out."""
    table = Table("id", "name", "status", "region", "type", box=None)
    table.columns[0].min_width = 36
    if width >= WIDE:
        for name in ("instance", "owner", "created"):
            table.add_column(name)
    for worker in workers:
        cells: list[str | Text] = [
            str(worker.id),
            worker.name,
            Text(worker.status, style=_COLOURS[worker.status]),
            worker.aws_region,
            worker.instance_type,
            worker.instance.aws_instance_id if worker.instance else "",
            worker.owner,
            f"{worker.created_at:%Y-%m-%d %H:%M}",
        ]
        table.add_row(*cells[: len(table.columns)])
    return table


def worker_panel(worker: WorkerView) -> Panel:
    """All that is known of a worker."""
    instance = worker.instance
    facts = {
        "id": worker.id,
        "status": Text(worker.status, style=_COLOURS[worker.status]),
        "region": worker.aws_region,
        "type": worker.instance_type,
        "owner": worker.owner,
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
        "created": f"{worker.created_at:%Y-%m-%d %H:%M:%S %Z}",
        "updated": f"{worker.updated_at:%Y-%m-%d %H:%M:%S %Z}",
        "revision": worker.revision,
    }
    return Panel(_grid(facts), title=worker.name, title_align="left", expand=False)


def operation_panel(operation: OperationView) -> Panel:
    """A command and what became of it."""
    result = operation.result
    facts = {
        "command": operation.command_type,
        "worker": operation.worker_id,
        "requested": f"{operation.requested_at:%Y-%m-%d %H:%M:%S %Z}",
        "settled": operation.settled_at and f"{operation.settled_at:%Y-%m-%d %H:%M:%S %Z}",
        "outcome": result.outcome if result else "pending",
        "problem": result and result.problem and f"{result.problem.code}: {result.problem.detail}",
        "data": result and result.data is not None and json.dumps(result.data),
    }
    return Panel(_grid(facts), title=operation.command_id, title_align="left", expand=False)


def event_line(envelope: EventEnvelope) -> Text:
    """An event on one line, its payload shortened."""
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
    return Text.assemble(
        (f"{envelope.time:%H:%M:%S.%f}"[:-3], "bright_black"),
        f" {str(envelope.worker_id)[:8]}",
        (f" {envelope.revision:>3}", "bright_black"),
        (f" {envelope.type.removeprefix('cml.').removesuffix('.v1'):<30}", "cyan"),
        " " + " ".join(f"{key}={value}" for key, value in payload.items()),
        (f" by {envelope.actor}" if envelope.actor else "", "bright_black"),
    )


def _grid(facts: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            table.add_row(Text(name, style="bold"), value if isinstance(value, Text) else str(value))
    return table
