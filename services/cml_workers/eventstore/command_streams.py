"""Idempotency records: which body a command id belongs to, for commands that bring a worker into being.

A repetition of any other command is seen in the worker's own stream, which records every command that named the worker.
A command that creates or imports a worker may name another one the next time; its id is bound here first, in a stream of
its own, so that no second instance can come of it. Of two users of an id, the second one has a record under an id of its own.
"""

import json
from dataclasses import dataclass
from uuid import NAMESPACE_URL, UUID, uuid5

from cml_workers.domain.decisions import IdTakenError
from cml_workers.domain.history import fingerprint, is_anothers
from cml_workers.domain.messages import CommandMessage
from cml_workers.eventstore.port import (
    NO_STREAM,
    EventStore,
    NewEvent,
    StoreUnavailableError,
    StreamNotFoundError,
    WrongExpectedVersionError,
    traced,
)

COMMAND_STREAMS = "cml_command-"
BOUND = "cml.command.claimed.v1"

_NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers/event")


def stream_of_command(command_id: str) -> str:
    """The stream's name; command ids may hold what no store takes in a name."""
    return f"{COMMAND_STREAMS}{uuid5(_NAMESPACE, command_id)}"


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """Which command an id belongs to.

    ``user``: whom the broker vouched for when it was authorized, for ``actor``; None where nobody had to be, and in
    records that were written before they said so. ``sender``: whose the id is, if it is known.
    """

    worker_id: UUID
    fingerprint: str
    user: str | None = None
    actor: str | None = None
    sender: str | None = None


async def bind(store: EventStore, message: CommandMessage, event_id: UUID) -> bool:
    """Bind the command id to this body; False if its sender has bound it to another.

    ``event_id`` is new at each attempt: a store may hold an append of an id that it has in hand already until that
    one times out. Raises StoreUnavailableError, IdTakenError.
    """
    body = {
        "command_id": message.command_id,
        "command_type": message.command_type,
        "worker_id": str(message.worker_id),
        "fingerprint": fingerprint(message.command),
        **({"user": message.user, "actor": message.actor} if message.user else {}),
        **({"edited": True} if message.user and message.sender is None else {}),
    }
    metadata = traced(message.correlation_id, message.command_id)
    event = NewEvent(event_id, BOUND, json.dumps(body).encode(), json.dumps(metadata).encode())
    try:
        await store.append(stream_of_command(message.operation_id), [event], expected=NO_STREAM)
    except WrongExpectedVersionError:
        there = await load_record(store, message.operation_id)
        if there is None:
            raise StoreUnavailableError(
                "a replica lags behind: the record is there, and not shown yet"
            ) from None
        if is_anothers(there.sender, message.sender):
            raise IdTakenError from None
        return there.fingerprint == body["fingerprint"]
    return True


async def check_id(store: EventStore, message: CommandMessage) -> None:
    """Raises IdTakenError if another user's command has the id; StoreUnavailableError."""
    there = await load_record(store, message.operation_id)
    if there is not None and is_anothers(there.sender, message.sender):
        raise IdTakenError


async def load_record(store: EventStore, command_id: str) -> IdempotencyRecord | None:
    """Which command this id is bound to; None if it is to none. Raises StoreUnavailableError."""
    try:
        history = await store.read(stream_of_command(command_id), limit=1)
    except StreamNotFoundError:
        return None
    body = json.loads(history[0].data)
    return IdempotencyRecord(
        UUID(body["worker_id"]),
        body["fingerprint"],
        user=body.get("user"),
        actor=body.get("actor"),
        sender=None if body.get("edited") else body.get("user"),
    )
