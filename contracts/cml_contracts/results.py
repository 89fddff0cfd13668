"""The reply to a caller: an ``OperationResult``, whose problem has a code for programs."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Self
from uuid import UUID

from cml_contracts.model import Tolerant


class ProblemCode(StrEnum):
    """Why a command did not succeed. The EC2 ones are named after the adapter's exception classes."""

    EC2_INVALID_PARAMETER = "EC2InvalidParameter"
    EC2_QUOTA_EXCEEDED = "EC2QuotaExceeded"
    EC2_CAPACITY = "EC2Capacity"
    EC2_AUTHENTICATION = "EC2Authentication"
    EC2_INSTANCE_CREATION = "EC2InstanceCreation"
    EC2_INSTANCE_NOT_FOUND = "EC2InstanceNotFound"
    EC2_INSTANCE_OPERATION = "EC2InstanceOperation"
    EC2_TAG_OPERATION = "EC2TagOperation"
    EC2_STATUS_CHECK = "EC2StatusCheck"
    EC2_THROTTLED = "EC2Throttled"
    WORKER_NOT_FOUND = "WorkerNotFound"
    OPERATION_NOT_FOUND = "OperationNotFound"
    WORKER_TERMINATED = "WorkerTerminated"
    NO_INSTANCE = "NoInstance"
    CONFLICT = "Conflict"
    VALIDATION_FAILED = "ValidationFailed"
    UNAUTHORIZED = "Unauthorized"
    THROTTLED = "Throttled"
    DUPLICATE_COMMAND = "DuplicateCommand"
    DEAD_LETTER_NOT_FOUND = "DeadLetterNotFound"
    READ_MODEL_UNAVAILABLE = "ReadModelUnavailable"


class Problem(Tolerant):
    """Why a command did not succeed. ``retryable``: the same request may succeed later, as a new command."""

    code: ProblemCode
    title: str
    detail: str
    retryable: bool = False

    @classmethod
    def of(cls, code: ProblemCode, detail: str, *, retryable: bool = False) -> Self:
        """A problem under its code's own title."""
        return cls(code=code, title=TITLES[code], detail=detail, retryable=retryable)


class Delay(Tolerant):
    """What a pending operation waits for: EC2's last answer that is known, after so many attempts.

    ``next_at``: when the next attempt after ``last_at`` was due; those behind it follow at about that distance, and are shown when
    they have doubled. None: EC2 refused for good, and it is only looked at whether an earlier attempt got through.
    """

    problem: Problem
    attempts: int
    last_at: datetime
    next_at: datetime | None = None


TITLES: Mapping[ProblemCode, str] = {
    ProblemCode.EC2_INVALID_PARAMETER: "EC2 does not accept a parameter",
    ProblemCode.EC2_QUOTA_EXCEEDED: "A quota of the AWS account is exceeded",
    ProblemCode.EC2_CAPACITY: "EC2 has no capacity for this now",
    ProblemCode.EC2_AUTHENTICATION: "AWS does not accept our credentials, or they lack a permission",
    ProblemCode.EC2_INSTANCE_CREATION: "EC2 could not launch the instance",
    ProblemCode.EC2_INSTANCE_NOT_FOUND: "The instance is not found in EC2",
    ProblemCode.EC2_INSTANCE_OPERATION: "EC2 does not allow this operation on the instance",
    ProblemCode.EC2_TAG_OPERATION: "EC2 does not accept the tags",
    ProblemCode.EC2_STATUS_CHECK: "EC2 could not describe the instance's status",
    ProblemCode.EC2_THROTTLED: "EC2 throttles our requests",
    ProblemCode.WORKER_NOT_FOUND: "There is no such worker",
    ProblemCode.OPERATION_NOT_FOUND: "There is no such operation",
    ProblemCode.WORKER_TERMINATED: "The worker is terminated",
    ProblemCode.NO_INSTANCE: "The worker has no instance",
    ProblemCode.CONFLICT: "The worker's state does not allow this now",
    ProblemCode.VALIDATION_FAILED: "The message is not valid",
    ProblemCode.UNAUTHORIZED: "The sender is not authorized to do this",
    ProblemCode.THROTTLED: "Too many commands",
    ProblemCode.DUPLICATE_COMMAND: "The command id was used before with another body",
    ProblemCode.DEAD_LETTER_NOT_FOUND: "There is no such dead letter",
    ProblemCode.READ_MODEL_UNAVAILABLE: "Queries cannot be answered now",
}


Outcome = Literal["succeeded", "rejected", "failed"]


class OperationResult(Tolerant):
    """The reply to a command or a query.

    ``rejected``: our rules said no, and nothing was attempted; ``failed``: it was attempted, or would have been, and
    AWS or its configuration does not allow it. ``command_id`` is None only where the message had none.
    """

    command_id: str | None
    worker_id: UUID | None = None
    outcome: Outcome
    data: Any = None
    problem: Problem | None = None
