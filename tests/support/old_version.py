"""What version 65339c3 wrote, answered and showed: see ``tests/data/65339c3``."""

import gzip
import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID

from cml_contracts.queries import OperationView, WorkerView
from cml_workers.eventstore.port import NO_STREAM, EventStore, NewEvent
from support.observed import SeenInstance, simulated_instances

DATA = Path(__file__).parents[1] / "data" / "65339c3"


def _lines(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt") as file:
        yield from map(json.loads, file)


async def append_events(store: EventStore) -> None:
    """Append what its chaos run stored to an empty store, in the same order."""
    revisions: dict[str, int] = {}
    for stream, events in groupby(_lines("chaos-events"), lambda each: str(each["stream"])):
        revisions[stream] = await store.append(
            stream,
            [
                NewEvent(
                    event_id=UUID(each["event_id"]),
                    type=each["type"],
                    data=json.dumps(each["data"]).encode(),
                    metadata=json.dumps(each["metadata"]).encode(),
                )
                for each in events
            ],
            expected=revisions.get(stream, NO_STREAM),
        )


def answers() -> Sequence[dict[str, Any]]:
    """The commands of its chaos run: ``command_id``, ``type``, ``body`` and ``result``."""
    return list(_lines("chaos-answers"))


def seen() -> tuple[list[WorkerView], list[OperationView], list[SeenInstance]]:
    """The rows of its read model after the chaos run, and what was in EC2."""
    found: dict[str, list[Any]] = {"worker": [], "operation": [], "instance": []}
    for line in _lines("chaos-seen"):
        for kind, fields in line.items():
            found[kind].append(fields)
    return (
        # It did not count launches: each of its workers was launched once.
        [WorkerView.model_validate({**each, "generation": 1}) for each in found["worker"]],
        [OperationView.model_validate(each) for each in found["operation"]],
        simulated_instances(found["instance"]),
    )


def unpack_system(folder: Path) -> tuple[Path, Sequence[dict[str, Any]]]:
    """The data folder of a system that was killed at work, and the commands it got, as listed in ``answers``."""
    with tarfile.open(DATA / "system.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "data", json.loads((folder / "answers.json").read_text())
