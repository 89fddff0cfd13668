"""Events that nobody can handle, as another application, a later version or an accident has appended them; and processes that die."""

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from cml_contracts.events import StartRequested, WorkerCreated
from cml_workers.eventstore.port import (
    NO_STREAM,
    EventStore,
    Item,
    NewEvent,
    StoredEvent,
    StreamNotFoundError,
)
from support.given import NOW

NEWER = "cml.worker.teleported.v9"
"""A type that no version knows yet."""

NAMES_OF_OTHERS = (
    "pool",
    "",
    "A5B0C3D1-0000-4000-8000-000000000001",
    "{a5b0c3d1-0000-4000-8000-000000000001}",
    "a5b0c3d1000040008000000000000001",
    "urn:uuid:a5b0c3d1-0000-4000-8000-000000000001",
    "a5b0c3d1-0000-4000-8000-000000000001-backup",
    "\u00e9",
)
"""What follows our prefix in the names of streams that are not ours, though some of it is a UUID."""


def raw(type_: str, data: bytes = b"{}", metadata: bytes | None = None, **fields: Any) -> NewEvent:
    """An event as its bytes; its metadata are as ours unless others are given."""
    event_id = uuid4()
    ours = {"event_id": str(event_id), "time": NOW.isoformat(), **fields}
    return NewEvent(event_id, type_, data, json.dumps(ours).encode() if metadata is None else metadata)


def binary() -> NewEvent:
    return raw("pool-settings", b"\x80\x81\xfe", b"\x00")


def without_metadata() -> NewEvent:
    return raw(StartRequested.TYPE, json.dumps({"operation_id": "x"}).encode(), b"")


def newer_type() -> NewEvent:
    return raw(NEWER, b'{"to": "mars"}')


def newer_version() -> NewEvent:
    """Of a type that is known, with other fields."""
    return raw(WorkerCreated.TYPE, b'{"title": "lab"}')


def no_number() -> NewEvent:
    return raw(NEWER, b'{"cost": NaN}')


def too_deep() -> NewEvent:
    return raw(NEWER, b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


def no_object() -> NewEvent:
    return raw(NEWER, b'["a list"]')


def long_type() -> NewEvent:
    return raw("cml." + "x" * 300)


def long_correlation_id() -> NewEvent:
    return raw(NEWER, correlation_id="c" * 300)


NOT_PUBLISHED: Mapping[str, Callable[[], NewEvent]] = {
    each.__name__: each
    for each in (
        binary,
        without_metadata,
        no_number,
        too_deep,
        no_object,
        long_type,
        long_correlation_id,
    )
}
"""What the relay cannot handle."""
NOT_FOLDED: Mapping[str, Callable[[], NewEvent]] = {
    each.__name__: each
    for each in (binary, without_metadata, newer_type, newer_version, no_number, too_deep, no_object)
}
"""What a read model cannot."""


async def append_raw(store: EventStore, stream: str, *events: NewEvent) -> list[StoredEvent]:
    """Append behind what is there; what was appended."""
    try:
        last = (await store.last(stream)).revision
    except StreamNotFoundError:
        last = NO_STREAM
    await store.append(stream, events, expected=last)
    return await store.read(stream, after=last)


class ProcessDiedError(BaseException):
    """No error that anybody handles."""


class Mortal(EventStore):
    """The store as a process sees it that dies after so many calls, before or after what the last one does."""

    def __init__(self, store: EventStore, calls: int, *, late: bool) -> None:
        self._store = store
        self._left = calls
        self._late = late
        self.died = False

    async def _call(self, call: Any) -> Any:
        self._left -= 1
        if self._left < 0 or (self._left == 0 and not self._late):
            self.died = True
            call.close()
            raise ProcessDiedError
        result = await call
        if self._left == 0:
            self.died = True
            raise ProcessDiedError
        return result

    async def end(self) -> str | None:
        result: str | None = await self._call(self._store.end())
        return result

    async def append(self, stream: str, events: Sequence[NewEvent], *, expected: int) -> int:
        result: int = await self._call(self._store.append(stream, events, expected=expected))
        return result

    async def read(
        self, stream: str, *, after: int = NO_STREAM, limit: int | None = None
    ) -> list[StoredEvent]:
        result: list[StoredEvent] = await self._call(self._store.read(stream, after=after, limit=limit))
        return result

    async def last(self, stream: str) -> StoredEvent:
        result: StoredEvent = await self._call(self._store.last(stream))
        return result

    async def trim(self, stream: str, keep: int) -> None:
        await self._store.trim(stream, keep)

    async def follow(self, *, after: str | None, prefix: str = "") -> AsyncGenerator[Item, None]:
        async for item in self._store.follow(after=after, prefix=prefix):
            yield item

    def is_after(self, position: str, other: str) -> bool:
        return self._store.is_after(position, other)

    async def ping(self) -> None:
        await self._store.ping()

    async def close(self) -> None:
        """It is others' as well."""
