"""kurrentdbclient with reads that are whole or fail, and which never waits twice for who has not answered."""

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import grpc  # type: ignore[import-untyped]  # it ships no types
from kurrentdbclient import AsyncKurrentDBClient, RecordedEvent
from kurrentdbclient.asyncio_client import autoreconnect
from kurrentdbclient.exceptions import (
    DeadlineExceededError,
    GrpcError,
    ProgrammingError,
    ServiceUnavailableError,
)
from kurrentdbclient.streams import AsyncReadResponse

from cml_workers.eventstore.kurrentdb.discovery import DiscoveringClient

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
"""Otherwise gRPC gives a new client for the same address the connection of the one before, dead as it may be."""
AGAIN_AFTER = 0.5
"""Seconds before a call that failed is made once more."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _again(call: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Once more after an error, as the library does, but not after a deadline."""

    @wraps(call)
    async def twice(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await call(*args, **kwargs)
        except GrpcError as error:
            if isinstance(error, DeadlineExceededError):
                raise
        await asyncio.sleep(AGAIN_AFTER)
        return await call(*args, **kwargs)

    return twice


class Client(DiscoveringClient):
    """The client. ``heard``, of its reads: call it with each event that has come."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.grpc_options += OWN_CONNECTION

    append_to_stream = _again(autoreconnect(inspect.unwrap(AsyncKurrentDBClient.append_to_stream)))

    @_again
    @autoreconnect
    async def get_stream(
        self, stream_name: str, *, heard: Callable[[], None] = lambda: None, **how: Any
    ) -> tuple[RecordedEvent, ...]:
        return await _whole(await self.read_stream(stream_name, **how), stream_name, heard)

    @_again
    @autoreconnect
    async def first_at(self, position: int, *, timeout: float) -> RecordedEvent | None:  # noqa: ASYNC109 - the client's own
        """The first record, whatever it is, at this position or behind it; None if there is none."""
        response = await self.read_all(commit_position=position, limit=1, filter_exclude=(), timeout=timeout)
        return next(iter(await _whole(response, "$all")), None)

    @_again
    @autoreconnect
    async def last(self, *, timeout: float) -> RecordedEvent | None:  # noqa: ASYNC109 - as above
        """The last record, whatever it is; None if there is none."""
        response = await self.read_all(backwards=True, limit=1, filter_exclude=(), timeout=timeout)
        return next(iter(await _whole(response, "$all")), None)


async def _whole(
    response: AsyncReadResponse, what: str, heard: Callable[[], None] = lambda: None
) -> tuple[RecordedEvent, ...]:
    found = []
    async with response:
        async for event in response:
            found.append(event)
            heard()
    if await response._unary_stream_call.code() is not grpc.StatusCode.OK:  # noqa: SLF001 - it shows in no other way
        raise ServiceUnavailableError(f"the connection was closed while {what} was read")
    return tuple(found)


async def close(client: AsyncKurrentDBClient) -> None:
    """Close it, if it was ever connected."""
    with contextlib.suppress(ProgrammingError):
        await client.close()
