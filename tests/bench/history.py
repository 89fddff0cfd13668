"""Streams of workers as they are stored, in the format of 65339c3, which every later version reads."""

import json
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any
from uuid import UUID, uuid4

TIME = "2026-01-01T00:00:00Z"
INSTANCE = {
    "instance_id": "i-00000000000000001",
    "aws_region": "us-east-1",
    "state": "running",
    "instance_type": "m5.large",
    "ami_id": "ami-11111111",
    "tags": {"Name": "lab"},
}
PROBLEM = {
    "code": "Conflict",
    "title": "Conflict",
    "detail": "a worker of that id exists already",
    "retryable": False,
}
JsonEvent = tuple[UUID, str, bytes, bytes]


def event(event_type: str, operation: str | None, data: dict[str, Any]) -> JsonEvent:
    """An event as it is stored; ``operation``: the command that it belongs to."""
    event_id = uuid4()
    metadata = {
        "event_id": str(event_id),
        "time": TIME,
        "causation_id": operation or "observed",
        **({"command_id": operation, "correlation_id": operation, "actor": "ann"} if operation else {}),
        **({"reply": {"reply_to": "amq.gen-somebody", "correlation_id": operation}} if operation else {}),
    }
    named = (
        {"operation_id": operation, **data} if operation and event_type != "cml.worker.created.v1" else data
    )
    return event_id, event_type, json.dumps(named).encode(), json.dumps(metadata).encode()


def rejected() -> JsonEvent:
    """A command that the rules refused, which leaves the worker as it was."""
    data = {"command_type": "cml.worker.create.v1", "outcome": "rejected", "problem": PROBLEM}
    return event("cml.command.rejected.v1", str(uuid4()), data)


def running() -> list[JsonEvent]:
    """A worker that was created and runs."""
    command = str(uuid4())
    launch = {
        "aws_region": "us-east-1",
        "ami_id": "ami-11111111",
        "instance_type": "m5.large",
        "tags": {"Name": "lab"},
        "generation": 1,
        "client_token": "token",
    }
    created = {
        "name": "lab",
        "aws_region": "us-east-1",
        "instance_type": "m5.large",
        "ami_id": "ami-11111111",
        "tags": {},
        "created_by": "ann",
    }
    return [
        event("cml.worker.created.v1", command, created),
        event("cml.worker.launch_requested.v1", command, {"launch": launch}),
        event("cml.worker.instance_launched.v1", command, {"instance": INSTANCE}),
    ]


def tag_requested(operation: str) -> JsonEvent:
    """An intent."""
    return event("cml.worker.tags_update_requested.v1", operation, {"tags": {"course": "ccna"}})


def tag_updated(operation: str) -> JsonEvent:
    """Its outcome."""
    return event("cml.worker.tags_updated.v1", operation, {"tags": {"Name": "lab", "course": "ccna"}})


def tag_update() -> list[JsonEvent]:
    """An operation with its outcome."""
    operation = str(uuid4())
    return [tag_requested(operation), tag_updated(operation)]


def skipped() -> JsonEvent:
    """A no-op."""
    data = {"command_type": "cml.worker.start.v1", "data": True}
    return event("cml.command.skipped.v1", str(uuid4()), data)


def mixed(length: int) -> list[JsonEvent]:
    """A worker's stream of that length: created, then tag updates, no-ops and rejections by turns."""
    return list(islice(_mixed(), length))


def _mixed() -> Iterator[JsonEvent]:
    yield from running()
    kinds: tuple[Callable[[], list[JsonEvent]], ...] = (tag_update, lambda: [skipped()], lambda: [rejected()])
    for number in count():
        yield from kinds[number % len(kinds)]()
