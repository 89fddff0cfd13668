"""A worker's stream in the event store: loading the aggregate and appending its events; and where claims are.

A *claim*, one tiny stream for each command id, binds the id to one body and one worker for ever.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import NAMESPACE_URL, UUID, uuid5

from cml_contracts.commands import WorkerCommand
from cml_contracts.envelope import decode_event, stream_of
from cml_contracts.events import EventMetadata, WorkerEvent
from cml_workers.eventstore.port import EventStore, NewEvent, StoredEvent, StreamNotFoundError
from cml_workers.worker import Recorded, Worker, fold

NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers/event")


def decode(stored: StoredEvent) -> Recorded:
    """A stored event as the aggregate reads it. Raises UnknownEventError, ValidationError."""
    return Recorded(
        revision=stored.revision,
        event=decode_event(stored.type, stored.data),
        metadata=EventMetadata.model_validate_json(stored.metadata),
    )


async def load(store: EventStore, worker_id: UUID, *, upto: int | None = None) -> Worker:
    """The worker as its stream tells, up to and including revision ``upto``; a blank one if there is none.

    Raises:
        StoreUnavailableError: try again.
        UnknownEventError: a newer version of the system wrote the stream; update this one.
    """
    try:
        history = await store.read(stream_of(worker_id), limit=None if upto is None else upto + 1)
    except StreamNotFoundError:
        history = []
    return fold(worker_id, map(decode, history))


async def append(
    store: EventStore, worker: Worker, events: Sequence[tuple[WorkerEvent, EventMetadata]]
) -> None:
    """Append to the worker's stream, provided that nothing was added since it was loaded.

    Raises:
        WrongExpectedVersionError: load and decide again.
        StoreUnavailableError: not known whether it was stored; load and decide again.
    """
    await store.append(
        stream_of(worker.id),
        [
            NewEvent(
                event_id=metadata.event_id,
                type=event.TYPE,
                data=event.model_dump_json(exclude_none=True).encode(),
                metadata=metadata.model_dump_json(exclude_none=True).encode(),
            )
            for event, metadata in events
        ],
        expected=worker.revision,
    )


def claim_stream(command_id: str) -> str:
    """The name of the stream that claims the command id."""
    return f"cml_command-{uuid5(NAMESPACE, command_id)}"


def fingerprint(command: WorkerCommand) -> str:
    """What the claim binds the command id to."""
    return hashlib.sha256(f"{command.TYPE}\n{command.model_dump_json()}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Claim:
    worker_id: UUID
    fingerprint: str


async def load_claim(store: EventStore, command_id: str) -> Claim | None:
    """Which command this id belongs to; None if no command had it yet. Raises StoreUnavailableError."""
    try:
        (stored,) = await store.read(claim_stream(command_id))
    except StreamNotFoundError:
        return None
    claim = json.loads(stored.data)
    return Claim(UUID(claim["worker_id"]), claim["fingerprint"])
