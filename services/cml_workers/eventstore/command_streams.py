"""A command's own stream in the event store: which body its id belongs to and, for a status update, the answer.

A status update is no wish of which the worker's stream could tell: it is asked often and mostly changes nothing.
Its answer is bound here before it is sent, so that every repetition gets the same.
"""

import hashlib
import json
from dataclasses import dataclass
from uuid import NAMESPACE_URL, UUID, uuid5

from cml_contracts.commands import WorkerCommand
from cml_contracts.queries import OperationView
from cml_contracts.results import OperationResult
from cml_workers.domain.messages import CommandMessage
from cml_workers.eventstore.port import (
    NO_STREAM,
    EventStore,
    NewEvent,
    StoredEvent,
    StreamNotFoundError,
    WrongExpectedVersionError,
)

COMMAND_STREAMS = "cml_command-"
CLAIMED = "cml.command.claimed.v1"
ANSWERED = "cml.command.answered.v1"

_NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers/event")
_AFTER_THE_CLAIM = 0


def stream_of_command(command_id: str) -> str:
    """The stream's name; command ids may hold what no store takes in a name."""
    return f"{COMMAND_STREAMS}{uuid5(_NAMESPACE, command_id)}"


def fingerprint(command: WorkerCommand) -> str:
    """What a claim binds the command id to.

    The same in whatever order the sender writes, and in a later version, which may know more optional fields.
    """
    body = json.dumps(command.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(f"{command.TYPE}\n{body}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Claim:
    """Which command an id belongs to; ``answered``: here, and not by the worker's stream.

    ``user``: whom the broker vouched for when it was authorized, for ``actor``; None where nobody had to be, and in
    claims that were written before they said so.
    """

    worker_id: UUID
    fingerprint: str
    answered: bool
    user: str | None = None
    actor: str | None = None


async def claim(store: EventStore, message: CommandMessage) -> bool:
    """Bind the command id to this body; False if it is bound to another.

    The event id follows from the body, so repeating the very same claim is the same append and succeeds, and any
    other one conflicts. Raises StoreUnavailableError.
    """
    bound_to = fingerprint(message.command)
    claimed = {
        "command_id": message.command_id,
        "command_type": message.command_type,
        "worker_id": str(message.worker_id),
        "fingerprint": bound_to,
        **({"user": message.user, "actor": message.actor} if message.user else {}),
    }
    event_id = uuid5(_NAMESPACE, f"{message.command_id}/claim/{bound_to}")
    event = NewEvent(event_id, CLAIMED, json.dumps(claimed).encode(), b"{}")
    try:
        await store.append(stream_of_command(message.command_id), [event], expected=NO_STREAM)
    except WrongExpectedVersionError:
        return False
    return True


async def bind_answer(store: EventStore, result: OperationResult, event_id: UUID) -> OperationResult | None:
    """Make this the answer of its command, unless it has one; return the answer it has, None if nobody claimed it.

    Raises StoreUnavailableError.
    """
    assert result.command_id is not None  # noqa: S101 - it answers a command that was claimed
    event = NewEvent(event_id, ANSWERED, result.model_dump_json().encode(), b"{}")
    try:
        await store.append(stream_of_command(result.command_id), [event], expected=_AFTER_THE_CLAIM)
    except WrongExpectedVersionError:
        return await answer_of(store, result.command_id)
    return result


async def answer_of(store: EventStore, command_id: str) -> OperationResult | None:
    """The answer that was bound, if one was. Raises StoreUnavailableError."""
    return next((_answer(each) for each in await _read(store, command_id) if each.type == ANSWERED), None)


async def load_claim(store: EventStore, command_id: str) -> Claim | None:
    """Which command this id belongs to; None if no command had it yet. Raises StoreUnavailableError."""
    history = await _read(store, command_id)
    if not history:
        return None
    told = json.loads(history[0].data)
    return Claim(
        UUID(told["worker_id"]),
        told["fingerprint"],
        answered=len(history) > 1,
        user=told.get("user"),
        actor=told.get("actor"),
    )


async def answered_operation(store: EventStore, command_id: str) -> OperationView | None:
    """A command that was answered here, as the read model shows others. Raises StoreUnavailableError."""
    history = await _read(store, command_id)
    if len(history) < 2:
        return None
    claimed, answered = history[:2]
    told = json.loads(claimed.data)
    return OperationView(
        command_id=command_id,
        worker_id=told["worker_id"],
        command_type=told["command_type"],
        requested_at=claimed.recorded_at,
        settled_at=answered.recorded_at,
        result=_answer(answered),
    )


async def _read(store: EventStore, command_id: str) -> list[StoredEvent]:
    try:
        return await store.read(stream_of_command(command_id))
    except StreamNotFoundError:
        return []


def _answer(stored: StoredEvent) -> OperationResult:
    return OperationResult.model_validate_json(stored.data)
