"""The event store on KurrentDB (or EventStoreDB), through kurrentdbclient and around its hazards.

The hazards, found by running kurrentdbclient 1.3.5 and by reading its source:

- The client repeats a failed append by itself. That is safe here, as events go in as a list (a generator is
  empty the second time) and an expected version is always given.
- An append that is cancelled at the wrong moment leaves its call open until the deadline, and holds up the
  closing of the channel. So it is never cancelled; its caller just stops waiting.
- When it reconnects, it closes the old channel and all calls on it, and the awaiting tasks get a
  CancelledError that nobody asked for. So every follower has a client of its own.
- It repeats an append also after its deadline, while the first one may be under way.
- A read that is under way then ends as if the stream ended there: what it returns may be only the stream's beginning.
- A subscription ends with the connection, sometimes without an error, and does not resume.
- A read or subscription without keep-alive waits without end on a connection that died silently.

And of the server, found by running EventStoreDB 23.10: a subscription from a position whose record was scavenged away leaves out
the record behind it. A read from there does not, so it comes first. An append of event ids that are being appended is held, and
answered with a time-out after two seconds or three, though the first one was committed at once; and a server that was frozen
commits what has timed out. So after a time-out the stream is read before the append counts as failed.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit

from kurrentdbclient import AsyncKurrentDBClient, RecordedEvent, StreamState
from kurrentdbclient import NewEvent as ClientEvent
from kurrentdbclient.common import AbstractAsyncCatchupSubscription
from kurrentdbclient.exceptions import (
    MaximumAppendSizeExceededError,
    NotFoundError,
    StreamIsDeletedError,
    WrongCurrentVersionError,
)

from cml_workers.eventstore.kurrentdb.client import Client, close, kept_alive
from cml_workers.eventstore.kurrentdb.errors import port_errors, timed_out
from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    Checkpoint,
    EventStore,
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

CALL_SECONDS = 10.0
"""How long the server may take for a call, unless the address sets DefaultDeadline (seconds)."""
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
        self._address = urlsplit(uri).netloc.rpartition("@")[2]
        self._uri = kept_alive(uri)
        self._client = self._new_client()
        self._seconds = float(self._client.connection_spec.options.default_deadline or CALL_SECONDS)
        self._appending: set[asyncio.Task[int]] = set()
        self._following: set[AsyncKurrentDBClient] = set()
        self._closed = False

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
        async with self._stream_errors(stream):
            found = await self._read(stream, first, limit)
        # Truncation and expiry take events from the front, and a stream that exists has at least one.
        if found[0].stream_position != first if found else first == 0:
            raise StreamDeletedError(f"{stream} was truncated; its first events are gone")
        return [_stored(event) for event in found]

    async def last(self, stream: str) -> StoredEvent:
        async with self._stream_errors(stream):
            found = await self._client.get_stream(stream, backwards=True, limit=1, timeout=self._seconds)
        if not found:
            raise StreamDeletedError(f"{stream} was truncated; its events are gone")
        return _stored(found[0])

    async def trim(self, stream: str, keep: int) -> None:
        check_trim(keep)
        async with self._stream_errors(stream):
            metadata, version = await self._client.get_stream_metadata(stream, timeout=self._seconds)
            if metadata.get("$maxCount", keep + 1) > keep:
                await self._client.set_stream_metadata(
                    stream,
                    metadata={**metadata, "$maxCount": keep},
                    current_version=version,
                    timeout=self._seconds,
                )

    async def follow(
        self, *, after: str | None, prefix: str = ""
    ) -> AsyncGenerator[StoredEvent | Checkpoint | CaughtUp, None]:
        place = None if after is None else self._place(after)
        client = self._new_client()
        self._following.add(client)
        try:
            if place is not None:
                async with self._call():
                    first = await client.first_at(place, timeout=self._seconds)
                if first is not None and first.commit_position != place:
                    if first.stream_name.startswith(prefix) and not first.is_system_event:
                        yield _stored(first)
                    place = first.commit_position
            subscription = await self._subscribe(client, place, prefix)
            async with self._explained():
                async for event in subscription:
                    if event.is_caught_up:
                        yield CaughtUp()
                    elif event.is_checkpoint or event.is_system_event:  # a tombstone is in its stream
                        yield Checkpoint(_position(event))
                    else:
                        yield _stored(event)
        except StoreUnavailableError:
            if not self._closed:
                raise
        finally:
            self._following.discard(client)
            await close(client)
        if not self._closed:
            raise StoreUnavailableError(f"KurrentDB at {self._address} ended the subscription")

    def is_after(self, position: str, other: str) -> bool:
        return self._place(position) > self._place(other)

    async def ping(self) -> None:
        # Any user may ask for a stream that is not there; reading $all takes a permission.
        with contextlib.suppress(NotFoundError):
            async with self._call():
                await self._read("cml-ping", 0, 1)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._appending:
            await asyncio.wait(self._appending, timeout=CLOSE_SECONDS)
        await asyncio.gather(*map(close, {self._client, *self._following}))

    def _appended(self, task: asyncio.Task[int]) -> None:
        self._appending.discard(task)
        if not task.cancelled():
            task.exception()  # seen, should the caller have gone

    async def _append(self, stream: str, events: Sequence[NewEvent], expected: int) -> int:
        last = expected + len(events)
        try:
            async with self._call():
                await self._client.append_to_stream(
                    stream,
                    events=[
                        ClientEvent(
                            id=event.event_id, type=event.type, data=event.data, metadata=event.metadata
                        )
                        for event in events
                    ],
                    current_version=StreamState.NO_STREAM if expected == NO_STREAM else expected,
                    timeout=self._seconds,
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

    async def _read(self, stream: str, first: int, limit: int | None) -> tuple[RecordedEvent, ...]:
        if limit is None:
            return await self._client.get_stream(stream, stream_position=first, timeout=self._seconds)
        return await self._client.get_stream(
            stream, stream_position=first, limit=limit, timeout=self._seconds
        )

    async def _read_back(self, stream: str, events: Sequence[NewEvent], expected: int) -> bool | None:
        """See ``_holds``; None also if that cannot be read now."""
        with contextlib.suppress(StoreUnavailableError, TimeoutError):
            async with asyncio.timeout(READ_BACK_SECONDS):
                return await self._holds(stream, events, expected)
        return None

    async def _holds(self, stream: str, events: Sequence[NewEvent], expected: int) -> bool | None:
        """Whether exactly these events follow revision ``expected``; None: nothing does."""
        try:
            stored = await self.read(stream, after=expected, limit=len(events))
        except (StreamNotFoundError, StreamDeletedError):
            return None
        return (
            None
            if not stored
            else [event.event_id for event in stored] == [event.event_id for event in events]
        )

    @contextlib.asynccontextmanager
    async def _stream_errors(self, stream: str) -> AsyncIterator[None]:
        """A call about a stream. Raises StreamNotFoundError, StreamDeletedError, and as ``port_errors`` does."""
        try:
            async with self._call():
                yield
        except NotFoundError:
            if await self._is_soft_deleted(stream):
                raise StreamDeletedError(f"{stream} was deleted; its events are gone") from None
            raise StreamNotFoundError(stream) from None
        except StreamIsDeletedError:
            raise StreamDeletedError(f"{stream} has a tombstone; its events are gone") from None
        except WrongCurrentVersionError as error:
            raise StoreUnavailableError(f"somebody else describes {stream}: {error}") from error

    async def _is_soft_deleted(self, stream: str) -> bool:
        async with self._call():
            metadata, _ = await self._client.get_stream_metadata(stream, timeout=self._seconds)
        return metadata.get("$tb") == SOFT_DELETED

    async def _subscribe(
        self, client: AsyncKurrentDBClient, place: int | None, prefix: str
    ) -> AbstractAsyncCatchupSubscription:
        # The server compares a prefix literally; a pattern would need escaping in the server's dialect. With
        # no prefix, the client's default pattern leaves out the system's streams ("$...").
        async with self._call():
            return await client.subscribe_to_all(
                commit_position=place,
                filter_include=[prefix] if prefix else [],
                filter_by_prefix=bool(prefix),
                filter_by_stream_name=True,
                include_checkpoints=True,
                include_caught_up=True,
            )

    def _place(self, position: str) -> int:
        if match := _POSITION.fullmatch(position):
            return int(match[1])
        raise StoreConfigurationError(
            f"position {position!r} is not one of KurrentDB: the checkpoint was saved with another event "
            "store; put that store back, or rebuild what was derived from it"
        )

    def _new_client(self) -> Client:
        try:
            return Client(self._uri)
        except (ValueError, OSError) as error:
            # The client's messages repeat the address with its password.
            reason = str(error).replace(self._uri, self._address)
            raise StoreConfigurationError(f"KurrentDB at {self._address} cannot be used: {reason}") from None

    @contextlib.asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        # Somewhat longer than the deadline the server is given, as the client may try more than once.
        async with self._explained(), asyncio.timeout(self._seconds * 1.5):
            yield

    @contextlib.asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        closed = f"the event store at {self._address} is closed"
        if self._closed:
            raise StoreUnavailableError(closed)
        try:
            async with port_errors(self._address):
                yield
        except AttributeError as error:  # a closed client has no connection any more
            if self._closed:
                raise StoreUnavailableError(closed) from error
            raise


def _position(event: RecordedEvent) -> str:
    return f"C:{event.commit_position}/P:{event.prepare_position}"


def _stored(event: RecordedEvent) -> StoredEvent:
    return StoredEvent(
        event_id=event.id,
        type=event.type,
        data=event.data,
        metadata=event.metadata,
        stream=event.stream_name,
        revision=event.stream_position,
        position=_position(event),
        recorded_at=event.recorded_at or datetime.fromtimestamp(0, UTC),
    )
