"""What came of a run: what was done, and what is not as it must be."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from cml_contracts.instance import DEPLOYMENT_TAG, NAME_TAG, WORKER_TAG, InstanceState, WorkerStatus
from cml_contracts.queries import WorkerView
from cml_workers.domain.worker import status_of
from system.fleets import commands, interference

_ENDED = (WorkerStatus.TERMINATED, WorkerStatus.FAILED)


@dataclass
class Outcome:
    """The figures by fleet, and every sentence that does not hold."""

    seed: int
    counts: Mapping[str, Counter[str]]
    outcomes: Mapping[str, Counter[str]]
    interference: Counter[str]
    changes: Counter[str]
    workers: Mapping[str, Counter[str]]
    """By fleet: how many of each status at the end."""
    unanswered: int
    seconds: float
    violations: list[str]

    @property
    def never(self) -> list[str]:
        """What should have been done and was not: what never happened was not survived."""
        missing = [
            f"{fleet} was never sent: {kind}"
            for fleet, counts in self.counts.items()
            for kind in commands.WEIGHTS
            if not counts[kind]
        ]
        return missing + [
            f"nobody interfered by: {kind}" for kind in interference.WEIGHTS if not self.interference[kind]
        ]

    def table(self) -> Table:
        """For people."""
        table = Table(box=None, show_header=False)
        for fleet, counts in self.counts.items():
            table.add_row(f"{fleet}: commands", f"{counts.total()}: {_listed(counts)}")
            table.add_row(f"{fleet}: answers", _listed(self.outcomes[fleet]))
            table.add_row(f"{fleet}: workers", _listed(self.workers[fleet]))
        table.add_row("interference", f"{self.interference.total()}: {_listed(self.interference)}")
        table.add_row("changes asked of EC2, by caller", _listed(self.changes))
        table.add_row("unanswered", str(self.unanswered))
        table.add_row("violations", str(len(self.violations)))
        table.add_row("seconds", f"{self.seconds:.0f}")
        return table


def untruths(
    fleet: str, rows: Sequence[WorkerView], instances: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Where the read model of a fleet is not what EC2 shows; ``instances``: as described, by id."""
    by_instance = {row.instance.aws_instance_id: row for row in rows if row.instance}
    for instance_id, described in instances.items():
        tags = _tags(described)
        if tags.get(DEPLOYMENT_TAG) != fleet or described["State"]["Name"] == "terminated":
            continue
        row = by_instance.get(instance_id)
        if row is None or row.status in _ENDED:
            yield f"{fleet}: {instance_id} lives, and is no worker's"
        elif tags.get(WORKER_TAG) != str(row.id):
            yield f"{fleet}: {instance_id} of worker {row.id} is tagged as {tags.get(WORKER_TAG)}"
    for row in rows:
        if row.instance is None:
            if row.status not in _ENDED:
                yield f"{fleet}: worker {row.id} is {row.status} without an instance"
            continue
        there = instances.get(row.instance.aws_instance_id)
        state = InstanceState(there["State"]["Name"]) if there else InstanceState.TERMINATED
        shown: dict[str, Any] = {"status": row.status}
        true: dict[str, Any] = {"status": status_of(state)}
        if there is not None and state is not InstanceState.TERMINATED:
            shown |= {
                "name": row.name,
                "state": row.instance.instance_state,
                "type": row.instance_type,
                "type of the instance": row.instance.instance_type,
                "tags": dict(row.tags),
                "tags of the instance": dict(row.instance.tags),
                "public address": row.instance.public_ip,
                "private address": row.instance.private_ip,
            }
            true |= {
                "name": _tags(there).get(NAME_TAG) or row.name,
                "state": state,
                "type": there["InstanceType"],
                "type of the instance": there["InstanceType"],
                "tags": _tags(there),
                "tags of the instance": _tags(there),
                "public address": there.get("PublicIpAddress") or None,
                "private address": there.get("PrivateIpAddress") or None,
            }
        for what, value in true.items():
            if shown[what] != value:
                yield (
                    f"{fleet}: worker {row.id} shows {what} {shown[what]}, its instance "
                    f"{row.instance.aws_instance_id} has {value}"
                )


def _tags(described: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in described.get("Tags", [])}


def _listed(counted: Counter[Any]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counted.items()))
