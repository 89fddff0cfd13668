"""Which queues have fewer replicas than RabbitMQ's cluster has nodes, or some that do not work, and a partition: said by readiness and log."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import unquote, urlsplit

import structlog

from cml_workers.bus.rabbit.management import Cluster, ManagementError, cluster
from cml_workers.runtime.role import Running, background
from cml_workers.runtime.settings import Settings

log = structlog.get_logger(__name__)

LOOKS_EVERY = 60.0
"""Seconds between two looks."""
REMEDY = (
    "rabbitmq-queues grow NODE all, for each node; where a replica does not work, start its node, or start it once more; "
    "start a node again that is partitioned from the others (docs/deployment.md)"
)


async def seen_cluster(settings: Settings) -> Cluster | None:
    """What the management API says; None if no setting names it. Raises ManagementError."""
    if settings.rabbitmq_management_url is None:
        return None
    url = settings.rabbitmq_url.get_secret_value() if settings.rabbitmq_url else ""
    vhost = unquote(urlsplit(url).path[1:]) or "/"
    return await cluster(settings.rabbitmq_management_url.get_secret_value(), vhost)


def described(seen: Cluster, queues: Iterable[str]) -> str | None:
    """What is wrong with these queues; None if nothing is."""
    of = tuple(queues)
    found = (
        (f"fewer replicas than the {seen.nodes} nodes of RabbitMQ", seen.short(of)),
        ("replicas that do not work", seen.idle(of)),
    )
    said = [f"{what}: {_listed(counted)}" for what, counted in found if counted]
    if seen.partitioned:
        said.append(f"nodes that are partitioned from others: {', '.join(seen.partitioned)}")
    return "; ".join(said) or None


def _listed(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{queue} {count}" for queue, count in sorted(counted.items()))


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
            warning = described(seen, self._queues) if seen else None
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
    if settings.rabbitmq_management_url is None:
        yield ()
        return
    watch = ReplicaWatch(settings, queues)
    async with background(watch.run, "replicas of queues"):
        yield (Running("rabbitmq", checks=(), warnings=(watch.warning,)),)
