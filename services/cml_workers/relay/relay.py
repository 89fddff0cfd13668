"""Publishes every event, in the order of its worker, from a saved checkpoint: at least once.

The store is the outbox: nothing else publishes events, and nothing that appends publishes. Events that are triggers go to our
own exchange as well, where they are published until they are confirmed: neither subscribers (``subscribers.py``) nor a backlog
(``triggers.py``) can delay them.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

from cml_contracts.envelope import CLOUDEVENTS_JSON
from cml_contracts.topology import EVENTS_EXCHANGE
from cml_workers.bus.port import BusUnavailableError, Outgoing, Publish, Routed
from cml_workers.eventstore.anchor import Anchor
from cml_workers.eventstore.names import is_workers
from cml_workers.eventstore.port import CaughtUp, Checkpoint, EventStore, StoredEvent
from cml_workers.eventstore.quarantine import Waiting
from cml_workers.eventstore.worker_streams import published
from cml_workers.foundation.tasks import Tasks
from cml_workers.foundation.tracing import TRACEPARENT
from cml_workers.relay.held import Held
from cml_workers.relay.in_order import Entry
from cml_workers.relay.progress import Progress
from cml_workers.relay.subscribers import Subscribers
from cml_workers.relay.triggers import TRIGGER_TYPES, Triggers

SAVE_AFTER = 0.25
"""Seconds after which what was published is saved: what a crash publishes again at most, beside what was under way."""
LONGEST_TEXT = 255
"""Bytes of a message's properties in AMQP."""


class Relay:
    """Turns stored events into messages; ``save`` keeps the position that all before is out, and ``load`` finds it; ``end``: see ``Triggers``.

    ``waiting``: the workers of which it is not all out, as they wait in quarantine; saved and loaded with the position.
    """

    def __init__(
        self,
        *,
        store: EventStore,
        waiting: dict[str, Waiting],
        publish: Publish,
        routed: Routed,
        load: Callable[[], Awaitable[str | None]],
        save: Callable[[str | None, Anchor | None], Awaitable[None]],
        end: Callable[[], Awaitable[str | None]],
        source: str,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._publish = publish
        self._load = load
        self._save = save
        self._source = source
        self._tasks = Tasks(self._fail)
        self.subscribers = Subscribers(self._confirmed, routed, tasks=self._tasks, now=now, sleep=sleep)
        self.triggers = Triggers(
            self._confirmed,
            self._message_of,
            waits=lambda event: not is_workers(event.stream) or event.stream in waiting,
            end=end,
            failed=self._fail,
            sleep=sleep,
        )
        self._progress = Progress()
        self.held = Held(
            store,
            waiting,
            message_of=self._message_of,
            put=self._put,
            changed=self._progress.moved.set,
            tasks=self._tasks,
            sleep=sleep,
        )
        self._waiting = waiting
        self._taken = 0
        self._saved: tuple[str | None, Mapping[str, Waiting]] = None, {}
        self._saving = asyncio.Lock()
        self._not_saved: ConnectionError | None = None
        self._failure: BaseException | None = None

    async def begin(self) -> str | None:
        """Forget what is under way but for triggers; the position to follow from. Raises as ``load`` does."""
        self._not_saved = None  # what is saved is read now
        await self._end_events()
        self._progress.begin(None)  # nothing more is saved of what was under way
        position = await self._load()
        self._progress.begin(position)
        self._saved = position, dict(self._waiting)
        await self.held.begin(position)
        return position

    async def handle(self, items: Sequence[StoredEvent | Checkpoint | CaughtUp]) -> None:
        """Take the next items of the store's order; they are published in the background.

        Raises ConnectionError: follow again from where it begins.
        """
        if self._not_saved is not None:
            error, self._not_saved = self._not_saved, None
            raise error
        for item in items:
            await self._progress.room()
            await self.subscribers.room()
            match item:
                case StoredEvent():
                    await self._take(item)
                    self.held.passed(item.position)
                case Checkpoint(position):
                    self._progress.add(position, None, 0)
                    self.held.passed(position)
                case CaughtUp():
                    pass

    async def keep_saving(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Save what is not saved yet soon after it was published. Does not end; raises what publishing raised, but for outages."""
        while True:
            await self._progress.moved.wait()
            await sleep(SAVE_AFTER)
            self._progress.moved.clear()
            if self._failure is not None:
                raise self._failure
            try:
                await self.save()
            except ConnectionError as error:
                self._not_saved = error  # what was saved must be read again

    async def save(self) -> None:
        """Save how far we are. Raises as ``save`` does."""
        async with self._saving:
            reached = self._progress.passed or self._saved[0], dict(self._waiting)
            if reached != self._saved:
                await self._save(reached[0], self._progress.anchor)
                self._saved = reached

    async def end(self) -> None:
        """End what is under way: it is published again."""
        await self.triggers.stop()
        await self._end_events()

    async def _end_events(self) -> None:
        await self._tasks.end()
        await self.subscribers.end()

    def problem(self) -> str | None:
        """What is wrong: why events or triggers are not confirmed, by no subscriber's fault."""
        failing = self.triggers.failing or self.subscribers.failing
        return failing and f"events are not published: {failing}"

    def counts(self) -> Mapping[str, int]:
        """Events: those that are neither confirmed nor given up, and those given up since the start."""
        return {"events_under_way": len(self._progress), "events_given_up": self.subscribers.given_up}

    async def _take(self, event: StoredEvent) -> None:
        if not self.held.passes(event):
            try:
                message = self._message_of(event)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this event's
                await self.held.hold(event, error)
            else:
                self._put(event, message, self._progress)
                return
        self._progress.add(event.position, Anchor.of(event), 0)

    def _message_of(self, event: StoredEvent) -> Outgoing:
        return event_message(self._source, event)

    def _put(self, event: StoredEvent, message: Outgoing, progress: Progress) -> None:
        is_trigger = event.type in TRIGGER_TYPES
        self._taken += 1
        done = progress.add(event.position, Anchor.of(event), 2 if is_trigger else 1)
        self.subscribers.put(Entry(self._taken, event, message, done))
        if is_trigger:
            self.triggers.take(event, message, done)

    async def _confirmed(self, message: Outgoing, /) -> None:
        """See ``Publish``; where a library cancels us though nobody asked, the message is not confirmed."""
        try:
            await self._publish(message)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise BusUnavailableError("publishing was cut off") from None

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._progress.moved.set()


def event_message(source: str, stored: StoredEvent) -> Outgoing:
    """A stored event as subscribers get it. Raises ValueError, or what a library raises, for one that cannot be published."""
    envelope = published(source, stored)
    for name, text in (("type", stored.type), ("correlation id", envelope.correlation_id or "")):
        if len(text.encode()) > LONGEST_TEXT:
            raise ValueError(f"its {name} has {len(text.encode())} bytes; AMQP allows {LONGEST_TEXT}")
    return Outgoing(
        exchange=EVENTS_EXCHANGE,
        routing_key=stored.type,
        body=json.dumps(envelope.to_cloudevent(), separators=(",", ":"), allow_nan=False).encode(),
        type=stored.type,
        message_id=str(stored.event_id),
        correlation_id=envelope.correlation_id,
        content_type=CLOUDEVENTS_JSON,
        headers={TRACEPARENT: envelope.traceparent} if envelope.traceparent else {},
        mandatory=False,
    )
