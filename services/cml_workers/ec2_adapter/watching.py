"""Watching unsettled instances: one poller for each region describes all of them at once, in rounds.

What it watches is in memory only. It is found again by the triggers and reminders of the workers.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog

from cml_contracts.instance import Ec2Instance
from cml_workers.domain.worker import Worker
from cml_workers.ec2_adapter.agenda import Agenda
from cml_workers.ec2_adapter.errors import EC2Error
from cml_workers.ec2_adapter.instances import Instances, has_moved
from cml_workers.ec2_adapter.port import MOST_DESCRIBED
from cml_workers.ec2_adapter.retry_policy import look_again_in
from cml_workers.foundation.tracing import REGION, here, span

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Watch:
    """``worker``: as it is recorded; ``known``: its instance as it was seen last; ``origin``: the span in which that was.

    ``missed``: how often in succession EC2 did not know the instance.
    """

    worker: Worker
    known: Ec2Instance
    since: float
    due: float
    origin: str | None
    missed: int = 0


class Poller:
    """Describes watched instances until nobody watches them any more, and says which have moved.

    An instance is looked at soon after it is watched, then less and less often. A round of a region takes along what is
    due a little later, so that what is watched for about as long is soon looked at together.
    """

    def __init__(
        self,
        here: Instances,
        moved: Callable[[Worker, Ec2Instance | None], None],
        *,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]],
        random: Callable[[], float],
    ) -> None:
        """``moved``: called with the worker, as it was recorded when EC2 was asked, and its instance; None: it is gone."""
        self._here = here
        self._moved = moved
        self._now = now
        self._random = random
        self._watches: dict[str, dict[UUID, Watch]] = {}
        self._rounds = Agenda(self._round, now=now, sleep=sleep, random=random)
        self._in_round: set[str] = set()

    def watch(self, worker: Worker, known: Ec2Instance) -> None:
        """Watch the worker's instance, which was seen like this."""
        region = worker.aws_region
        watches = self._watches.setdefault(region, {})
        watch = watches.get(worker.id)
        if watch is None or has_moved(known, watch.known):
            since = self._seconds
            watches[worker.id] = Watch(worker, known, since, since + look_again_in(0, self._random()), here())
        else:
            watch.worker = worker
        self._next_round(region)

    def unwatch(self, worker: Worker) -> None:
        """Watch it no longer."""
        watches = self._watches.get(worker.aws_region, {})
        watches.pop(worker.id, None)
        if not watches:
            self._watches.pop(worker.aws_region, None)
            self._rounds.done(worker.aws_region)

    def worker(self, worker_id: UUID) -> Worker | None:
        """The worker as it is recorded, if it is watched."""
        for watches in self._watches.values():
            if worker_id in watches:
                return watches[worker_id].worker
        return None

    def origin(self, worker: Worker) -> str | None:
        """The traceparent of what had its instance watched."""
        watch = self._watches.get(worker.aws_region, {}).get(worker.id)
        return watch.origin if watch else None

    def clear(self) -> None:
        """Watch nothing, as another process may act."""
        self._watches.clear()
        self._rounds.clear()

    @property
    def workers(self) -> Sequence[UUID]:
        """Those that are watched."""
        return [worker_id for watches in self._watches.values() for worker_id in watches]

    async def _round(self, region: str) -> None:
        self._in_round.add(region)
        try:
            await self._look(region)
        finally:
            self._in_round.discard(region)
        self._next_round(region)

    async def _look(self, region: str) -> None:
        now, spread = self._seconds, self._random()
        due = []
        for watch in self._watches.get(region, {}).values():
            pause = look_again_in(now - watch.since, spread)
            if watch.due <= now + pause / 2:
                watch.due = now + pause
                due.append(watch)
        for start in range(0, len(due), MOST_DESCRIBED):
            watches = due[start : start + MOST_DESCRIBED]
            try:
                with span("watch", {REGION: region}, link=watches[0].origin):
                    found = await self._here.calls.describe_many(
                        region, [each.known.instance_id for each in watches]
                    )
            except EC2Error as error:
                log.warning("instances cannot be watched now", region=region, cause=str(error))
                continue
            current = self._watches.get(region, {})
            for watch in watches:
                if current.get(watch.worker.id) is watch:
                    self._compare(watch, found.get(watch.known.instance_id))

    def _compare(self, watch: Watch, instance: Ec2Instance | None) -> None:
        if instance is not None:
            watch.missed = 0
            if has_moved(instance, watch.known):
                self._moved(watch.worker, instance)
        elif not self._here.may_be_invisible(watch.worker):
            watch.missed += 1
            if watch.missed > 1:
                self._moved(watch.worker, None)

    def _next_round(self, region: str) -> None:
        watches = self._watches.get(region)
        if watches and region not in self._in_round:
            soonest = min(watch.due for watch in watches.values())
            self._rounds.ring_in(region, max(soonest - self._seconds, 0.0))

    @property
    def _seconds(self) -> float:
        return self._now().timestamp()

    async def close(self) -> None:
        """End what is under way."""
        self._watches.clear()
        await self._rounds.close()
