"""Workers' streams in the event store: loading an aggregate, appending its events, and keeping it at hand."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID
from weakref import WeakValueDictionary

from cml_contracts.envelope import EventEnvelope
from cml_contracts.events import WorkerEvent
from cml_workers.domain.fold import advance, evolve
from cml_workers.domain.history import (
    EventMetadata,
    Recorded,
    UnreadableEventError,
    decode_event,
    described,
)
from cml_workers.domain.ledger import Ledger
from cml_workers.domain.operations import as_sent
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.names import stream_of, worker_of
from cml_workers.eventstore.port import (
    NO_STREAM,
    EventStore,
    NewEvent,
    StoredEvent,
    StoreUnavailableError,
    StreamNotFoundError,
    traced,
)
from cml_workers.eventstore.quarantine import WORKERS, Quarantine
from cml_workers.foundation.metrics import WORKERS_LOOKED_UP
from cml_workers.foundation.tracing import as_traceparent, trace_of

UNSEEN_ATTEMPTS = 10
"""Attempts, a second apart, for which a replica of the store may lag behind what a message refers to."""
AT_HAND = 2_000
"""Workers that a process keeps in memory; any other is read from its stream again."""
MOST_IDS = 200_000
"""Ids of messages that it keeps with them, all workers together."""
MOST_UNREAD = 20
"""Events of a worker that are taken from what was published, before they are compared with the store."""
MOST_MISSED = 10
"""How often a replica of the store may lag behind what was published, before that is taken for somebody else's."""
_HITS, _MISSES = WORKERS_LOOKED_UP.labels("hit"), WORKERS_LOOKED_UP.labels("miss")


def decode(stored: StoredEvent) -> Recorded:
    """A stored event as the aggregate reads it. Raises UnknownEventError, ValidationError."""
    return Recorded(
        revision=stored.revision,
        event=decode_event(stored.type, stored.data),
        metadata=EventMetadata.model_validate_json(stored.metadata),
    )


def encode(metadata: EventMetadata) -> bytes:
    """As it is stored. The ids that KurrentDB's tools look for are there twice: earlier versions read them by our names."""
    ours = metadata.model_dump(mode="json", exclude_none=True)
    body = ours | traced(metadata.correlation_id, metadata.causation_id)
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def about_event(stored: StoredEvent) -> dict[str, object]:
    """For the log: what the event is, and what it is of, as far as that can be read."""
    ids: dict[str, object] = {"event_id": str(stored.event_id), "type": stored.type}
    with suppress(ValueError):  # another application's, or broken
        ids |= {"worker_id": str(worker_of(stored.stream)), "revision": stored.revision}
        metadata = EventMetadata.model_validate_json(stored.metadata)
        ids["command_id"] = metadata.command_id
        if traceparent := as_traceparent(metadata.traceparent):
            ids["trace_id"] = trace_of(traceparent)
    return ids


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
        causation_id=metadata.causation_id and as_sent(metadata.causation_id),
        **metadata.model_dump(include=EventEnvelope.model_fields.keys() - {"causation_id"}),
    )


async def load(
    store: EventStore,
    worker_id: UUID,
    *,
    upto: int | None = None,
    skips: Callable[[str, int], bool] = lambda _stream, _revision: False,
) -> Worker:
    """The worker of its stream, up to and including revision ``upto``; a blank one if there is none.

    ``skips``: whether the event of this stream and revision changes nothing, as an operator decided.

    Raises:
        StoreUnavailableError: try again.
        StreamDeletedError: the stream was truncated or deleted.
        UnknownEventError: a newer version of the system wrote the stream; update this one.
        ValidationError: an event is none of ours.
    """
    worker = Worker(worker_id)
    for stored in await _stored(store, worker_id, limit=None if upto is None else upto + 1):
        if skips(stored.stream, stored.revision):
            worker = worker._replace(revision=stored.revision)
        else:
            worker = evolve(worker, decode(stored))
    return worker


async def load_ledger(store: EventStore, worker_id: UUID) -> Ledger:
    """All that became of the worker's commands. Raises as ``load`` does."""
    return Ledger.of(worker_id, await _decoded(store, await _stored(store, worker_id)))


async def _stored(
    store: EventStore, worker_id: UUID, *, after: int = NO_STREAM, limit: int | None = None
) -> list[StoredEvent]:
    try:
        return await store.read(stream_of(worker_id), after=after, limit=limit)
    except StreamNotFoundError:
        return []


async def _decoded(store: EventStore, stored: Sequence[StoredEvent]) -> list[Recorded]:
    """Without those that an operator has decided to skip. Raises UnreadableEventError."""
    try:
        return [decode(each) for each in stored]
    except ValueError:
        quarantine = Quarantine(store, WORKERS)
        await quarantine.load()
    return [_readable(each) for each in stored if not quarantine.skips(each.stream, each.revision)]


def _readable(stored: StoredEvent) -> Recorded:
    try:
        return decode(stored)
    except ValueError as error:
        where = f"{stored.stream}@{stored.revision} at position {stored.position}"
        raise UnreadableEventError(f"{where} cannot be read: {described(error)}") from error


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
                metadata=encode(metadata),
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


@dataclass(eq=False, slots=True)
class _Kept:
    """A worker, and the ids that its events name: of commands, and of the messages that caused them."""

    worker: Worker
    ids: set[str] = field(default_factory=set)


class Workers:
    """The workers of their streams. Those used lately are kept, and only what is newer is read.

    What is kept may be old: others append as well. Whoever appends finds out by the expected version; whoever does not
    has to ask for the newest.
    """

    def __init__(self, store: EventStore, *, at_hand: int = AT_HAND, most_ids: int = MOST_IDS) -> None:
        self._store = store
        self._most = at_hand
        self._most_ids = most_ids
        self._ids = 0
        self._known: OrderedDict[UUID, _Kept] = OrderedDict()
        self._unread: dict[UUID, _Unread] = {}
        self._turns: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    def turn(self, worker_id: UUID) -> asyncio.Lock:
        """Held by whoever handles a message of the worker: one after another within a process, none races another."""
        return self._turns.setdefault(worker_id, asyncio.Lock())

    def at_hand(self, worker_id: UUID) -> Worker | None:
        """The worker as it was when it was used last; None if it is not kept."""
        kept = self._known.get(worker_id)
        (_HITS if kept else _MISSES).inc()
        return kept.worker if kept else None

    def is_new(self, worker: Worker, message_id: str) -> bool:
        """Whether it is certain that no event of the worker names the message; otherwise its ledger shows what became of it."""
        kept = self._known.get(worker.id)
        return worker.revision < 0 or (
            kept is not None and kept.worker is worker and message_id not in kept.ids
        )

    async def ledger(self, worker_id: UUID) -> Ledger:
        """All that became of the worker's commands, from its whole stream; its worker is the newest.

        Raises as ``newest`` does.
        """
        stored = await _stored(self._store, worker_id)
        history = await _decoded(self._store, stored)
        kept = self._known.get(worker_id)
        if kept is not None and len(stored) <= kept.worker.revision:
            raise StoreUnavailableError(f"a replica lags behind: it does not show all of {worker_id} yet")
        ledger = Ledger.of(worker_id, history)
        self._forget(worker_id)
        ledger.worker = self._keep(Worker(worker_id), history, len(stored) - 1)
        return ledger

    async def newest(self, worker_id: UUID) -> Worker:
        """The worker of its stream now; a blank one if there is none.

        Raises:
            StoreUnavailableError: try again.
            StreamDeletedError: the stream was truncated or deleted.
            UnreadableEventError: a newer version of the system wrote the stream, or somebody else; says which event it is.
        """
        kept = self._known.get(worker_id)
        worker = kept.worker if kept else Worker(worker_id)
        unread = self._unread.get(worker_id) or _Unread()
        count = len(unread.published)
        stored = await _stored(self._store, worker_id, after=worker.revision - count)
        if self._known.get(worker_id) is not kept:
            return await self.newest(worker_id)  # somebody else was quicker, or had it evicted
        if len(stored) < count and unread.missed < MOST_MISSED:
            unread.missed += 1
            raise StoreUnavailableError(f"the store does not show yet what it published of {worker_id}")
        self._unread.pop(worker_id, None)
        newer = await _decoded(self._store, stored)
        if self._known.get(worker_id) is not kept:
            return await self.newest(worker_id)
        if not unread.are(newer[:count]):
            self._forget(worker_id)  # somebody else published that
            return await self.newest(worker_id)
        last = stored[-1].revision if stored else worker.revision
        return self._keep(worker, newer[count:], last) if last > worker.revision else worker

    def advance(self, worker: Worker, published: Recorded) -> Worker | None:
        """The worker after its next event, which was not read from the store but published by it; None: read it.

        What is read next is compared with that: nothing that the store does not have is ever taken for recorded.
        """
        kept = self._known.get(worker.id)
        if kept is None or kept.worker is not worker:
            return None
        unread = self._unread.setdefault(worker.id, _Unread())
        if len(unread.published) >= MOST_UNREAD:
            return None
        unread.published.append(published)
        return self._keep(worker, [published])

    async def append(self, worker: Worker, recorded: Sequence[Recorded]) -> Worker:
        """The worker after these events are appended behind what ``worker`` has seen. Raises as ``append`` does."""
        await append(self._store, worker, [(each.event, each.metadata) for each in recorded])
        return self._keep(worker, recorded)

    def _keep(self, before: Worker, newer: Sequence[Recorded], last: int | None = None) -> Worker:
        """The worker after these; it is kept, unless not all that its events name is known.

        ``last``: the revision of its last event, which may be one that is skipped.
        """
        after = advance(before, newer)
        if last is not None and last > after.revision:
            after = after._replace(revision=last)
        kept = self._known.get(before.id)
        if before.revision < 0:
            ids = set[str]()
        elif kept is not None and kept.worker is before:
            ids = kept.ids
        else:
            return after
        self._ids -= len(kept.ids) if kept else 0
        ids |= _ids(newer)
        self._ids += len(ids)
        self._known[after.id] = _Kept(after, ids)
        self._known.move_to_end(after.id)
        while len(self._known) > 1 and (len(self._known) > self._most or self._ids > self._most_ids):
            self._forget(next(iter(self._known)))
        return after

    def _forget(self, worker_id: UUID) -> None:
        kept = self._known.pop(worker_id, None)
        if kept is not None:
            self._ids -= len(kept.ids)
        self._unread.pop(worker_id, None)


def _ids(history: Iterable[Recorded]) -> set[str]:
    """The commands and messages that these events name."""
    found: set[str | None] = set()
    for recorded in history:
        named: str | None = getattr(recorded.event, "operation_id", None)
        found |= {recorded.metadata.command_id, recorded.metadata.causation_id, named}
    return {each for each in found if each is not None}
