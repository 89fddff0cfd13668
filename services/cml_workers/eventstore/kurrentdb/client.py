"""kurrentdbclient with reads that are whole or fail, and with a connection that is kept alive."""

import contextlib
from typing import Any
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]  # it ships no types
from kurrentdbclient import AsyncKurrentDBClient, RecordedEvent
from kurrentdbclient.asyncio_client import autoreconnect, retrygrpc
from kurrentdbclient.exceptions import ProgrammingError, ServiceUnavailableError

KEEP_ALIVE = {"KeepAliveInterval": 10_000, "KeepAliveTimeout": 10_000}
"""Milliseconds after which a silent connection is probed, and given up; unless set in the address."""


class Client(AsyncKurrentDBClient):
    """The client, whose reads are whole or fail."""

    @retrygrpc
    @autoreconnect
    async def get_stream(self, stream_name: str, **how: Any) -> tuple[RecordedEvent, ...]:
        response = await self.read_stream(stream_name, **how)
        async with response:
            found = tuple([event async for event in response])
        if await response._unary_stream_call.code() is not grpc.StatusCode.OK:  # noqa: SLF001 - it shows in no other way
            raise ServiceUnavailableError(f"the connection was closed while {stream_name} was read")
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
