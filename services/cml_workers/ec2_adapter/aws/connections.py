"""Connections to EC2: one long-lived client for each region, and every error as one of ours."""

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import aioboto3
import aiobotocore.session
import botocore.session
from aiobotocore.config import AioConfig
from aiohttp import ClientError as HttpError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    TokenRetrievalError,
)

from cml_workers.ec2_adapter.errors import (
    EC2AuthenticationException,
    EC2Error,
    EC2Exception,
    EC2InvalidParameterException,
    OutcomeUnknownError,
    Remedy,
    counted_code,
    exception_for,
)
from cml_workers.ec2_adapter.port import AT_ONCE
from cml_workers.foundation.metrics import EC2_CALL_SECONDS, EC2_CALLS, EC2_PROBLEMS
from cml_workers.foundation.tracing import API, REGION, span

_CODE = re.compile(r"[A-Za-z0-9._]{1,100}")
_PROBLEMS = [each.code for each in EC2Exception.__subclasses__()]
CONNECT_SECONDS = 5.0
"""Of several addresses of EC2 that do not answer the next one is tried after so many seconds."""

if TYPE_CHECKING:
    from types_aiobotocore_ec2.client import EC2Client

MODELS = Path(__file__).parent / "models"
"""Additions to the service models of botocore, as its loader reads them (``botocore.loaders``, *sdk-extras*): CpuOptions'
NestedVirtualization, in botocore from 1.42 on (EC2 API reference, *CpuOptionsRequest*)."""


@dataclass(eq=False)
class _Client:
    """``retired``: another one takes its place, and it is closed when its last call has ended."""

    ec2: "EC2Client"
    stack: AsyncExitStack
    calls: int = 0
    retired: bool = False


@dataclass(eq=False)
class _Region:
    client: _Client | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


class Connections:
    """The clients of all regions. What happens to one region's client disturbs no other's.

    ``service``: by the SDK's name; ``prepare``: gets each client before its first call, to register for its events.
    """

    def __init__(
        self,
        *,
        endpoint_url: str | None,
        call_seconds: float,
        service: Literal["ec2", "kms", "service-quotas"] = "ec2",
        prepare: Callable[[Any], None] | None = None,
    ) -> None:
        self._service = service
        self._prepare = prepare
        self._endpoint_url = endpoint_url
        self._call_seconds = call_seconds
        self._config = AioConfig(
            connect_timeout=min(CONNECT_SECONDS, call_seconds),
            read_timeout=call_seconds,
            # One attempt a call: of several only the last one's answer is seen, a refusal, say, after one that was
            # carried out and whose answer was lost. Who calls tries again, and knows what may have happened.
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=AT_ONCE,
            user_agent_extra="cml-workers",
        )
        self._regions: dict[str, _Region] = {}

    async def close(self) -> None:
        """Close all connections."""
        regions, self._regions = self._regions, {}
        for region in regions.values():
            if region.client is not None:
                await region.client.stack.aclose()

    async def refresh(self, region: str) -> None:
        """Have the region's next call use a new client, which reads the credentials again."""
        known = self._regions.get(region)
        if known is not None and known.client is not None:
            client, known.client = known.client, None
            client.retired = True
            await _close_unused(client)

    @asynccontextmanager
    async def calling(self, operation: str, region: str, subject: str) -> "AsyncIterator[EC2Client]":
        """One call, which is counted and timed; what goes wrong is as ``_calling`` raises it."""
        if region not in _known_regions():
            # Its host would not be found, as in an outage, and the call would be repeated without end.
            raise EC2InvalidParameterException(f"AWS has no region {region}, as far as is known here")
        for problem in _PROBLEMS if region not in self._regions else ():
            EC2_PROBLEMS.labels(region, problem)
        code = "no_answer"
        try:
            with (
                EC2_CALL_SECONDS.labels(operation, region).time(),
                span(
                    f"EC2 {operation}",
                    {API: operation, REGION: region, "rpc.system": "aws-api"},
                    outside=True,
                ) as call,
            ):
                try:
                    async with self._calling(operation, region, subject) as client:
                        yield client
                except EC2Error as error:
                    call.put({"aws.error_code": _own_code(error)})
                    raise
            code = ""
        except EC2Error as error:
            code = counted_code(error)
            EC2_PROBLEMS.labels(region, error.code).inc()
            raise
        finally:
            EC2_CALLS.labels(operation, region, code).inc()

    @asynccontextmanager
    async def _calling(self, operation: str, region: str, subject: str) -> "AsyncIterator[EC2Client]":
        """One call; whatever goes wrong becomes one of our exceptions.

        It ends within its time, whatever takes long: credentials, the connection, an answer that comes byte by byte.
        """
        subject = f"{subject} in {region}"
        try:
            async with asyncio.timeout(self._call_seconds):
                client = await self._client(region)
                client.calls += 1
                try:
                    yield client.ec2
                finally:
                    client.calls -= 1
                    await _close_unused(client)
        except EC2Error:
            raise
        except ClientError as error:
            answer: Any = error.response
            reported = answer.get("Error", {})
            raise exception_for(
                reported.get("Code", "Unknown"),
                reported.get("Message", ""),
                operation=operation,
                subject=subject,
                status=answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 400),
            ) from error
        except (
            NoCredentialsError,
            PartialCredentialsError,
            CredentialRetrievalError,
            TokenRetrievalError,
        ) as error:
            raise EC2AuthenticationException(
                f"{operation} of {subject}: no usable AWS credentials ({type(error).__name__})",
                remedy=Remedy.REFRESH,
                retryable=True,
                aws_code=type(error).__name__,
            ) from error
        except ParamValidationError as error:
            raise EC2InvalidParameterException(f"{operation} of {subject}: {error}") from error
        except (BotoCoreError, HttpError, OSError, TimeoutError, RuntimeError) as error:
            raise OutcomeUnknownError(
                f"{operation} of {subject}: no answer ({type(error).__name__})", aws_code=type(error).__name__
            ) from error

    async def _client(self, region: str) -> _Client:
        known = self._regions.setdefault(region, _Region())
        async with known.opening:
            if known.client is None:
                stack = AsyncExitStack()
                ec2 = await stack.enter_async_context(
                    _session().client(
                        self._service,
                        region_name=region,
                        endpoint_url=self._endpoint_url,
                        config=self._config,
                    )
                )
                if self._prepare is not None:
                    self._prepare(ec2)
                known.client = _Client(ec2, stack)
            return known.client


def _own_code(error: EC2Error) -> str:
    """AWS's code as it came, for a span, where any number of codes costs nothing; what is none in form, or is not AWS's, as for the metric."""
    code = error.aws_code or ""
    is_own = isinstance(error.__cause__, ClientError) and _CODE.fullmatch(code)
    return code if is_own else counted_code(error)


async def _close_unused(client: _Client) -> None:
    if client.retired and not client.calls:
        await client.stack.aclose()


def _session() -> aioboto3.Session:
    """A session that reads the credentials of the environment, with what EC2 has and the installed SDK does not know yet."""
    session = aiobotocore.session.get_session()
    session.get_component("data_loader").search_paths.append(str(MODELS))
    return aioboto3.Session(botocore_session=session)


@functools.cache
def _known_regions() -> frozenset[str]:
    """Every region with EC2 that the installed SDK knows, of all partitions."""
    sdk = botocore.session.Session()
    return frozenset(
        region
        for partition in sdk.get_available_partitions()
        for region in sdk.get_available_regions("ec2", partition_name=partition)
    )
