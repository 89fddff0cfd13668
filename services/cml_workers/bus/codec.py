"""Messages as typed bodies: what comes in is validated, and what is wrong with it is described without repeating it."""

import re
from collections.abc import Mapping
from typing import TypeVar
from uuid import NAMESPACE_URL, uuid5

from pydantic import BaseModel, ValidationError

from cml_contracts.envelope import MAX_BODY, MAX_REPLY
from cml_contracts.results import OperationResult, Problem, ProblemCode
from cml_contracts.texts import as_command_id
from cml_contracts.topology import REPLIES
from cml_workers.bus.port import Message, Outgoing
from cml_workers.bus.topology import INTERNAL_EXCHANGE
from cml_workers.domain.history import ReplyAddress, described
from cml_workers.domain.messages import LookupRequested, Reminder, Report

RESULT_TYPE = "cml.operation_result.v1"

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""The only way to write it in JSON."""
_UNGUESSABLE = re.compile(
    r"amq\.rabbitmq\.reply-to\..+|amq\.gen-[A-Za-z0-9_-]+"
    rf"|{re.escape(REPLIES)}[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}"
)
"""Addresses that only their owner knows: of direct reply-to, of a queue that the broker named, of an earlier ``WorkerClient``."""
_OF_A_USER = re.compile(rf"{re.escape(REPLIES)}(?P<user>.+)\.[A-Za-z0-9_-]+")
"""With no dot in the name: ``cml.replies.a.b.c`` is of the user ``a.b``, and not of ``a``."""


class BadMessageError(Exception):
    """The message itself is invalid: it stays so whenever it is read again."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem.of(ProblemCode.VALIDATION_FAILED, detail)


T = TypeVar("T", bound=BaseModel)


def read(message: Message, types: Mapping[str, type[T]], *, limit: int = MAX_BODY) -> T:
    """The typed body of a message, of at most ``limit`` bytes. Raises BadMessageError.

    No text may contain NUL, which PostgreSQL cannot store.
    """
    if len(message.body) > limit:
        raise BadMessageError(f"the body has {len(message.body)} bytes; at most {limit} are allowed")
    model = types.get(message.type)
    if model is None:
        known = ", ".join(sorted(types))
        raise BadMessageError(f"type {message.type[:80]!r} is not known; known: {known}")
    if _NUL.search(message.body):
        raise BadMessageError("a text contains the character NUL")
    try:
        return model.model_validate_json(message.body)
    except ValidationError as error:
        raise BadMessageError(described(error)) from error


def identity(message: Message) -> str:
    """The message id, which is the command's id, of a message whose properties can be stored. Raises BadMessageError."""
    for name, text in (("correlation_id", message.correlation_id), ("reply_to", message.reply_to)):
        if "\0" in (text or ""):
            raise BadMessageError(f"{name} contains the character NUL")
    if not message.message_id:
        raise BadMessageError("the AMQP property message_id is missing; it is the command's idempotency key")
    try:
        return as_command_id(message.message_id)
    except ValueError as error:
        raise BadMessageError(f"message_id: {error}") from error


def reply_address(message: Message, *, own: bool) -> ReplyAddress | None:
    """Where the sender awaits the result; a message without a correlation id gets its message id as one.

    ``own``: a queue that is named after a user must be of the message's user. Raises BadMessageError: nothing may be sent there.
    We may write to every queue, and so the sender could otherwise.
    """
    if not message.reply_to:
        return None
    of_a_user = _OF_A_USER.fullmatch(message.reply_to)
    theirs = of_a_user and (not own or of_a_user["user"] == message.user_id)
    if not theirs and not _UNGUESSABLE.fullmatch(message.reply_to):
        raise BadMessageError(
            "reply_to must be amq.rabbitmq.reply-to, the name that the broker gave to a queue (amq.gen-...), or "
            f"{REPLIES}<user>.<name>, where the user is the message's user_id and the name has letters, digits, - and _"
        )
    return ReplyAddress(
        reply_to=message.reply_to, correlation_id=message.correlation_id or message.message_id
    )


def internal(
    message: Report | Reminder | LookupRequested, message_id: str, correlation_id: str | None = None
) -> Outgoing:
    """A message from one role to another."""
    return Outgoing(
        exchange=INTERNAL_EXCHANGE,
        routing_key=message.TYPE,
        body=message.model_dump_json().encode(),
        type=message.TYPE,
        message_id=message_id,
        correlation_id=correlation_id,
    )


def reply(result: OperationResult, address: ReplyAddress, data: str | None = None) -> Outgoing:
    """The result as a message to its caller; dropped if the caller's queue is gone.

    ``data``: the result's data where it is JSON already. A reply of more than ``MAX_REPLY`` bytes, at which the broker would close
    the channel that carries everybody's replies, comes without its data and says so.
    """
    body = _body(result, data)
    if len(body) > MAX_REPLY:
        too_large = f"the reply would have {len(body)} bytes; at most {MAX_REPLY} are sent"
        problem = result.problem or Problem.of(ProblemCode.REPLY_TOO_LARGE, too_large)
        body = _body(result.model_copy(update={"data": None, "problem": problem}), None)
    return Outgoing(
        exchange=None,
        routing_key=address.reply_to,
        body=body,
        type=RESULT_TYPE,
        # A hash, as the command id may be invalid, and as long as a property can be.
        message_id=str(uuid5(NAMESPACE_URL, f"cml-workers/result/{result.command_id}")),
        correlation_id=address.correlation_id,
        mandatory=False,
    )


def _body(result: OperationResult, data: str | None) -> bytes:
    if data is None:
        return result.model_dump_json().encode()
    rest = result.model_dump_json(exclude={"data"})
    return f'{rest[:-1]},"data":{data}}}'.encode()
