"""What can go wrong at EC2, as exceptions: AWS's error codes grouped by what the system does about them.

EC2Error
├── OutcomeUnknownError               no answer, or one that does not say: the call may have taken effect
└── EC2Exception                      EC2 refused the call: nothing was done by it
    ├── EC2AuthenticationException
    ├── EC2CapacityException
    ├── EC2InstanceCreationException
    ├── EC2InstanceNotFoundException
    ├── EC2InstanceOperationException
    ├── EC2InvalidParameterException
    ├── EC2QuotaExceededException
    ├── EC2StatusCheckException
    ├── EC2TagOperationException
    └── EC2ThrottledException

Codes: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
"""

from enum import Enum
from fnmatch import fnmatchcase
from typing import ClassVar, NamedTuple

from cml_contracts.results import Problem, ProblemCode


class Remedy(Enum):
    """What helps against a refusal; for how long it is tried says ``retry_policy.py``."""

    FAIL = "it is definite"
    RETRY = "nothing happened; try again, however long it takes"
    RETRY_BRIEFLY = "something was created a moment ago; try again for a while"
    REFRESH = "read the credentials from their source again and try again for a while"
    DESCRIBE = "the instance is in another state; look at it and decide again"
    LOOK_UP_LAUNCH = "the client token was used before; find what was launched under it"


class EC2Error(Exception):
    """A call to EC2 has no result. ``aws_code`` is EC2's own word, ``problem`` what a caller reads."""

    code: ClassVar[ProblemCode]

    def __init__(self, detail: str, *, retryable: bool, aws_code: str | None) -> None:
        super().__init__(detail)
        self.aws_code = aws_code
        self.problem = Problem.of(self.code, detail, retryable=retryable)


class OutcomeUnknownError(EC2Error):
    """No answer, or one that does not say: the call may have taken effect. Never recorded as a failure."""

    code = ProblemCode.EC2_STATUS_CHECK

    def __init__(self, detail: str, *, aws_code: str | None = None) -> None:
        super().__init__(detail, retryable=True, aws_code=aws_code)


class EC2Exception(EC2Error):  # noqa: N818 - the names are those of the original specification
    """EC2 refused a call: nothing was done by it. ``remedy``: what the executor does about it."""

    code = ProblemCode.EC2_INSTANCE_OPERATION

    def __init__(
        self,
        detail: str,
        *,
        remedy: Remedy = Remedy.FAIL,
        retryable: bool = False,
        aws_code: str | None = None,
    ) -> None:
        super().__init__(detail, retryable=retryable, aws_code=aws_code)
        self.remedy = remedy


class EC2InvalidParameterException(EC2Exception):
    code = ProblemCode.EC2_INVALID_PARAMETER


class EC2QuotaExceededException(EC2Exception):
    code = ProblemCode.EC2_QUOTA_EXCEEDED


class EC2CapacityException(EC2Exception):
    code = ProblemCode.EC2_CAPACITY


class EC2AuthenticationException(EC2Exception):
    code = ProblemCode.EC2_AUTHENTICATION


class EC2InstanceCreationException(EC2Exception):
    code = ProblemCode.EC2_INSTANCE_CREATION


class EC2InstanceNotFoundException(EC2Exception):
    code = ProblemCode.EC2_INSTANCE_NOT_FOUND


class EC2InstanceOperationException(EC2Exception):
    code = ProblemCode.EC2_INSTANCE_OPERATION


class EC2TagOperationException(EC2Exception):
    code = ProblemCode.EC2_TAG_OPERATION


class EC2StatusCheckException(EC2Exception):
    code = ProblemCode.EC2_STATUS_CHECK


class EC2ThrottledException(EC2Exception):
    code = ProblemCode.EC2_THROTTLED


class Row(NamedTuple):
    """Codes (with ``*``), the exception they become, what helps, and whether a caller may try again later."""

    codes: str
    exception: type[EC2Exception]
    remedy: Remedy
    retryable: bool = False


LAUNCH, TAGS = ("RunInstances",), ("CreateTags",)

TAG_ROWS = (
    # The first match counts: what is spelt out comes before the patterns it would match.
    Row(
        "TagLimitExceeded TagPolicyViolation InvalidTagKey.Malformed InvalidParameterValue",
        EC2TagOperationException,
        Remedy.FAIL,
    ),
)
"""These come first for tag operations: there, InvalidParameterValue speaks of a tag."""

ROWS = (
    # The first match counts: what is spelt out comes before the patterns it would match.
    Row(
        "AuthFailure InvalidClientTokenId SignatureDoesNotMatch IncompleteSignature "
        "MissingAuthenticationToken ExpiredToken ExpiredTokenException RequestExpired",
        EC2AuthenticationException,
        Remedy.REFRESH,
        retryable=True,
    ),
    Row("InvalidGroup.NotFound", EC2InvalidParameterException, Remedy.RETRY_BRIEFLY),
    Row(
        "InvalidAMIID.* InvalidInstanceType* InvalidParameter* InvalidSubnet* InvalidKeyPair.NotFound "
        "InvalidBlockDeviceMapping InvalidInstanceID.Malformed Missing* UnknownParameter "
        "UnsupportedOperation VPCIdNotSpecified",
        EC2InvalidParameterException,
        Remedy.FAIL,
    ),
    Row(
        "InstanceLimitExceeded VcpuLimitExceeded ResourceLimitExceeded ResourceCountExceeded "
        "VolumeLimitExceeded MaxIOPSLimitExceeded",
        EC2QuotaExceededException,
        Remedy.FAIL,
    ),
    Row(
        "InsufficientInstanceCapacity InsufficientFreeAddressesInSubnet InsufficientVolumeCapacity "
        "ReservationCapacityExceeded",
        EC2CapacityException,
        Remedy.FAIL,
        retryable=True,
    ),
    # The type is not offered in the zone of the subnet, which the same command would name again.
    Row("Unsupported", EC2CapacityException, Remedy.FAIL),
    Row(
        "UnauthorizedOperation AccessDenied AccessDeniedException OptInRequired Blocked PendingVerification",
        EC2AuthenticationException,
        Remedy.FAIL,
    ),
    Row("IdempotentParameterMismatch", EC2InstanceCreationException, Remedy.LOOK_UP_LAUNCH),
    Row("IdempotentInstanceTerminated", EC2InstanceCreationException, Remedy.LOOK_UP_LAUNCH),
    Row("InvalidInstanceID.NotFound", EC2InstanceNotFoundException, Remedy.DESCRIBE),
    Row("IncorrectInstanceState IncorrectState", EC2InstanceOperationException, Remedy.DESCRIBE),
    Row("OperationNotPermitted", EC2InstanceOperationException, Remedy.FAIL),
    Row("TagLimitExceeded TagPolicyViolation InvalidTagKey.Malformed", EC2TagOperationException, Remedy.FAIL),
    Row("ConcurrentTagAccess", EC2TagOperationException, Remedy.RETRY, retryable=True),
    Row(
        "RequestLimitExceeded EC2ThrottledException Throttling* SlowDown RequestThrottled*",
        EC2ThrottledException,
        Remedy.RETRY,
        retryable=True,
    ),
)

UNKNOWN = "InternalError InternalFailure ServerInternal Unavailable ServiceUnavailable RequestTimeout*"

_MAX_DETAIL = 400


def exception_for(
    aws_code: str, message: str, *, operation: str, subject: str, status: int = 400
) -> EC2Error:
    """The exception for an error answer of EC2.

    ``operation``: EC2's name of the call; ``subject``: what it was about, for the detail; ``status``: HTTP.
    Codes that are known decide even with a 5xx (capacity comes as 500); any other 5xx is an unknown outcome.
    """
    detail = f"{operation} of {subject}: {aws_code}: {_readable(message)}"
    profile = "iaminstanceprofile" in message.lower().replace(" ", "")
    rows: tuple[Row, ...] = (*TAG_ROWS, *ROWS) if operation in TAGS else ROWS
    for row in rows:
        if _matches(aws_code, row.codes):
            remedy = Remedy.RETRY_BRIEFLY if profile and row.remedy is Remedy.FAIL else row.remedy
            return row.exception(detail, remedy=remedy, retryable=row.retryable, aws_code=aws_code)
    if status >= 500 or _matches(aws_code, UNKNOWN):
        return OutcomeUnknownError(detail, aws_code=aws_code)
    return _default(operation)(detail, aws_code=aws_code)


def _default(operation: str) -> type[EC2Exception]:
    """What an unlisted code of a call means."""
    if operation in LAUNCH:
        return EC2InstanceCreationException
    if operation in TAGS:
        return EC2TagOperationException
    return EC2StatusCheckException if operation.startswith("Describe") else EC2InstanceOperationException


def _matches(aws_code: str, patterns: str) -> bool:
    return any(fnmatchcase(aws_code, pattern) for pattern in patterns.split())


def _readable(message: str) -> str:
    """Without the encoded authorization message, which is long and for administrators' eyes alone."""
    message = message.partition("Encoded authorization failure message")[0].strip()
    return message if len(message) <= _MAX_DETAIL else message[:_MAX_DETAIL] + " ..."


def counted_code(error: EC2Error) -> str:
    """EC2's code, for a metric: one that we know, ``other``, or ``no_answer``."""
    if isinstance(error, OutcomeUnknownError) and not _matches(error.aws_code or "", UNKNOWN):
        return "no_answer"
    code = error.aws_code or "other"
    known = " ".join([UNKNOWN, *(row.codes for row in (*TAG_ROWS, *ROWS))]).split()
    return code if code in known else next((each for each in known if fnmatchcase(code, each)), "other")
