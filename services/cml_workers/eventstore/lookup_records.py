"""Records of accepted commands that wait for a lookup: lifecycle continues only what it has recorded itself.

Such a command goes to the EC2 adapter, and comes back with EC2's answer. Whoever can publish a lookup result could
otherwise have any command done, in anybody's name. So the command is recorded before its lookup is requested, under a hash of all
that comes back: command, actor, user, reply address and what EC2 was asked. What differs in anything has no record.
"""

import json
from hashlib import sha256
from uuid import UUID

from cml_workers.domain.messages import CommandMessage, Lookup
from cml_workers.eventstore.port import (
    NO_STREAM,
    EventStore,
    NewEvent,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
    traced,
)

LOOKUP_STREAMS = "cml_lookup-"
ACCEPTED = "cml.command.accepted.v1"


def stream_of_lookup(message: CommandMessage, lookup: Lookup) -> str:
    """The stream of the record; the same for a version that knows more optional fields."""
    whole = {
        "command": message.model_dump(mode="json", exclude_defaults=True),
        "lookup": lookup.model_dump(mode="json", exclude_defaults=True),
    }
    return f"{LOOKUP_STREAMS}{sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()}"


async def record_lookup(store: EventStore, message: CommandMessage, lookup: Lookup, event_id: UUID) -> None:
    """Record that this command was accepted and waits for this lookup; once. Raises StoreUnavailableError."""
    body = {
        "command_id": message.command_id,
        "command_type": message.command_type,
        "worker_id": str(message.worker_id),
        "user": message.user,
        "actor": message.actor,
    }
    metadata = traced(message.correlation_id, message.command_id)
    event = NewEvent(event_id, ACCEPTED, json.dumps(body).encode(), json.dumps(metadata).encode())
    try:
        await store.append(stream_of_lookup(message, lookup), [event], expected=NO_STREAM)
    except WrongExpectedVersionError:
        return  # recorded by an earlier delivery, or it is a repetition


async def is_recorded(store: EventStore, message: CommandMessage, lookup: Lookup) -> bool:
    """Whether this very command waits, or waited, for this very lookup; not if its record was deleted. Raises StoreUnavailableError."""
    try:
        await store.last(stream_of_lookup(message, lookup))
    except (StreamNotFoundError, StreamDeletedError):
        return False
    return True
