"""What lifecycle writes around an event and sends behind it: metadata, records of commands, results, lookups."""

from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from cml_contracts.events import (
    CommandRejected,
    CommandSkipped,
    InstanceStateObserved,
    WorkerEvent,
    WorkerTerminated,
)
from cml_contracts.results import OperationResult, Outcome, Problem, ProblemCode
from cml_workers.bus.codec import internal, reply
from cml_workers.bus.port import Outgoing
from cml_workers.domain.decisions import Reject
from cml_workers.domain.history import EventMetadata, ReplyAddress, fingerprint
from cml_workers.domain.messages import CommandMessage, Lookup, LookupRequested
from cml_workers.domain.operations import as_sent, command_of, of_user
from cml_workers.domain.worker import Worker
from cml_workers.foundation.tracing import here

_NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers/event")


def metadata_of(
    worker: Worker,
    event: WorkerEvent,
    now: datetime,
    event_id: UUID,
    cause: str,
    origin: CommandMessage | None,
) -> EventMetadata:
    """An event of an operation is surrounded by what came with the command that asked for it."""
    operation_id = getattr(event, "operation_id", None)
    operation = worker.operation(operation_id) if operation_id else None
    if operation is not None:
        return operation.requested.model_copy(
            update={
                "event_id": event_id,
                "time": now,
                "causation_id": cause,
                "reply": None,
                "fingerprint": None,
            }
        )
    if origin is None:
        command_id = as_sent(operation_id) if operation_id else None
        return EventMetadata(
            event_id=event_id, time=now, command_id=command_id, causation_id=cause, traceparent=here()
        )
    if isinstance(event, InstanceStateObserved) or (isinstance(event, WorkerTerminated) and not operation_id):
        # The command only made us look: who changed the instance is not known.
        return EventMetadata(
            event_id=event_id,
            time=now,
            correlation_id=origin.correlation_id,
            causation_id=cause,
            traceparent=origin.traceparent,
        )
    of_command = operation_id is None or command_of(operation_id) == origin.operation_id
    return EventMetadata(
        event_id=event_id,
        time=now,
        command_id=as_sent(operation_id or origin.command_id),
        correlation_id=origin.correlation_id,
        causation_id=cause,
        actor=origin.actor,
        user=origin.user,
        reason=origin.command.reason,
        traceparent=origin.traceparent,
        fingerprint=fingerprint(origin.command) if of_command else None,
        redrive=origin.redrive,
        reply=origin.reply if of_command else None,
    )


def lookup_request(origin: CommandMessage, lookup: Lookup) -> Outgoing:
    """The request to look up at EC2 what the command has to know before it can be decided."""
    request = LookupRequested(origin=origin, lookup=lookup)
    return internal(
        request,
        str(uuid5(_NAMESPACE, f"{of_user(origin.command_id, origin.user)}/lookup")),
        origin.correlation_id,
    )


def replies(result: OperationResult | None, address: ReplyAddress | None) -> list[Outgoing]:
    """The reply, if there is a result and somebody awaits it."""
    return [reply(result, address)] if result is not None and address is not None else []


def rejected(message: CommandMessage, decision: Reject) -> CommandRejected:
    """The record of a command that was rejected."""
    return CommandRejected(
        operation_id=message.operation_id,
        command_type=message.command_type,
        outcome=decision.outcome,
        problem=decision.problem,
    )


def skipped(message: CommandMessage, data: Any) -> CommandSkipped:
    """The record of a no-op."""
    return CommandSkipped(operation_id=message.operation_id, command_type=message.command_type, data=data)


def result_of(
    message: CommandMessage, outcome: Outcome, *, data: Any = None, problem: Problem | None = None
) -> OperationResult:
    """The result of a command, for its reply."""
    return OperationResult(
        command_id=message.command_id,
        worker_id=message.worker_id,
        outcome=outcome,
        data=data,
        problem=problem,
    )


def reused(command_id: str) -> Problem:
    """The problem of a command whose id belongs to another one."""
    return Problem.of(
        ProblemCode.DUPLICATE_COMMAND,
        f"message_id {command_id!r} belongs to another command; take a new id for a new command",
    )
