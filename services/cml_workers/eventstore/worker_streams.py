"""Workers' streams in the event store: loading an aggregate, appending its events, and keeping it at hand."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID
from weakref import WeakValueDictionary

from cml_contracts.envelope import EventEnvelope
from cml_contracts.events import WorkerEvent
from cml_workers.domain.history import EventMetadata, Recorded, decode_event
from cml_workers.domain.worker import Worker, advance, evolve, fold
from cml_workers.eventstore.port import (
    EventStore,
    NewEvent,
    StoredEvent,
    StoreUnavailableError,
    StreamNotFoundError,
)

WORKER_STREAMS = "cml_worker-"
"""What the names of their streams begin with."""


def stream_of(worker_id: UUID) -> str:
    """The name of the worker's event stream."""
    return f"{WORKER_STREAMS}{worker_id}"


def worker_of(stream: str) -> UUID:
    """Whose stream it is. Raises ValueError for a stream that is no worker's."""
    if not stream.startswith(WORKER_STREAMS):
        raise ValueError(f"{stream!r} is not a worker's stream")
    return UUID(stream.removeprefix(WORKER_STREAMS))


UNSEEN_ATTEMPTS = 10
"""Attempts, a second apart, for which a replica of the store may lag behind what a message refers to."""
AT_HAND = 2_000
"""Workers that a process keeps in memory; any other is read from its stream again."""
MOST_UNREAD = 20
"""Events of a worker that are taken from what was published, before they are compared with the store."""
MOST_MISSED = 10
"""How often a replica of the store may lag behind what was published, before that is taken for somebody else's."""


def decode(stored: StoredEvent) -> Recorded:
    """A stored event as the aggregate reads it. Raises UnknownEventError, ValidationError."""
    return Recorded(
        revision=stored.revision,
        event=decode_event(stored.type, stored.data),
        metadata=EventMetadata.model_validate_json(stored.metadata),
    )


def published(source: str, stored: StoredEvent) -> EventEnvelope:
    """A stored event as others see it: all but what only lifecycle needs.

    ``source``: the deployment's, by CloudEvents. Events of newer types than this version knows are shown, too.
    """
    metadata = EventMetadata.model_validate_json(stored.metadata)
    return EventEnvelope(
        id=metadata.event_id,
        source=source,
        type=stored.type,
        worker_id=worker_of(stored.stream),
        revision=stored.revision,
        data=json.loads(stored.data),
        **metadata.model_dump(include=set(EventEnvelope.model_fields)),
    )


async def load(store: EventStore, worker_id: UUID, *, upto: int | None = None) -> Worker:
    """The worker of its stream, up to and including revision ``upto``; a blank one if there is none.

    Raises:
        StoreUnavailableError: try again.
        UnknownEventError: a newer version of the system wrote the stream; update this one.
    """
    try:
        history = await store.read(stream_of(worker_id), limit=None if upto is None else upto + 1)
    except StreamNotFoundError:
        history = []
    return fold(worker_id, map(decode, history))


async def append(
    store: EventStore, worker: Worker, events: Sequence[tuple[WorkerEvent, EventMetadata]]
) -> None:
    """Append to the worker's stream, provided that nothing was added since it was loaded.

    Raises:
        WrongExpectedVersionError: load and decide again.
        StoreUnavailableError: not known whether it was stored; load and decide again.
    """
    await store.append(
        stream_of(worker.id),
        [
            NewEvent(
                event_id=metadata.event_id,
                type=event.TYPE,
                data=event.model_dump_json(exclude_none=True).encode(),
                metadata=metadata.model_dump_json(exclude_none=True).encode(),
            )
            for event, metadata in events
        ],
        expected=worker.revision,
    )


@dataclass(eq=False, slots=True)
class _Unread:
    """The last events of a worker that were published but not read; ``missed``: how often the store did not show them."""

    published: list[Recorded] = field(default_factory=list)
    missed: int = 0

    def are(self, stored: Sequence[Recorded]) -> bool:
        """Whether these are the same, but for what is not published."""
        return len(stored) == len(self.published) and all(
            (ours.event, ours.metadata.event_id, ours.metadata.time)
            == (theirs.event, theirs.metadata.event_id, theirs.metadata.time)
            for ours, theirs in zip(stored, self.published, strict=True)
        )


class Workers:
    """The workers of their streams. Those used lately are kept, and only what is newer is read.

    What is kept may be old: others append as well. Whoever appends finds out by the expected version; whoever does not
    has to ask for the newest.
    """

    def __init__(self, store: EventStore, *, at_hand: int = AT_HAND) -> None:
        self._store = store
        self._most = at_hand
        self._known: OrderedDict[UUID, Worker] = OrderedDict()
        self._unread: dict[UUID, _Unread] = {}
        self._turns: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    def turn(self, worker_id: UUID) -> asyncio.Lock:
        """Held by whoever handles a message of the worker: one after another within a process, none races another."""
        return self._turns.setdefault(worker_id, asyncio.Lock())

    def at_hand(self, worker_id: UUID) -> Worker | None:
        """The worker as it was when it was used last; None if it is not kept."""
        return self._known.get(worker_id)

    async def newest(self, worker_id: UUID) -> Worker:
        """The worker of its stream now; a blank one if there is none.

        Raises:
            StoreUnavailableError: try again.
            UnknownEventError: a newer version of the system wrote the stream; update this one.
        """
        worker = self._known.get(worker_id) or Worker(worker_id)
        unread = self._unread.get(worker_id) or _Unread()
        count = len(unread.published)
        try:
            stored = await self._store.read(stream_of(worker_id), after=worker.revision - count)
        except StreamNotFoundError:
            stored = []
        if len(stored) < count and unread.missed < MOST_MISSED:
            unread.missed += 1
            raise StoreUnavailableError(f"the store does not show yet what it published of {worker_id}")
        self._unread.pop(worker_id, None)
        newer = [decode(each) for each in stored]
        if not unread.are(newer[:count]):
            self._known.pop(worker_id, None)  # somebody else published that
            return await self.newest(worker_id)
        return self._keep(advance(worker, newer[count:])) if newer[count:] else worker

    def advance(self, worker: Worker, published: Recorded) -> Worker | None:
        """The worker after its next event, which was not read from the store but published by it; None: read it.

        What is read next is compared with that: nothing that the store does not have is ever taken for recorded.
        """
        unread = self._unread.setdefault(worker.id, _Unread())
        if len(unread.published) >= MOST_UNREAD:
            return None
        unread.published.append(published)
        return self._keep(evolve(worker, published))

    async def append(self, worker: Worker, recorded: Sequence[Recorded]) -> Worker:
        """The worker after these events are appended behind what ``worker`` has seen. Raises as ``append`` does."""
        await append(self._store, worker, [(each.event, each.metadata) for each in recorded])
        return self._keep(advance(worker, recorded))

    def _keep(self, worker: Worker) -> Worker:
        self._known[worker.id] = worker
        self._known.move_to_end(worker.id)
        if len(self._known) > self._most:
            evicted, _ = self._known.popitem(last=False)
            self._unread.pop(evicted, None)
        return worker
