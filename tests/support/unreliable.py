"""A part that answers or does not, as a test says."""

import asyncio

from cml_workers.foundation.failures import ConfigurationError
from cml_workers.foundation.outages import Dependency, Outages


class GoneError(ConnectionError):
    """What the part raises that does not answer."""


class WrongError(ConfigurationError):
    """What the part raises that lets nobody in."""


class Unreliable:
    """``works``: whether it answers; ``refuses``: it answers, and lets nobody in."""

    def __init__(self, name: str = "event store") -> None:
        self.works = True
        self.refuses = False
        self.pings = 0
        self.dependency = Dependency(name, self._ping, (GoneError, WrongError), sleep=self._sleep)
        self.outages = Outages(self.dependency)

    def use(self) -> None:
        """What everybody does who needs it."""
        if self.refuses:
            raise WrongError("wrong password")
        if not self.works:
            raise GoneError("no answer")

    async def pinged(self, times: int = 2) -> None:
        """Return when it has been asked so many times more; all but the last time it has answered, or not."""
        wanted = self.pings + times
        async with asyncio.timeout(10):
            while self.pings < wanted:
                await asyncio.sleep(0.005)

    async def _ping(self) -> None:
        self.pings += 1
        await asyncio.sleep(0)
        self.use()

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 50)
