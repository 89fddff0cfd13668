"""Which queues have fewer replicas than RabbitMQ's cluster has nodes: said by readiness and by the log, as long as it is so."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import unquote, urlsplit

import structlog

from cml_workers.bus.rabbit.management import Cluster, ManagementError, cluster
from cml_workers.runtime.role import Running, background
from cml_workers.runtime.settings import Settings

log = structlog.get_logger(__name__)

LOOKS_EVERY = 60.0
"""Seconds between two looks."""
REMEDY = "rabbitmq-queues grow NODE all, for each node (docs/deployment.md)"


async def seen_cluster(settings: Settings) -> Cluster | None:
    """What the management API says; None if no setting names it. Raises ManagementError."""
    if settings.rabbitmq_management_url is None:
        return None
    url = settings.rabbitmq_url.get_secret_value() if settings.rabbitmq_url else ""
    vhost = unquote(urlsplit(url).path[1:]) or "/"
    return await cluster(settings.rabbitmq_management_url.get_secret_value(), vhost)


def described(nodes: int, short: Mapping[str, int]) -> str:
    """What is wrong with these queues, of which it has the replicas."""
    listed = ", ".join(f"{queue} {replicas}" for queue, replicas in sorted(short.items()))
    return f"fewer replicas than the {nodes} nodes of RabbitMQ: {listed}"


class ReplicaWatch:
    """``queues``: which to look at."""

    def __init__(self, settings: Settings, queues: Sequence[str]) -> None:
        self._settings = settings
        self._queues = queues
        self._warning: str | None = None

    def warning(self) -> str | None:
        """What it saw at its last look; None if all is well."""
        return self._warning

    async def run(self) -> None:
        """Look again and again; whatever it sees, the roles work on."""
        while True:
            await self.look()
            await asyncio.sleep(LOOKS_EVERY)

    async def look(self) -> None:
        """Look once."""
        try:
            seen = await seen_cluster(self._settings)
            short = seen.short(self._queues) if seen else {}
            warning = described(seen.nodes, short) if seen and short else None
        except ManagementError as error:
            warning = str(error)
        if warning and warning != self._warning:
            log.warning(
                "RabbitMQ's queues are not replicated, or that cannot be seen", cause=warning, remedy=REMEDY
            )
        self._warning = warning


@asynccontextmanager
async def replicas_watched(settings: Settings, queues: Sequence[str]) -> AsyncIterator[Sequence[Running]]:
    """What the probes show beside the roles; nothing where no setting names the management API."""
    if settings.rabbitmq_management_url is None or not queues:
        yield ()
        return
    watch = ReplicaWatch(settings, queues)
    async with background(watch.run, "replicas of queues"):
        yield (Running("rabbitmq", checks=(), warnings=(watch.warning,)),)
