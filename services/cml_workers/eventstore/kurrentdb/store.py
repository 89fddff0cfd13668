"""The event store on KurrentDB (or EventStoreDB), through kurrentdbclient and around its hazards.

The hazards, found by running kurrentdbclient 1.3.5 and by reading its source:

- The client repeats a failed append by itself. That is safe here, as events go in as a list (a generator is
  empty the second time) and an expected version is always given.
- An append that is cancelled at the wrong moment leaves its call open until the deadline, and holds up the
  closing of the channel. So it is never cancelled; its caller just stops waiting.
- When it reconnects, it closes the old channel and all calls on it, and the awaiting tasks get a
  CancelledError that nobody asked for. So every follower has a client of its own.
- A read that is under way then ends as if the stream ended there: what it returns may be only the stream's beginning.
- A subscription ends with the connection, sometimes without an error, and does not resume.
- A read or subscription without keep-alive waits without end on a connection that died silently; with it, one that is idle waits
  for 40 seconds, as gRPC sends few pings without data. So who hears nothing asks for something, on the same connection.
- It waits a second time for who has not answered, and goes on using that connection; and gRPC shares it with any new client for
  the same address. So a call is made once until its deadline, and the next one by another client, on a connection of its own.
- Of the seeds of a cluster it asks one after another, and takes a dead leader for a leader (``discovery.py``).

And of the server, found by running EventStoreDB 23.10: a subscription from a position whose record was scavenged away leaves out
the record behind it. A read from there does not, so it comes first. An append of event ids that are being appended is held, and
answered with a time-out after two seconds or three, though the first one was committed at once; and a server that was frozen
commits what has timed out. So after a time-out the stream is read before the append counts as failed.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from kurrentdbclient import NewEvent as ClientEvent
from kurrentdbclient import StreamState
from kurrentdbclient.exceptions import (
    MaximumAppendSizeExceededError,
    NotFoundError,
    StreamIsDeletedError,
    WrongCurrentVersionError,
)

from cml_workers.eventstore.kurrentdb.calls import LONGEST_READ, Call, Calls
from cml_workers.eventstore.kurrentdb.client import Client, close
from cml_workers.eventstore.kurrentdb.errors import timed_out
from cml_workers.eventstore.kurrentdb.events import position, stored
from cml_workers.eventstore.kurrentdb.subscription import PING_STREAM, Subscription
from cml_workers.eventstore.port import (
    NO_STREAM,
    EventStore,
    Item,
    NewEvent,
    StoreConfigurationError,
    StoredEvent,
    StoreUnavailableError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
    check_append,
    check_trim,
)

READ_BACK_SECONDS = 2.0
"""How long it may take to find out whether an append that timed out was committed."""
CLOSE_SECONDS = 5.0
"""How long closing waits for appends under way."""
SOFT_DELETED = 2**63 - 1
"""The ``$tb`` (truncate before) of a stream that was deleted without a tombstone."""

_POSITION = re.compile(r"C:(\d+)/P:\d+", re.ASCII)


class KurrentDbEventStore(EventStore):
    """An event store on the server or cluster at ``uri``; connects at the first use.

    ``uri``: ``esdb://user:password@host:2113?TlsCaFile=ca.pem``, ``...+discover://`` for a cluster,
    ``?tls=false`` for an insecure server.

    Raises:
        StoreConfigurationError: ``uri`` has an unknown option, no user and password, or a missing file.
    """

    def __init__(self, uri: str) -> None:
        self._calls = Calls(uri)
        self._appending: set[asyncio.Task[int]] = set()
        self._following: set[Client] = set()

    async def append(self, stream: str, events: Sequence[NewEvent], *, expected: int) -> int:
        check_append(stream, events, expected)
        task = asyncio.create_task(self._append(stream, events, expected))
        self._appending.add(task)
        task.add_done_callback(self._appended)
        return await asyncio.shield(task)

    async def read(
        self, stream: str, *, after: int = NO_STREAM, limit: int | None = None
    ) -> list[StoredEvent]:
        if limit is not None and limit < 1:
            raise ValueError(f"limit {limit} is below 1")
        first = max(after, NO_STREAM) + 1
        how = {} if limit is None else {"limit": limit}
        async with self._stream_errors(stream) as call:
            found = await call.client.get_stream(
                stream, stream_position=first, heard=call.heard, timeout=LONGEST_READ, **how
            )
        # Truncation and expiry take events from the front, and a stream that exists has at least one.
        if found[0].stream_position != first if found else first == 0:
            raise StreamDeletedError(f"{stream} was truncated; its first events are gone")
        return [stored(event) for event in found]

    async def last(self, stream: str) -> StoredEvent:
        async with self._stream_errors(stream) as call:
            found = await call.client.get_stream(stream, backwards=True, limit=1, timeout=call.seconds)
        if not found:
            raise StreamDeletedError(f"{stream} was truncated; its events are gone")
        return stored(found[0])

    async def trim(self, stream: str, keep: int) -> None:
        check_trim(keep)
        async with self._stream_errors(stream) as call:
            metadata, version = await call.client.get_stream_metadata(stream, timeout=call.seconds)
            if metadata.get("$maxCount", keep + 1) > keep:
                await call.client.set_stream_metadata(
                    stream,
                    metadata={**metadata, "$maxCount": keep},
                    current_version=version,
                    timeout=call.seconds,
                )

    async def follow(self, *, after: str | None, prefix: str = "") -> AsyncGenerator[Item, None]:
        place = None if after is None else self._place(after)
        client = self._calls.new_client()
        self._following.add(client)
        try:
            async with contextlib.aclosing(Subscription(self._calls, client, prefix).items(place)) as items:
                async for item in items:
                    yield item
        except StoreUnavailableError:
            if not self._calls.closed:
                raise
        finally:
            self._following.discard(client)
            await close(client)
        if not self._calls.closed:
            raise StoreUnavailableError(f"KurrentDB at {self._calls.address} ended the subscription")

    async def end(self) -> str | None:
        async with self._calls.call() as call:
            last = await call.client.last(timeout=call.seconds)
        return None if last is None else position(last)

    def is_after(self, position: str, other: str) -> bool:
        return self._place(position) > self._place(other)

    async def ping(self) -> None:
        with contextlib.suppress(NotFoundError):
            async with self._calls.call() as call:
                await call.client.get_stream(PING_STREAM, limit=1, timeout=call.seconds)

    async def close(self) -> None:
        if self._calls.closed:
            return
        self._calls.closed = True
        if self._appending:
            await asyncio.wait(self._appending, timeout=CLOSE_SECONDS)
        await asyncio.gather(self._calls.close(), *map(close, self._following))

    def _appended(self, task: asyncio.Task[int]) -> None:
        self._appending.discard(task)
        if not task.cancelled():
            task.exception()  # seen, should the caller have gone

    async def _append(self, stream: str, events: Sequence[NewEvent], expected: int) -> int:
        last = expected + len(events)
        try:
            async with self._calls.call() as call:
                await call.client.append_to_stream(
                    stream,
                    events=[
                        ClientEvent(
                            id=event.event_id, type=event.type, data=event.data, metadata=event.metadata
                        )
                        for event in events
                    ],
                    current_version=StreamState.NO_STREAM if expected == NO_STREAM else expected,
                    timeout=call.seconds,
                )
        except WrongCurrentVersionError as conflict:
            # It may be our own success: the server knows a repetition, but its memory of ids is best effort.
            there = conflict.actual_version
            if isinstance(there, int) and there >= last and await self._holds(stream, events, expected):
                return last
            raise WrongExpectedVersionError(
                f"{stream} is at revision {NO_STREAM if there is StreamState.NO_STREAM else there},"
                f" expected was {expected}"
            ) from None
        except StoreUnavailableError as error:
            holds = await self._read_back(stream, events, expected) if timed_out(error) else None
            if holds is None:
                raise
            if not holds:
                raise WrongExpectedVersionError(
                    f"{stream} has others' events behind revision {expected}"
                ) from error
        except StreamIsDeletedError:
            raise StreamDeletedError(f"{stream} has a tombstone and takes no more events") from None
        except MaximumAppendSizeExceededError as error:
            raise ValueError(f"the events for {stream} are larger than KurrentDB takes: {error}") from error
        return last

    async def _read_back(self, stream: str, events: Sequence[NewEvent], expected: int) -> bool | None:
        """See ``_holds``; None also if that cannot be read now."""
        client = self._calls.client
        try:
            async with asyncio.timeout(READ_BACK_SECONDS):
                return await self._holds(stream, events, expected)
        except StoreUnavailableError:
            return None
        except TimeoutError:
            self._calls.replace(client)
            return None

    async def _holds(self, stream: str, events: Sequence[NewEvent], expected: int) -> bool | None:
        """Whether exactly these events follow revision ``expected``; None: nothing does."""
        try:
            there = await self.read(stream, after=expected, limit=len(events))
        except (StreamNotFoundError, StreamDeletedError):
            return None
        if not there:
            return None
        return [event.event_id for event in there] == [event.event_id for event in events]

    @contextlib.asynccontextmanager
    async def _stream_errors(self, stream: str) -> AsyncIterator[Call]:
        """A call about a stream. Raises StreamNotFoundError, StreamDeletedError, and as ``port_errors`` does."""
        try:
            async with self._calls.call() as call:
                yield call
        except NotFoundError:
            if await self._is_soft_deleted(stream):
                raise StreamDeletedError(f"{stream} was deleted; its events are gone") from None
            raise StreamNotFoundError(stream) from None
        except StreamIsDeletedError:
            raise StreamDeletedError(f"{stream} has a tombstone; its events are gone") from None
        except WrongCurrentVersionError as error:
            raise StoreUnavailableError(f"somebody else describes {stream}: {error}") from error

    async def _is_soft_deleted(self, stream: str) -> bool:
        async with self._calls.call() as call:
            metadata, _ = await call.client.get_stream_metadata(stream, timeout=call.seconds)
        return metadata.get("$tb") == SOFT_DELETED

    def _place(self, position: str) -> int:
        if match := _POSITION.fullmatch(position):
            return int(match[1])
        raise StoreConfigurationError(
            f"position {position!r} is not one of KurrentDB: the checkpoint was saved with another event "
            "store; put that store back, or rebuild what was derived from it"
        )
