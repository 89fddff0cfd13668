"""What every role's composition shares: the infrastructure it is given, and how it runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from cml_workers.bus.rabbit import RabbitBus
from cml_workers.eventstore.following import Following
from cml_workers.eventstore.port import EventStore
from cml_workers.foundation.tasks import ended
from cml_workers.runtime.settings import Settings


@dataclass(frozen=True, slots=True)
class Infrastructure:
    """What a process has opened; each role takes from it what it needs.

    ``archive``: the same database as ``database``, for what cannot be rebuilt.
    """

    settings: Settings
    amqp_url: str
    store: EventStore
    database: AsyncEngine
    archive: AsyncEngine
    ec2_endpoint: str | None

    def bus(self, name: str) -> RabbitBus:
        """A connection to the bus under this name, not started yet."""
        return RabbitBus(
            self.amqp_url,
            name=name,
            declare=self.settings.declare_topology,
            roles=self.settings.role_users,
        )


@dataclass(frozen=True, slots=True)
class Running:
    """A role at work.

    ``checks`` say what is wrong, None if nothing is; ``tasks`` never end by themselves: one that does has
    failed; ``following``: how far a role that follows the store has come; ``dead_letters``: how many wait.
    """

    name: str
    checks: tuple[Callable[[], str | None], ...]
    tasks: tuple[asyncio.Task[None], ...] = ()
    following: Following | None = None
    dead_letters: Callable[[], Awaitable[int]] | None = None


def not_following(following: Following) -> str | None:
    """What is wrong with a follower."""
    return (
        f"the event store is not followed (failed {following.attempts} times)" if following.attempts else None
    )


def utc_now() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


@asynccontextmanager
async def background(work: Callable[[], Awaitable[None]], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """Run ``work`` beside the caller and cancel it at the end."""

    async def run() -> None:
        await work()

    task = asyncio.create_task(run(), name=name)
    try:
        yield task
    finally:
        await ended(task)
