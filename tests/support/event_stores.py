"""Every event store that the conformance suite runs on, and events for it."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import (
    CaughtUp,
    EventStore,
    Item,
    NewEvent,
    StoredEvent,
)
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.runtime.role import background
from support.kurrentdb import may_be_had
from support.kurrentdb_standin import KurrentDbStandIn

KINDS = ["sqlite", "kurrentdb-standin", *(["kurrentdb"] if may_be_had() else [])]


OTHERS, OTHERS_EVERY = 1_000, 0.005
"""Events of others' that a stand-in has from the start, and seconds between two that come: checkpoints come before the end is reached."""


class Place:
    """Where events are kept; every ``opened`` store looks at the same ones. ``shared``: others use a stand-in, too, as any server."""

    def __init__(
        self,
        kind: str,
        folder: Path,
        resources: AsyncExitStack,
        server: str | None = None,
        *,
        shared: bool = True,
    ) -> None:
        self._shared = shared
        self._kind = kind
        self._server = server
        self._folder = folder
        self._resources = resources
        self._node: KurrentDbStandIn | None = None

    async def opened(self) -> EventStore:
        store = await self._new()
        self._resources.push_async_callback(store.close)
        return store

    async def _new(self) -> EventStore:
        match self._kind:
            case "sqlite":
                return SqliteEventStore(self._folder / "events.db")
            case "kurrentdb-standin":
                if self._node is None:
                    self._node = KurrentDbStandIn()
                    await self._node.start()
                    self._resources.push_async_callback(self._node.stop)
                    if self._shared:
                        others = partial(_others, self._node)
                        await self._resources.enter_async_context(background(others, "others"))
                return KurrentDbEventStore(self._node.uri)
            case _:
                assert self._server is not None
                return KurrentDbEventStore(self._server)


async def _others(node: KurrentDbStandIn) -> None:
    for number in itertools.count():
        node.log.append_system(f"others-{number % 7}", "Happened", b"{}")
        if number >= OTHERS:
            node.notify()
            await asyncio.sleep(OTHERS_EVERY)


def event(
    type_: str = "Happened", data: bytes = b'{"n": 1}', metadata: bytes = b'{"by": "test"}'
) -> NewEvent:
    return NewEvent(uuid4(), type_, data, metadata)


def events(count: int) -> list[NewEvent]:
    return [event() for _ in range(count)]


def ids(items: Sequence[NewEvent | StoredEvent | Item]) -> list[UUID]:
    return [item.event_id for item in items if isinstance(item, NewEvent | StoredEvent)]


async def followed(
    store: EventStore, until: Callable[[list[Item]], bool], *, prefix: str, after: str | None = None
) -> list[Item]:
    """What a follower is given, until it is enough."""
    seen: list[Item] = []
    async with asyncio.timeout(60), aclosing(store.follow(after=after, prefix=prefix)) as items:
        async for item in items:
            seen.append(item)
            if until(seen):
                break
    return seen


def count(number: int) -> Callable[[list[Item]], bool]:
    return lambda seen: len(ids(seen)) == number


def caught_up(seen: list[Item]) -> bool:
    return isinstance(seen[-1], CaughtUp)


ODD_NAMES = ["nul\0", "nul\0\0more", "%", "_", ".*", "a|b", "(", "[a]", "\\d", "^$", "é", "e\u0301", "\U0010ffff", "'", '"', " ", "\n", "x" * 500]  # fmt: skip
