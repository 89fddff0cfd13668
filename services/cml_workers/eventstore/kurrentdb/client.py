"""kurrentdbclient with reads that are whole or fail, and with a connection that is kept alive."""

import contextlib
from typing import Any
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]  # it ships no types
from kurrentdbclient import AsyncKurrentDBClient, RecordedEvent
from kurrentdbclient.asyncio_client import autoreconnect, retrygrpc
from kurrentdbclient.exceptions import ProgrammingError, ServiceUnavailableError
from kurrentdbclient.streams import AsyncReadResponse

KEEP_ALIVE = {"KeepAliveInterval": 10_000, "KeepAliveTimeout": 10_000}
"""Milliseconds after which a silent connection is probed, and given up; unless set in the address."""


OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
"""Otherwise gRPC gives a new client for the same address the connection of the one before, which waits longer from try to try."""


class Client(AsyncKurrentDBClient):
    """The client, whose reads are whole or fail."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.grpc_options += OWN_CONNECTION

    @retrygrpc
    @autoreconnect
    async def get_stream(self, stream_name: str, **how: Any) -> tuple[RecordedEvent, ...]:
        return await _whole(await self.read_stream(stream_name, **how), stream_name)

    @retrygrpc
    @autoreconnect
    async def first_at(self, position: int, *, timeout: float) -> RecordedEvent | None:  # noqa: ASYNC109 - the client's own
        """The first record, whatever it is, at this position or behind it; None if there is none."""
        response = await self.read_all(commit_position=position, limit=1, filter_exclude=(), timeout=timeout)
        return next(iter(await _whole(response, "$all")), None)


async def _whole(response: AsyncReadResponse, what: str) -> tuple[RecordedEvent, ...]:
    async with response:
        found = tuple([event async for event in response])
    if await response._unary_stream_call.code() is not grpc.StatusCode.OK:  # noqa: SLF001 - it shows in no other way
        raise ServiceUnavailableError(f"the connection was closed while {what} was read")
    return found


def kept_alive(uri: str) -> str:
    """The address with the options of ``KEEP_ALIVE``, unless it has them."""
    query = urlsplit(uri).query
    missing = [f"{name}={value}" for name, value in KEEP_ALIVE.items() if name.lower() not in query.lower()]
    return f"{uri}{'&' if query else '?'}{'&'.join(missing)}" if missing else uri


async def close(client: AsyncKurrentDBClient) -> None:
    """Close it, if it was ever connected."""
    with contextlib.suppress(ProgrammingError):
        await client.close()
