"""AWS's error codes: which exception, what helps, may the caller try again. One line for each code of the table."""

import pytest

from cml_contracts.results import ProblemCode
from cml_workers.ec2_adapter import errors
from cml_workers.ec2_adapter.errors import EC2Error, EC2Exception, OutcomeUnknownError, Remedy, exception_for

CODES = """
InvalidAMIID.NotFound                EC2InvalidParameter  FAIL           no
InvalidAMIID.Malformed               EC2InvalidParameter  FAIL           no
InvalidInstanceType                  EC2InvalidParameter  FAIL           no
InvalidParameterValue                EC2InvalidParameter  FAIL           no
InvalidParameterCombination          EC2InvalidParameter  FAIL           no
InvalidParameter                     EC2InvalidParameter  FAIL           no
InvalidSubnetID.NotFound             EC2InvalidParameter  FAIL           no
InvalidSubnet                        EC2InvalidParameter  FAIL           no
InvalidKeyPair.NotFound              EC2InvalidParameter  FAIL           no
InvalidBlockDeviceMapping            EC2InvalidParameter  FAIL           no
InvalidInstanceID.Malformed          EC2InvalidParameter  FAIL           no
MissingParameter                     EC2InvalidParameter  FAIL           no
MissingAction                        EC2InvalidParameter  FAIL           no
UnknownParameter                     EC2InvalidParameter  FAIL           no
UnsupportedOperation                 EC2InvalidParameter  FAIL           no
VPCIdNotSpecified                    EC2InvalidParameter  FAIL           no
InvalidGroup.NotFound                EC2InvalidParameter  RETRY_BRIEFLY  no
InstanceLimitExceeded                EC2QuotaExceeded     FAIL           no
VcpuLimitExceeded                    EC2QuotaExceeded     FAIL           no
ResourceLimitExceeded                EC2QuotaExceeded     FAIL           no
ResourceCountExceeded                EC2QuotaExceeded     FAIL           no
VolumeLimitExceeded                  EC2QuotaExceeded     FAIL           no
MaxIOPSLimitExceeded                 EC2QuotaExceeded     FAIL           no
InsufficientInstanceCapacity         EC2Capacity          FAIL           yes
InsufficientFreeAddressesInSubnet    EC2Capacity          FAIL           yes
InsufficientVolumeCapacity           EC2Capacity          FAIL           yes
ReservationCapacityExceeded          EC2Capacity          FAIL           yes
Unsupported                          EC2Capacity          FAIL           no
AuthFailure                          EC2Authentication    REFRESH        yes
InvalidClientTokenId                 EC2Authentication    REFRESH        yes
SignatureDoesNotMatch                EC2Authentication    REFRESH        yes
IncompleteSignature                  EC2Authentication    REFRESH        yes
MissingAuthenticationToken           EC2Authentication    REFRESH        yes
ExpiredToken                         EC2Authentication    REFRESH        yes
RequestExpired                       EC2Authentication    REFRESH        yes
UnauthorizedOperation                EC2Authentication    FAIL           no
AccessDenied                         EC2Authentication    FAIL           no
OptInRequired                        EC2Authentication    FAIL           no
Blocked                              EC2Authentication    FAIL           no
PendingVerification                  EC2Authentication    FAIL           no
IdempotentParameterMismatch          EC2InstanceCreation  LOOK_UP_LAUNCH no
IdempotentInstanceTerminated         EC2InstanceCreation  LOOK_UP_LAUNCH no
InvalidInstanceID.NotFound           EC2InstanceNotFound  DESCRIBE       no
IncorrectInstanceState               EC2InstanceOperation DESCRIBE       no
IncorrectState                       EC2InstanceOperation DESCRIBE       no
OperationNotPermitted                EC2InstanceOperation FAIL           no
TagLimitExceeded                     EC2TagOperation      FAIL           no
TagPolicyViolation                   EC2TagOperation      FAIL           no
InvalidTagKey.Malformed              EC2TagOperation      FAIL           no
ConcurrentTagAccess                  EC2TagOperation      RETRY          yes
RequestLimitExceeded                 EC2Throttled         RETRY          yes
EC2ThrottledException                EC2Throttled         RETRY          yes
Throttling                           EC2Throttled         RETRY          yes
ThrottlingException                  EC2Throttled         RETRY          yes
"""
TABLE = [tuple(line.split()) for line in CODES.strip().splitlines()]
UNKNOWN = [
    "InternalError",
    "InternalFailure",
    "ServerInternal",
    "Unavailable",
    "ServiceUnavailable",
]


def error_for(
    aws_code: str, *, operation: str = "RunInstances", status: int = 400, message: str = "m"
) -> EC2Error:
    return exception_for(aws_code, message, operation=operation, subject="image ami-1", status=status)


def refused(aws_code: str, **about: str) -> EC2Exception:
    error = error_for(aws_code, **about)  # type: ignore[arg-type]
    assert isinstance(error, EC2Exception)
    return error


@pytest.mark.parametrize(("aws_code", "code", "remedy", "retryable"), TABLE)
def test_a_code_of_the_table_becomes_its_exception(aws_code: str, code: str, remedy: str, retryable: str):
    error = refused(aws_code)
    assert type(error).__name__ == f"{code}Exception"
    assert error.problem.code.value == code
    assert error.remedy is Remedy[remedy]
    assert error.problem.retryable is (retryable == "yes")
    assert aws_code in error.problem.detail
    assert "ami-1" in error.problem.detail


@pytest.mark.parametrize("aws_code", UNKNOWN)
@pytest.mark.parametrize("status", [400, 500, 503])
def test_an_internal_error_is_an_unknown_outcome(aws_code: str, status: int):
    assert isinstance(error_for(aws_code, status=status), OutcomeUnknownError)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_an_unlisted_code_with_a_5xx_is_an_unknown_outcome(status: int):
    error = error_for("NeverHeardOfIt", status=status)
    assert isinstance(error, OutcomeUnknownError)


def test_an_unknown_outcome_is_no_kind_of_refusal():
    assert not issubclass(OutcomeUnknownError, EC2Exception)
    assert issubclass(OutcomeUnknownError, EC2Error)


def test_capacity_is_known_even_when_it_comes_as_500():
    assert error_for("InsufficientInstanceCapacity", status=500).problem.code is ProblemCode.EC2_CAPACITY


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ("RunInstances", ProblemCode.EC2_INSTANCE_CREATION),
        ("StartInstances", ProblemCode.EC2_INSTANCE_OPERATION),
        ("StopInstances", ProblemCode.EC2_INSTANCE_OPERATION),
        ("TerminateInstances", ProblemCode.EC2_INSTANCE_OPERATION),
        ("CreateTags", ProblemCode.EC2_TAG_OPERATION),
        ("DescribeInstances", ProblemCode.EC2_STATUS_CHECK),
        ("DescribeInstanceStatus", ProblemCode.EC2_STATUS_CHECK),
    ],
)
def test_an_unlisted_refusal_is_the_operations_own_and_definite(operation: str, code: ProblemCode):
    error = refused("NeverHeardOfIt", operation=operation)
    assert (error.problem.code, error.remedy) == (code, Remedy.FAIL)


def test_an_invalid_value_on_tags_speaks_of_a_tag():
    assert (
        error_for("InvalidParameterValue", operation="CreateTags").problem.code
        is ProblemCode.EC2_TAG_OPERATION
    )


def test_an_instance_profile_that_was_just_made_is_waited_for():
    message = (
        "Value (cml) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name"
    )
    assert refused("InvalidParameterValue", message=message).remedy is Remedy.RETRY_BRIEFLY


def test_the_encoded_authorization_message_is_not_repeated():
    secret = "You are not authorized. Encoded authorization failure message: sEcReT"
    assert "sEcReT" not in error_for("UnauthorizedOperation", message=secret).problem.detail


def test_a_long_message_is_cut():
    assert len(error_for("InvalidParameterValue", message="x" * 10_000).problem.detail) < 600


def test_the_exceptions_bear_the_names_of_the_specification():
    for name in (f"{code}Exception" for code in ProblemCode if code.startswith("EC2")):
        assert issubclass(getattr(errors, name), EC2Exception)
