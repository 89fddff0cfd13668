"""How many commands are taken of one user, and for one worker: nobody keeps others waiting.

Each process counts what it handles itself; a command that was accepted is none too many, however often it comes.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID

from cml_workers.domain.policy import Limit

WINDOW = timedelta(minutes=1)


class Limits:
    """What is under way, and what came within the minute."""

    def __init__(self, *, worker: Limit, user: Limit, now: Callable[[], datetime]) -> None:
        self._of_worker = _Counts(worker, "for this worker", now)
        self._of_user = _Counts(user, "of this user", now)

    @contextmanager
    def counted(self, worker_id: UUID, user: str | None) -> Iterator[str | None]:
        """While a command is handled. Why it is one too many; None if it is not."""
        with self._of_user.counted(user) as of_user, self._of_worker.counted(worker_id) as of_worker:
            yield of_user or of_worker


class _Counts:
    def __init__(self, limit: Limit, whose: str, now: Callable[[], datetime]) -> None:
        self._limit = limit
        self._whose = whose
        self._now = now
        self._under_way: Counter[object] = Counter()
        self._within: Counter[object] = Counter()
        self._until = now()

    @contextmanager
    def counted(self, key: object) -> Iterator[str | None]:
        excess = self._excess(key)
        self._under_way[key] += 1
        self._within[key] += excess is None
        try:
            yield excess
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]

    def _excess(self, key: object) -> str | None:
        now = self._now()
        if now >= self._until:
            self._until = now + WINDOW
            self._within.clear()
        at_once, per_minute = self._limit.at_once, self._limit.per_minute
        if at_once is not None and self._under_way[key] >= at_once:
            return f"{at_once} commands {self._whose} are under way; send it again when one is done"
        if per_minute is not None and self._within[key] >= per_minute:
            seconds = max(1, round((self._until - now).total_seconds()))
            return f"{per_minute} commands {self._whose} came within a minute; send it again in {seconds} s"
        return None
