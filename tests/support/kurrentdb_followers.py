"""Events for a store, and a follower that keeps what it gets."""

import asyncio
from collections.abc import Callable, Sequence
from uuid import uuid4

from cml_workers.eventstore.following import Following, follow_from
from cml_workers.eventstore.port import (
    CaughtUp,
    Checkpoint,
    EventStore,
    NewEvent,
    StoredEvent,
)
from support.kurrentdb_standin import KurrentDbStandIn


def events(number: int = 1) -> list[NewEvent]:
    return [NewEvent(uuid4(), "T", b"{}", b"{}") for _ in range(number)]


def stored_in(node: KurrentDbStandIn, stream: str) -> list[str]:
    return [record.event_id for record in node.log.streams.get(stream, [])]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


class Tail:
    """A follower for as long as the test lasts."""

    def __init__(self, store: EventStore, prefix: str = "", saved: str | None = None) -> None:
        self.following = Following()
        self.positions: list[str] = []
        self.places: list[tuple[str, int]] = []
        """Streams and revisions."""
        self.saved = saved
        self.task = asyncio.create_task(
            follow_from(
                store,
                self._saved,
                self._handle,
                prefix=prefix,
                following=self.following,
                backoff=lambda _: 0.01,
            )
        )

    async def _saved(self) -> str | None:
        return self.saved

    async def _handle(self, items: Sequence[StoredEvent | Checkpoint | CaughtUp]) -> None:
        for item in items:
            if isinstance(item, StoredEvent):
                self.positions.append(item.position)
                self.places.append((item.stream, item.revision))
            if not isinstance(item, CaughtUp):
                self.saved = item.position

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
