"""How often EC2 may be called: a token bucket for each API and region, as AWS counts requests.

Buckets: https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from cml_workers.ec2_adapter.errors import EC2ThrottledException, Remedy
from cml_workers.foundation.metrics import EC2_NOT_CALLED
from cml_workers.foundation.tracing import API, REGION, span


class Bucket(NamedTuple):
    """``capacity`` requests at once, ``refill`` of them a second after that."""

    capacity: float
    refill: float


READ = Bucket(100, 20)
"""Describe calls with a filter or pagination; every call of ours that is not listed."""
AWS_LIMITS: Mapping[str, Bucket] = {
    "RunInstances": Bucket(5, 2),
    "StartInstances": Bucket(5, 2),
    "StopInstances": Bucket(50, 5),
    "TerminateInstances": Bucket(100, 5),
    "CreateTags": Bucket(100, 10),
    # Without a filter or pagination.
    "DescribeInstanceStatus": Bucket(50, 10),
}

PATIENCE = timedelta(seconds=20)
"""How long a call may wait for its turn."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds without a call of an API in a region after one was throttled, or refused for the region's credentials; doubled each
time that happens again. Those that wait come back spread over as long again."""
REFRESH_EVERY = timedelta(seconds=10)
"""How often the credentials of a region are read again at most."""


class _Tokens:
    """The bucket of one API in one region. A token may be taken before it is there: who takes it waits."""

    def __init__(self, bucket: Bucket | None, now: datetime) -> None:
        self._bucket = bucket
        self._left = bucket.capacity if bucket else 0.0
        self._at = now
        self._paused_until = now
        self._pause = 0.0

    def delay(self, now: datetime) -> float:
        """Seconds until the next call may be made."""
        paused = max((self._paused_until - now).total_seconds(), 0.0)
        if self._bucket is None:
            return paused
        if now > self._at:
            refilled = (now - self._at).total_seconds() * self._bucket.refill
            self._left = min(self._left + refilled, self._bucket.capacity)
            self._at = now
        until_refill = (self._at - now).total_seconds() + (1 - self._left) / self._bucket.refill
        return max(paused, until_refill if self._left < 1 else 0.0)

    def is_paused(self, now: datetime) -> bool:
        """Whether there is a pause, which may have begun while somebody waited."""
        return now < self._paused_until

    def take(self) -> None:
        self._left -= 1

    def spread(self, now: datetime, random: float) -> float:
        """Seconds by which who waits for the end of a pause waits longer, where no bucket lets them through one by one."""
        return random * self._pause if self._bucket is None and self.is_paused(now) else 0.0

    def refused(self, now: datetime, jitter: float) -> None:
        """EC2 has no token left for us, as others of the account call it, too: go on with an empty bucket after a pause."""
        if self.is_paused(now):
            return  # an answer to a call from before the pause
        self._pause = min(self._pause * 2 or FIRST_PAUSE, LONGEST_PAUSE)
        self._paused_until = now + timedelta(seconds=self._pause * (0.5 + jitter))
        if self._bucket:
            self._left, self._at = 0.0, self._paused_until  # who waits for a token asks again

    def answered(self) -> None:
        self._pause = 0.0


class Limits:
    """The buckets of all APIs and regions. One region's or API's calls never wait for another's."""

    def __init__(
        self,
        buckets: Mapping[str, Bucket] | None,
        *,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]],
        random: Callable[[], float],
    ) -> None:
        """``buckets``: None for an EC2 that limits nobody, but may throttle all the same."""
        self._buckets = buckets
        self.now = now
        self._sleep = sleep
        self._random = random
        self._tokens: dict[tuple[str, str], _Tokens] = {}
        self._refreshed: dict[str, datetime] = {}

    async def admit(self, region: str, api: str, within: timedelta = PATIENCE) -> None:
        """Wait until the call may be made. Callers are admitted in the order in which they come.

        Raises:
            EC2ThrottledException: it would take longer than ``within``. Known at once, and no token is taken.
        """
        tokens = self._of(region, api)
        until = self.now() + within
        while True:
            now = self.now()
            delay = tokens.delay(now)
            if delay > max((until - now).total_seconds(), 0.0):
                EC2_NOT_CALLED.labels(api).inc()
                raise EC2ThrottledException(
                    f"{api} in {region} is called as often as EC2 allows: not within {within.total_seconds():.0f} s",
                    remedy=Remedy.RETRY,
                    retryable=True,
                )
            delay += tokens.spread(now, self._random())
            tokens.take()
            if delay > 0:
                with span("wait for the limit of EC2", {API: api, REGION: region}):
                    await self._sleep(delay)
            if not tokens.is_paused(self.now()):
                return

    def refused(self, region: str, api: str) -> None:
        """EC2 refused a call as it would refuse any other: there were too many, or it does not know the credentials."""
        self._of(region, api).refused(self.now(), self._random())

    def may_refresh(self, region: str) -> bool:
        """Whether the region's credentials may be read again now; if so, not again for a while."""
        now = self.now()
        last = self._refreshed.get(region)
        if last is not None and now - last < REFRESH_EVERY:
            return False
        self._refreshed[region] = now
        return True

    def answered(self, region: str, api: str) -> None:
        """EC2 took a call."""
        self._of(region, api).answered()

    def _of(self, region: str, api: str) -> _Tokens:
        known = self._tokens.get((region, api))
        if known is None:
            EC2_NOT_CALLED.labels(api)  # 0 from its first call on, or a rate would miss the first
            bucket = None if self._buckets is None else self._buckets.get(api, READ)
            known = self._tokens[region, api] = _Tokens(bucket, self.now())
        return known
