"""Dead letters, and operators' requests about them, which are sent to ``cml.operator``.

Results come as ``OperationResult.data``. A sender needs the right to it.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self
from uuid import UUID

from pydantic import Field, model_validator

from cml_contracts.model import Strict, Tolerant
from cml_contracts.texts import Actor, Reason, Text
from cml_contracts.times import Moment


class DeadLetterState(StrEnum):
    """``waiting``: for an operator. ``redriven``, ``edited``: in its queue again, unchanged or with another body."""

    WAITING = "waiting"
    REDRIVEN = "redriven"
    EDITED = "edited"
    DISCARDED = "discarded"


class ListDeadLetters(Strict):
    """Dead letters that meet every given condition, the latest first. Answer: ``DeadLetterPage``.

    ``since``: died then or later; ``reason_part``: anywhere in the reason, whatever its case; ``cursor``: the
    ``next_cursor`` of the page before, with the same conditions.
    """

    TYPE: ClassVar = "cml.deadletter.list.v1"
    queue: Text | None = None
    type: Text | None = None
    state: Annotated[DeadLetterState, Field(strict=False)] | None = None
    cause: Text | None = None
    reason_part: Text | None = None
    since: Moment | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    cursor: Annotated[str, Field(max_length=200)] | None = None


class GetDeadLetter(Strict):
    """A dead letter with its message and history. Answer: ``DeadLetterDetails``, or the problem ``DeadLetterNotFound``."""

    TYPE: ClassVar = "cml.deadletter.get.v1"
    dead_letter_id: UUID


class RedriveDeadLetter(Strict):
    """Send it to the queue it died in again, its counters cleared. Answer: ``DeadLetterView``."""

    TYPE: ClassVar = "cml.deadletter.redrive.v1"
    dead_letter_id: UUID
    by: Actor | None = None
    reason: Reason | None = None


class EditDeadLetter(Strict):
    """Give it another body, or type, and redrive it. Answer: ``DeadLetterView``.

    Only a message of another program. An edited command is its operator's own, who needs the right to send it (else ``Unauthorized``).

    A command whose id the old body has used gets a new id, which the answer names; the edit of one that was
    decided is rejected with ``Conflict``.
    """

    TYPE: ClassVar = "cml.deadletter.edit.v1"
    dead_letter_id: UUID
    body: str | None = None
    type: Text | None = None
    by: Actor | None = None
    reason: Reason | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.body is None and self.type is None:
            raise ValueError("an edit needs a body or a type")
        return self


class DiscardDeadLetter(Strict):
    """Decide that nothing is done about it; it stays archived. Answer: ``DeadLetterView``."""

    TYPE: ClassVar = "cml.deadletter.discard.v1"
    dead_letter_id: UUID
    reason: Reason
    by: Actor | None = None


OperatorRequest = ListDeadLetters | GetDeadLetter | RedriveDeadLetter | EditDeadLetter | DiscardDeadLetter

OPERATOR_REQUESTS: Mapping[str, type[OperatorRequest]] = {
    request.TYPE: request
    for request in (ListDeadLetters, GetDeadLetter, RedriveDeadLetter, EditDeadLetter, DiscardDeadLetter)
}


class DeadLetterView(Tolerant):
    """A dead letter without its content. A message that dies again is the same one, with a higher count.

    ``cause``: the kind of reason. ``deaths``, ``redrives``: in its whole life; ``deliveries``, ``attempts``
    (how often it was retried), ``faults`` (how often a handler failed with it): before its last death. ``size``: bytes of the
    message's body; ``is_cut``: only the first 64 KiB of it are kept, so it cannot be redriven or edited.
    """

    id: UUID
    state: DeadLetterState
    queue: str
    cause: str
    reason: str
    type: str
    message_id: str | None = None
    user: str | None = None
    size: int
    is_cut: bool = False
    deaths: int
    redrives: int
    deliveries: int
    attempts: int
    faults: int
    first_died_at: datetime
    last_died_at: datetime


class DeadLetterOutcome(Tolerant):
    """One entry in the history of a dead letter. ``user``: whom the broker vouched for; ``by``: who they said they were.

    ``replaced``: the body, or type, that an edit replaced.
    """

    time: datetime
    what: Literal["died", "redriven", "edited", "discarded"]
    user: str | None = None
    by: str | None = None
    reason: str | None = None
    message_id: str | None = None
    replaced_type: str | None = None
    replaced_body: str | None = None


class DeadLetterDetails(DeadLetterView):
    """``body``: its first 64 KiB, as text; if it is no UTF-8, as base64. ``sha256``: of all of it, in hexadecimal digits.

    ``history``: its end, as far as a reply can hold it.
    """

    body: str
    sha256: str | None = None
    encoding: Literal["utf-8", "base64"]
    correlation_id: str | None = None
    reply_to: str | None = None
    content_type: str | None = None
    headers: Mapping[str, Any] = {}
    history: tuple[DeadLetterOutcome, ...]


class DeadLetterCount(Tolerant):
    """How many dead letters met the conditions, by cause and queue."""

    cause: str
    queue: str
    count: int


class DeadLetterPage(Tolerant):
    """It ends at 768 KiB, also with fewer than were asked for. ``counts``: of all that meet the conditions, not only of this page. ``next_cursor`` is None on the last."""

    dead_letters: tuple[DeadLetterView, ...]
    counts: tuple[DeadLetterCount, ...]
    next_cursor: str | None = None
