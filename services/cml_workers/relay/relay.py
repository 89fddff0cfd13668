"""Publishes every event, in the order of its worker and confirmed, from a saved checkpoint: at least once.

The store is the outbox: nothing else publishes events, and nothing that appends publishes.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from cml_contracts.envelope import CLOUDEVENTS_JSON
from cml_contracts.topology import EVENTS_EXCHANGE
from cml_workers.bus.port import BusUnavailableError, Outgoing, Publish
from cml_workers.eventstore.port import CaughtUp, Checkpoint, StoredEvent
from cml_workers.eventstore.worker_streams import published
from cml_workers.foundation.tasks import ended

log = structlog.get_logger(__name__)

SAVE_EVERY = 200
"""Events between two saved checkpoints while many come: what a crash publishes again at most."""
SAVE_AFTER = 0.25
"""Seconds after which the checkpoint is saved while few come."""


class Relay:
    """Turns stored events into messages; ``save`` keeps the position that all before has been confirmed."""

    def __init__(
        self,
        *,
        publish: Publish,
        save: Callable[[str], Awaitable[None]],
        source: str,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._publish = publish
        self._save = save
        self._source = source
        self._sleep = sleep
        self._unsaved: str | None = None
        self._published = 0
        self._news = asyncio.Event()
        self._saving = asyncio.Lock()
        self._not_saved: ConnectionError | None = None

    async def handle(self, items: Sequence[StoredEvent | Checkpoint | CaughtUp]) -> None:
        """Take the next items of the store's order. Raises ConnectionError: follow again from the saved checkpoint.

        Workers do not wait for one another: of each worker, an event is published when the one before is confirmed.
        """
        if self._not_saved is not None:
            error, self._not_saved = self._not_saved, None
            raise error
        streams: dict[str, list[StoredEvent]] = {}
        for item in items:
            if isinstance(item, StoredEvent):
                streams.setdefault(item.stream, []).append(item)
        await self._publish_all(streams.values())
        positions = [item.position for item in items if not isinstance(item, CaughtUp)]
        if positions:
            self._unsaved = positions[-1]
        self._published += sum(map(len, streams.values()))
        if self._published >= SAVE_EVERY or not isinstance(items[-1], StoredEvent):
            await self.save()
        else:
            self._news.set()

    async def keep_saving(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Save what is not saved yet soon after it was published, beside what is published then. Does not end."""
        while True:
            await self._news.wait()
            await sleep(SAVE_AFTER)
            self._news.clear()
            try:
                await self.save()
            except ConnectionError as error:
                self._not_saved = error  # what was saved must be read again

    async def _publish_all(self, streams: Iterable[Sequence[StoredEvent]]) -> None:
        """Return when every one is published. Raises BusUnavailableError if that is not sure."""
        tasks = [asyncio.create_task(self._in_order(events)) for events in streams]
        try:
            if tasks:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                await ended(task)
        for task in tasks:
            if task.cancelled():  # by a library, as nobody else has it: its events are not out
                raise BusUnavailableError("publishing was cut off")
            task.result()

    async def _in_order(self, events: Sequence[StoredEvent]) -> None:
        for event in events:
            await self._until_confirmed(event_message(self._source, event))

    async def save(self) -> None:
        """Save how far we are. Raises as ``save`` does."""
        async with self._saving:
            position, published = self._unsaved, self._published
            if position is None:
                return
            await self._save(position)
            self._published -= published
            if self._unsaved == position:
                self._unsaved = None

    async def _until_confirmed(self, message: Outgoing) -> None:
        """A worker's order is kept by never going on to its next event before this one is confirmed."""
        pause = 0.1
        while True:
            try:
                await self._publish(message)
            except BusUnavailableError as error:
                log.warning(
                    "event not confirmed, trying again", event_id=message.message_id, cause=str(error)
                )
                await self._sleep(pause)
                pause = min(pause * 2, 5.0)
            else:
                return


def event_message(source: str, stored: StoredEvent) -> Outgoing:
    """A stored event as subscribers get it."""
    envelope = published(source, stored)
    return Outgoing(
        exchange=EVENTS_EXCHANGE,
        routing_key=stored.type,
        body=json.dumps(envelope.to_cloudevent(), separators=(",", ":")).encode(),
        type=stored.type,
        message_id=str(stored.event_id),
        correlation_id=envelope.correlation_id,
        content_type=CLOUDEVENTS_JSON,
        mandatory=False,
    )
