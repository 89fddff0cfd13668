"""One subscription: it misses nothing where it resumes, and ends soon after the server has gone silent."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from kurrentdbclient.common import AbstractAsyncCatchupSubscription
from kurrentdbclient.exceptions import NotFoundError

from cml_workers.eventstore.kurrentdb.calls import Calls
from cml_workers.eventstore.kurrentdb.client import Client
from cml_workers.eventstore.kurrentdb.events import position, stored
from cml_workers.eventstore.port import (
    CaughtUp,
    Checkpoint,
    Item,
    StoreConfigurationError,
    StoreUnavailableError,
)
from cml_workers.foundation.tasks import ended

QUIET_SECONDS = 2.0
"""Without an item, after which the server is asked for something on the same connection: gRPC's own probes take 40 seconds."""
PING_STREAM = "cml-ping"
"""A stream that is not there: any user may ask for it, while reading $all takes a permission."""


class Subscription:
    """All events of the streams whose name begins with ``prefix``, on a client that is its own."""

    def __init__(self, calls: Calls, client: Client, prefix: str) -> None:
        self._calls = calls
        self._client = client
        self._prefix = prefix
        self._heard = 0.0
        """When the last item came, by the loop's clock."""
        self._silent: StoreUnavailableError | StoreConfigurationError | None = None

    async def items(self, place: int | None) -> AsyncGenerator[Item, None]:
        """What lies behind a commit position. Raises StoreUnavailableError, StoreConfigurationError."""
        if place is not None:
            async with self._calls.on(self._client) as call:
                first = await self._client.first_at(place, timeout=call.seconds)
            if first is not None and first.commit_position != place:
                if first.stream_name.startswith(self._prefix) and not first.is_system_event:
                    yield stored(first)
                place = first.commit_position
        subscription = await self._subscribed(place)
        self._heard = _now()
        watching = asyncio.create_task(self._watch(subscription), name=f"watches {self._prefix}")
        try:
            async with self._calls.explained():
                async for event in subscription:
                    self._heard = _now()
                    if event.is_caught_up:
                        yield CaughtUp()
                    elif event.is_checkpoint or event.is_system_event:  # a tombstone is in its stream
                        yield Checkpoint(position(event))
                    else:
                        yield stored(event)
        finally:
            await ended(watching)
        if self._silent is not None:
            raise self._silent

    async def _subscribed(self, place: int | None) -> AbstractAsyncCatchupSubscription:
        # The server compares a prefix literally; a pattern would need escaping in the server's dialect. With
        # no prefix, the client's default pattern leaves out the system's streams ("$...").
        async with self._calls.on(self._client):
            return await self._client.subscribe_to_all(
                commit_position=place,
                filter_include=[self._prefix] if self._prefix else [],
                filter_by_prefix=bool(self._prefix),
                filter_by_stream_name=True,
                include_checkpoints=True,
                include_caught_up=True,
            )

    async def _watch(self, subscription: AbstractAsyncCatchupSubscription) -> None:
        """End the subscription when the server does not answer any more on its connection."""
        while True:
            quiet = _now() - self._heard
            if quiet < QUIET_SECONDS:
                await asyncio.sleep(QUIET_SECONDS - quiet)
                continue
            try:
                with contextlib.suppress(NotFoundError):
                    async with self._calls.on(self._client) as call:
                        await self._client.get_stream(PING_STREAM, limit=1, timeout=call.seconds)
            except (StoreUnavailableError, StoreConfigurationError) as error:
                self._silent = error
                await subscription.stop()
                return
            self._heard = _now()


def _now() -> float:
    return asyncio.get_running_loop().time()
