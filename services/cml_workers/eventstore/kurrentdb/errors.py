"""Errors of kurrentdbclient and of gRPC, and what they mean for the port."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import grpc  # type: ignore[import-untyped]  # it ships no types
import grpc.aio  # type: ignore[import-untyped]
from kurrentdbclient.exceptions import (
    AccessDeniedError,
    DeadlineExceededError,
    DiscoveryFailedError,
    InvalidCommitPositionError,
    KurrentDBClientError,
    MaximumAppendSizeExceededError,
    NodeIsNotLeaderError,
    NotFoundError,
    ProgrammingError,
    SSLError,
    StreamIsDeletedError,
    UnauthenticatedError,
    WrongCurrentVersionError,
)

from cml_workers.eventstore.port import StoreConfigurationError, StoreForbiddenError, StoreUnavailableError

_TLS_IS_MISCONFIGURED = re.compile(
    "CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER|security handshaker|empty address list", re.IGNORECASE
)


def timed_out(error: StoreUnavailableError) -> bool:
    """Whether it says that an answer did not come in time, or that the server itself had waited for too long."""
    return isinstance(error.__cause__, TimeoutError | DeadlineExceededError)


@contextlib.asynccontextmanager
async def port_errors(address: str) -> AsyncIterator[None]:
    """Raise errors as the port's, but for those about a stream."""
    try:
        yield
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        raise StoreUnavailableError(f"the connection to KurrentDB at {address} was closed") from None
    except TimeoutError as error:
        raise StoreUnavailableError(f"KurrentDB at {address} did not answer in time") from error
    except (NotFoundError, StreamIsDeletedError, WrongCurrentVersionError, MaximumAppendSizeExceededError):
        raise
    except (KurrentDBClientError, ProgrammingError, grpc.RpcError, grpc.aio.UsageError) as error:
        raise _meaning(error, f"KurrentDB at {address}") from error


def _meaning(error: BaseException, where: str) -> StoreUnavailableError | StoreConfigurationError:
    match error:
        case DiscoveryFailedError(__cause__=BaseException() as cause):
            return _meaning(cause, where)
        case UnauthenticatedError():
            return StoreConfigurationError(f"{where} does not accept our user name and password")
        case AccessDeniedError():
            return StoreForbiddenError(f"{where} does not let our user do this: {error}")
        case InvalidCommitPositionError():
            return StoreConfigurationError(f"{where} does not know the position we are to follow from")
        case SSLError() if _TLS_IS_MISCONFIGURED.search(str(error)):
            return StoreConfigurationError(
                f"no trusted connection to {where}: TlsCaFile must name the certificate authority of a "
                f"secure server, tls=false is for an insecure one ({error})"
            )
        case NodeIsNotLeaderError():
            return StoreUnavailableError(
                f"{where} is not the leader now; name all nodes, or use +discover, to find the leader"
            )
        case _:
            return StoreUnavailableError(f"{where} failed: {type(error).__name__}: {error}")
