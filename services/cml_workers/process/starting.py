"""A role that starts waits for its parts as one that runs does: alive, not ready, with a line when that begins and when it ends."""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack

import structlog

from cml_workers.foundation.ids import about
from cml_workers.foundation.outages import Dependency, Outages
from cml_workers.foundation.tasks import ended
from cml_workers.runtime.role import Infrastructure, Role, Running

log = structlog.get_logger(__name__)

PAUSE = 1.0
"""Seconds before a role is started again that could not be though its parts answer."""


async def reached(dependencies: Iterable[Dependency]) -> None:
    """Return when all of them answer. Raises ConfigurationError as soon as one says that waiting is of no use."""
    waiting = [asyncio.create_task(each.reached()) for each in dependencies]
    try:
        await asyncio.gather(*waiting)
    finally:
        for each in waiting:
            await ended(each)


class Starting:
    """A role that does not work yet; ``running``: what the probes show of it meanwhile."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._cause: str | None = None
        self.running = Running(role.name, checks=(self._problem,))

    async def started(self, given: Infrastructure, stack: AsyncExitStack) -> Running:
        """Start it, again and again if what it needs does not answer or goes away meanwhile.

        Raises ConfigurationError: waiting is of no use.
        """
        outages = Outages(*given.dependencies.values())
        while True:
            try:
                with about(role=self._role.name):  # so all of its tasks know it
                    running = await stack.enter_async_context(self._role.compose(given))
            except ConnectionError as error:
                if not await outages.waited_out(error):
                    self._wait(str(error))
                    await asyncio.sleep(PAUSE)
            else:
                if self._cause is not None:
                    log.warning("the role starts", role=self._role.name)
                return running

    def _wait(self, cause: str) -> None:
        if cause != self._cause:
            log.warning("the role cannot start yet", role=self._role.name, cause=cause)
        self._cause = cause

    def _problem(self) -> str:
        return f"it cannot start yet: {self._cause}" if self._cause else "it starts"
