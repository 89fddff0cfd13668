"""Workers folded event by event, in the store's order, without gaps."""

from collections import OrderedDict
from collections.abc import Callable
from uuid import UUID

from cml_workers.domain.fold import evolve
from cml_workers.domain.history import Recorded
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.names import worker_of
from cml_workers.eventstore.port import EventStore, StoredEvent, StoreUnavailableError
from cml_workers.eventstore.worker_streams import decode, load

REMEMBERED = 10_000
"""Folded workers kept in memory; any other is folded again from its stream when its next event comes."""

Step = tuple[Worker, Recorded, Worker]
"""The worker before an event, the event, and the worker after it."""


class Folding:
    """Remembers the workers that it has seen; of one that it has not, or whose last events it missed, it reads the stream.

    ``skips``: whether the event of this stream and revision changes nothing, as an operator decided.
    """

    def __init__(
        self,
        store: EventStore,
        *,
        skips: Callable[[str, int], bool] = lambda _stream, _revision: False,
        remembered: int = REMEMBERED,
    ) -> None:
        self._store = store
        self._skips = skips
        self._most = remembered
        self._folded: OrderedDict[UUID, Worker] = OrderedDict()

    def forget(self) -> None:
        """Begin again; what was folded may be ahead of what is saved."""
        self._folded.clear()

    def drop(self, stream: str) -> None:
        """Read the worker from its stream again."""
        self._folded.pop(worker_of(stream), None)

    async def step(self, stored: StoredEvent) -> Step | None:
        """What the event changes; None for one that has been folded before.

        Raises:
            ValueError: the stream is no worker's, or the event, or one before it, is none that this version can read.
            StreamDeletedError: events before it are gone.
            StoreUnavailableError: try again.
        """
        worker_id = worker_of(stored.stream)
        before = self._folded.pop(worker_id, None)
        if before is not None and before.revision >= stored.revision:
            self._folded[worker_id] = before
            return None
        if before is None or before.revision != stored.revision - 1:
            before = await self._before(worker_id, stored)
        recorded = decode(stored)
        after = evolve(before, recorded)
        self._remember(after)
        return before, recorded, after

    async def skip(self, stored: StoredEvent) -> bool:
        """Go on behind an event that changes nothing; False for one that was passed before. Raises as ``step`` does."""
        worker_id = worker_of(stored.stream)
        before = self._folded.pop(worker_id, None)
        if before is None or before.revision < stored.revision - 1:
            before = await self._before(worker_id, stored)
        fresh = before.revision < stored.revision
        self._remember(before._replace(revision=max(before.revision, stored.revision)))
        return fresh

    def _remember(self, worker: Worker) -> None:
        if worker.exists:  # rejected commands may name any number of workers that never were
            self._folded[worker.id] = worker
        if len(self._folded) > self._most:
            self._folded.popitem(last=False)

    async def _before(self, worker_id: UUID, stored: StoredEvent) -> Worker:
        if not stored.revision:
            return Worker(worker_id)
        before = await load(self._store, worker_id, upto=stored.revision - 1, skips=self._skips)
        if before.revision != stored.revision - 1:
            raise StoreUnavailableError(
                f"a replica lags behind: no {stored.stream}@{stored.revision - 1} yet"
            )
        return before
