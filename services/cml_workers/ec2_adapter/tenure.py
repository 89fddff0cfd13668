"""Since when this process is the leader, and for how long what it has read may be acted on.

RabbitMQ does not say who the active consumer is: the first trigger since the connection was made shows it. Whoever is not the
leader any more does not always know: what was read from the store may be acted on for a while only.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cml_contracts.results import Problem
from cml_workers.domain.worker import Worker

FRESH = timedelta(seconds=20)
"""How long what was read from the stream may be acted on, at most. It must be shorter than the broker takes to give up
a paused process (two heartbeats or more; one is 10 seconds, and where it is shorter than this it counts), after which another one acts."""
TAKEOVER = timedelta(seconds=2)
"""How long a new leader leaves older operations alone: what the leader before it reported last must be seen, also where
a store that changes its own leader shows an old state for a moment."""

_NEVER = datetime.max.replace(tzinfo=UTC)


class NotYet(Exception):  # noqa: N818 - a state of affairs, not an error
    """The operation cannot go on now; look again later. ``problem``: EC2's answer, if it is due to that."""

    def __init__(self, problem: Problem | None = None) -> None:
        super().__init__(problem and problem.detail)
        self.problem = problem


class NotFreshError(NotYet):
    """The stream has to be read again before anything is changed."""


class Tenure:
    """The time as leader: from the first trigger after the connection was made until it is lost."""

    def __init__(
        self, now: Callable[[], datetime], *, fresh: timedelta = FRESH, takeover: timedelta = TAKEOVER
    ) -> None:
        self._now = now
        self._fresh = fresh
        self._takeover = takeover
        self._since: datetime | None = None
        """None: until the next trigger, another process may be the leader."""

    @property
    def held(self) -> bool:
        """Whether this process is the leader, as far as it knows."""
        return self._since is not None and self._since is not _NEVER

    def begin(self) -> None:
        """A trigger arrived: the broker takes this process for the leader."""
        if self._since is None:
            self._since = self._now()

    def lose(self) -> None:
        """The connection is lost, and another process may act."""
        self._since = _NEVER

    def regain(self) -> None:
        """The connection is there again; who the leader is shows the next trigger."""
        self._since = None

    def is_before(self, requested_at: datetime) -> bool:
        """Whether the request is older than this tenure: then another leader may have attempted it."""
        return self._since is None or requested_at < self._since

    @property
    def is_young(self) -> bool:
        """Whether it is too early to act on requests from before it."""
        return self.young_for > 0

    @property
    def young_for(self) -> float:
        """Seconds until it is not too early any more; infinite for who is not the leader."""
        if self._since is None or self._since is _NEVER:
            return math.inf
        return (self._since + self._takeover - self._now()).total_seconds()

    def lease(self, newest: "Newest | None" = None) -> "Lease":
        """For what is read from the stream from now on; ``newest`` reads it, and again when that is too old."""
        return Lease(self._now(), self, newest)

    def now(self) -> datetime:
        """The time by which it is reckoned."""
        return self._now()

    def fresh_for(self, read_at: datetime) -> timedelta:
        """How much longer what was read then may be acted on."""
        return self._fresh - (self._now() - read_at)

    def held_at(self, moment: datetime) -> bool:
        """Whether this process was the leader then and has been ever since."""
        return self._since is not None and self._since <= moment


Newest = Callable[[], Awaitable[Worker]]
"""Reads a worker's stream."""


@dataclass(eq=False, slots=True)
class Lease:
    """The right to act on what was read from the stream at ``read_at``. It ends by itself, and can be renewed.

    It is for *sending* a call. What EC2 answers is used, however long that took.
    """

    read_at: datetime
    _tenure: Tenure
    _newest: Newest | None = None
    _revision: int | None = None

    async def newest(self) -> Worker:
        """The worker of its stream now. Raises as ``Workers.newest`` does."""
        assert self._newest is not None  # noqa: S101 - who asks has said how to read it
        return await self._newest()

    async def read(self) -> Worker:
        """The worker that is to be acted on from now on."""
        self.read_at = self._tenure.now()
        worker = await self.newest()
        self._revision = worker.revision
        return worker

    @property
    def is_valid(self) -> bool:
        return self._tenure.fresh_for(self.read_at) > timedelta()

    @property
    def is_held(self) -> bool:
        """Whether this process has been the leader since the stream was read, as far as it knows."""
        return self._tenure.held_at(self.read_at)

    @property
    def is_certain(self) -> bool:
        """Whether no other leader can have acted since the stream was read."""
        return self.is_valid and self.is_held

    async def renew(self) -> None:
        """Before every effect: where what was read is too old by now, read it again.

        EC2 may have taken long to answer, or the process was paused.

        Raises NotFreshError if something has happened since, or another process may have been the leader; look at the worker again.
        """
        if self.is_valid:
            return
        if self._newest is None or not self.is_held:
            raise NotFreshError
        revision = self._revision
        worker = await self.read()
        if worker.revision != revision or not self.is_certain:
            raise NotFreshError
