"""When EC2 showed an instance just as it is recorded: of that there is no event.

In memory only, and only where the deployment takes an answer of a while ago (``CML_OBSERVATION_AGE_SECONDS``). Whoever does
not know asks EC2.
"""

from collections import OrderedDict
from datetime import datetime
from uuid import UUID

from cml_workers.domain.worker import Worker

REMEMBERED = 10_000
"""Workers of which that is known at most."""


class Sightings:
    """When each worker's instance was shown last, and at which revision of what is known of it."""

    def __init__(self) -> None:
        self._seen: OrderedDict[UUID, tuple[int, datetime]] = OrderedDict()

    def saw(self, worker: Worker, at: datetime) -> None:
        """EC2 has shown it as it is recorded."""
        self._seen[worker.id] = worker.observed_revision, at
        self._seen.move_to_end(worker.id)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def applied(self, worker: Worker) -> Worker:
        """The worker, observed when it was shown last."""
        revision, at = self._seen.get(worker.id, (None, None))
        if revision != worker.observed_revision or at is None:
            return worker
        return worker._replace(observed_at=max(at, worker.observed_at) if worker.observed_at else at)
