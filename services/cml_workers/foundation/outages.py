"""Outages: a part that a process depends on does not answer. Whoever needs it waits, and goes on as soon as it answers.

An error alone is no outage: it may come of one stream, or of one message. So the part is asked, by a ping: an outage begins when
that fails, and ends when one succeeds. All who use a part in a process share what is known of it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from cml_workers.foundation.failures import ConfigurationError
from cml_workers.foundation.ids import apart
from cml_workers.foundation.tasks import ended

log = structlog.get_logger(__name__)

PING_EVERY = 0.5
"""Seconds between two pings of a part that does not answer."""
LONGEST_PING = 30.0
"""Seconds after which a ping counts as failed that its part has not given up by itself."""


@dataclass(frozen=True, slots=True)
class _Outage:
    """``over``: done when it is; ``began``: by the clock of the event loop."""

    cause: str
    since: datetime
    began: float
    over: "asyncio.Future[None]"


class Dependency:
    """A part that a process depends on, and whether it answers, as far as is known.

    ``ping`` raises what is wrong; ``raises``: the errors by which whoever uses the part learns that it does not work.
    """

    def __init__(
        self,
        name: str,
        ping: Callable[[], Awaitable[None]],
        raises: tuple[type[Exception], ...],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.ping = ping
        self._raises = raises
        self._sleep = sleep
        self._outage: _Outage | None = None
        self._asking: asyncio.Future[bool] | None = None
        self._watching: asyncio.Task[None] | None = None

    def problem(self) -> str | None:
        """Since when it does not answer, and why; None while it does, as far as is known."""
        if self._outage is None:
            return None
        return f"work waits for it since {self._outage.since:%H:%M:%S} UTC: {self._outage.cause}"

    @property
    def over(self) -> "asyncio.Future[None] | None":
        """Done when the outage is over; None while there is none."""
        return None if self._outage is None else self._outage.over

    def concerns(self, error: Exception) -> bool:
        """Whether it is an error of this part."""
        return isinstance(error, self._raises)

    async def reached(self) -> None:
        """Return when it answers, however long that takes: for a process that starts. Raises ConfigurationError: waiting is of no use."""
        while (error := await self._asked()) is not None:
            if isinstance(error, ConfigurationError):
                raise error
            self._begin(error)
            await self._sleep(PING_EVERY)
        self._end()

    def suspect(self) -> None:
        """Find out whether it answers, unless that is known or being found out."""
        if self._outage is None and self._asking is None:
            self._asking = asyncio.get_running_loop().create_future()
            self._watching = asyncio.get_running_loop().create_task(
                self._watch(self._asking), name=f"asks {self.name}", context=apart()
            )

    async def is_unavailable(self) -> bool:
        """Whether it does not answer now; all who want to know at the same time ask it once."""
        self.suspect()
        return self._asking is None or await asyncio.shield(self._asking)

    async def close(self) -> None:
        """Ask no more."""
        if self._watching is not None:
            await ended(self._watching)

    async def _watch(self, asking: "asyncio.Future[bool]") -> None:
        try:
            error = await self._asked()
            self._asking = None
            if error is not None:
                self._begin(error)
            asking.set_result(error is not None)
        finally:
            if not asking.done():
                asking.cancel()
        refused = isinstance(error, ConfigurationError)
        while error is not None:
            await self._sleep(PING_EVERY)
            error = await self._asked()
            if isinstance(error, ConfigurationError) and not refused:
                refused = True
                log.error(
                    "outage goes on: the part answers, but it cannot be used",
                    part=self.name,
                    cause=str(error),
                )
        self._end()

    async def _asked(self) -> Exception | None:
        """What the part raises when it is asked; None: it answers."""
        try:
            async with asyncio.timeout(LONGEST_PING):
                await self.ping()
        except Exception as error:  # noqa: BLE001 - whatever it is, the part cannot be used
            return error
        return None

    def _begin(self, error: Exception) -> None:
        if self._outage is None:
            loop = asyncio.get_running_loop()
            cause = str(error) or type(error).__name__
            log.warning("outage begins: what needs the part waits", part=self.name, cause=cause)
            self._outage = _Outage(cause, datetime.now(UTC), loop.time(), loop.create_future())

    def _end(self) -> None:
        outage, self._outage = self._outage, None
        if outage is not None:
            seconds = round(asyncio.get_running_loop().time() - outage.began, 1)
            log.warning("outage ends: work goes on", part=self.name, seconds=seconds)
            outage.over.set_result(None)


class Outages:
    """The outages of all parts that somebody needs."""

    def __init__(self, *parts: Dependency) -> None:
        self._parts = parts

    def under_way(self) -> Dependency | None:
        """A part that does not answer, as far as is known."""
        return next((part for part in self._parts if part.over is not None), None)

    def concern(self, error: Exception) -> bool:
        """Whether it is an error of one of the parts."""
        return self._part(error) is not None

    def suspect(self, error: Exception) -> None:
        """Find out whether the error comes of an outage; who then waits by ``over`` waits for its end."""
        if (part := self._part(error)) is not None:
            part.suspect()

    async def caused(self, error: Exception) -> bool:
        """Whether the error comes of an outage: its part does not answer a ping either."""
        part = self._part(error)
        return part is not None and await part.is_unavailable()

    async def over(self) -> None:
        """Return when every part answers, as far as is known."""
        while (part := self.under_way()) is not None:
            assert part.over is not None  # noqa: S101 - it is under way
            await asyncio.shield(part.over)

    async def waited_out(self, error: Exception) -> bool:
        """Wait for the end of the outage that the error comes of; False, at once, if it comes of none."""
        if not await self.caused(error):
            return False
        await self.over()
        return True

    def _part(self, error: Exception) -> Dependency | None:
        return next((part for part in self._parts if part.concerns(error)), None)


NO_OUTAGES = Outages()
"""Of somebody who needs no part, or is not to wait."""
