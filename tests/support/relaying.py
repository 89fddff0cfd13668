"""The relay with a real store; its checkpoint is a list, and the bus another one."""

import asyncio
from collections.abc import Sequence
from uuid import uuid4

from cml_contracts.events import StartRequested
from cml_workers.bus.port import Outgoing, Publish, Routed
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.anchor import Anchor
from cml_workers.eventstore.port import CaughtUp, EventStore, StoredEvent
from cml_workers.eventstore.worker_streams import append, load
from cml_workers.relay.relay import Relay
from support.buses import Outbox
from support.given import NOW, created, recorded

CREATED = created()


async def no_longer_under_way(_: Outgoing, /) -> bool:
    return False


class Service:
    """``publish``: what the relay publishes by, the outbox unless a test replaces it; ``routed``: likewise."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.outbox = Outbox()
        self.publish: Publish = self.outbox
        self.routed: Routed = no_longer_under_way
        self.saved: list[str] = []
        self.pauses: list[float] = []
        self.at = NOW
        self.relay = self.restarted()

    def restarted(self) -> Relay:
        """Another process's: what the one before had under way is lost with it."""

        async def load() -> str | None:
            return self.saved[-1] if self.saved else None

        async def save(position: str | None, _: Anchor | None) -> None:
            assert position
            self.saved.append(position)

        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)
            await asyncio.sleep(0)

        async def publish(message: Outgoing, /) -> None:
            await self.publish(message)

        async def routed(message: Outgoing, /) -> bool:
            return await self.routed(message)

        self.relay = Relay(
            store=self.store,
            waiting={},
            publish=publish,
            routed=routed,
            load=load,
            save=save,
            end=self.store.end,
            source="/test",
            now=lambda: self.at,
            sleep=sleep,
        )
        return self.relay

    async def happen(self, workers: int) -> None:
        """Each is created, and then started."""
        for _ in range(workers):
            worker = Worker(uuid4())
            await append(self.store, worker, [(CREATED, recorded(worker, CREATED, NOW, "c").metadata)])
            worker = await load(self.store, worker.id)
            start = StartRequested(operation_id="start")
            await append(self.store, worker, [(start, recorded(worker, start, NOW, "c").metadata)])

    async def stored(self) -> list[StoredEvent]:
        found = []
        async for item in self.store.follow(after=None, prefix="cml_worker-"):
            if isinstance(item, CaughtUp):
                break
            if isinstance(item, StoredEvent):
                found.append(item)
        return found

    async def catch_up(self, *, items: int | None = None) -> None:
        """Follow from the checkpoint, to the end or for so many items, until they are out."""
        seen = 0
        async for item in self.store.follow(after=await self.relay.begin(), prefix="cml_worker-"):
            await self.relay.handle([item])
            seen += 1
            if isinstance(item, CaughtUp) or seen == items:
                break
        await self.settled()

    async def settled(self, left: int = 0) -> None:
        """Wait until no more than so many events are under way."""
        async with asyncio.timeout(30):
            while self.relay.counts()["events_under_way"] > left:
                await asyncio.sleep(0)

    @property
    def published(self) -> list[str]:
        """The ids of the events that subscribers got."""
        return [message.message_id for message in self.outbox.on("cml.events")]

    @property
    def triggers(self) -> list[str]:
        """The ids of the events that were published as triggers."""
        return [message.message_id.removesuffix(".trigger") for message in self.outbox.on("cml.triggers")]


def ids(events: Sequence[StoredEvent]) -> list[str]:
    return [str(each.event_id) for each in events]
