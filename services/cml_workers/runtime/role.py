"""What a role is, what it is given, and how it runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.trust import Trust
from cml_workers.bus.usage import Usage
from cml_workers.eventstore.following import Following
from cml_workers.eventstore.port import EventStore
from cml_workers.foundation.outages import Dependency, Outages
from cml_workers.foundation.tasks import ended
from cml_workers.runtime.settings import Settings


class Part(StrEnum):
    """A part of the system, by the setting that says where it is. Every role uses the message bus."""

    BUS = "RABBITMQ_URL"
    STORE = "KURRENTDB_URI"
    DATABASE = "DATABASE_URL"
    EC2 = "CML_AWS"


class Replicas(StrEnum):
    """How many processes of a role may run."""

    MANY = "any number share the work"
    STANDBY = "one is active, the others stand by"
    ONE = "one: a second one would do everything twice"


class _NotOpened:
    """Stands for a part that no role of the process says that it needs."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} of a part that was not opened: the role must need {self._part.name}")


_NO_STORE: Any = _NotOpened(Part.STORE)
_NO_DATABASE: Any = _NotOpened(Part.DATABASE)


@dataclass(frozen=True, slots=True)
class Infrastructure:
    """What a process has opened: all that its roles say that they need.

    ``dependencies``: whether each part answers, for all roles of the process.
    ``archive``: the same database as ``database``, for what cannot be rebuilt. ``trust``: what the
    roles believe of each other's messages. ``kind_of_bus``: one with spans, where the process traces.
    """

    settings: Settings
    amqp_url: str
    store: EventStore = _NO_STORE
    database: AsyncEngine = _NO_DATABASE
    archive: AsyncEngine = _NO_DATABASE
    ec2_endpoint: str | None = None
    trust: Trust | None = None
    dependencies: Mapping[Part, Dependency] = field(default_factory=dict)
    kind_of_bus: type[RabbitBus] = RabbitBus

    def outages(self, *parts: Part) -> Outages:
        """Those of these parts."""
        return Outages(*(self.dependencies[part] for part in parts))

    def bus(self, role: "Role") -> RabbitBus:
        """The role's connection to the bus, not started yet."""
        return self.kind_of_bus(
            self.amqp_url,
            name=role.user,
            uses=role.uses.with_own(self.settings.senders),
            declare=self.settings.declare_topology,
            trust=self.trust,
        )


@dataclass(frozen=True, slots=True)
class Running:
    """A role at work.

    ``checks`` say what is wrong, None if nothing is; ``tasks`` never end by themselves: one that does has
    failed; ``followings``: how far each of its followers of the store has come; ``dead_letters``: how many wait;
    ``counts``: what it has counted since it started; ``warnings``: what somebody should look at, though it works.
    """

    name: str
    checks: tuple[Callable[[], str | None], ...]
    tasks: tuple[asyncio.Task[None], ...] = ()
    followings: tuple[Following, ...] = ()
    dead_letters: Callable[[], Awaitable[int]] | None = None
    counts: Callable[[], Mapping[str, int]] = dict
    warnings: tuple[Callable[[], str | None], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A part of the service that can run as a process of its own: ``cml-workers role NAME``.

    Its rights at the broker, its secrets and its place in the deployment follow from this.
    """

    name: str
    does: str
    """In one sentence."""
    compose: Callable[[Infrastructure], AbstractAsyncContextManager[Running]]
    """Run it until the context ends."""
    needs: tuple[Part, ...]
    uses: Usage
    replicas: Replicas
    secrets: tuple[str, ...] = ()
    """Settings beyond ``needs`` that are secret and that no other role has to know."""

    @property
    def user(self) -> str:
        """Its user at the broker."""
        return f"cml-{self.name}"


STALLED = timedelta(seconds=60)
"""How old the last progress of a follower may be. The end of the store counts, which it is shown at least every fifteen seconds
(``eventstore.following.QUIET``); twice that, and what a call may take, is no reason to worry."""


def not_following(following: Following) -> str | None:
    """What is wrong with a follower: for how long it has neither handled an event nor seen the end of the store."""
    since = None if following.moved_at is None else ago(following.moved_at)
    if since is None or utc_now() - since < STALLED:
        return None
    how = f"failed {following.attempts} times" if following.attempts else "neither an event nor the end came"
    return f"the event store is not followed since {since:%H:%M:%S} UTC ({how})"


def lag(following: Following) -> float:
    """Seconds from when the last event was recorded to when it was handled; 0 where it was the last one that there was."""
    if following.event_at is None or following.last_event_at is None:
        return 0.0
    return max((ago(following.event_at) - following.last_event_at).total_seconds(), 0.0)


def slowest(followings: Sequence[Following]) -> Following | None:
    """The follower of a role by which it is judged: one that has not caught up, of those the one that lags most; None: it has none."""
    return max(followings, key=lambda each: (not each.caught_up, lag(each)), default=None)


def ago(moment: float) -> datetime:
    """When it was by the clock of the event loop, in UTC."""
    return utc_now() - timedelta(seconds=asyncio.get_running_loop().time() - moment)


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
