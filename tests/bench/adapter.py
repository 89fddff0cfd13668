"""All that the harness knows of the service's inside: what a redesign changes, it changes here and nowhere else.

It fits 65339c3 and what came after it. Everything else goes through the wire, the command line and AWS's API.

One file of more than 300 lines: whoever fits the harness to another version reads and changes only this one.
"""

import asyncio
import gc
import random
import sys
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, Self, cast
from uuid import UUID

import sqlalchemy as sa

from cml_workers import cli
from cml_workers.bus.port import Ack, DeadLetter, Handler, Message, Outgoing, Retry, UnroutableError, Verdict
from cml_workers.bus.topology import QUEUES, Queue
from cml_workers.ec2_adapter.executor import Executor
from cml_workers.eventstore import worker_streams as stream
from cml_workers.eventstore.opening import open_event_store
from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    Checkpoint,
    EventStore,
    NewEvent,
    StoredEvent,
    StreamNotFoundError,
)
from cml_workers.eventstore.relay_stream import RELAY_STREAM
from cml_workers.process.registry import ROLES
from cml_workers.runtime.endpoints import database_url, event_store_uri
from cml_workers.runtime.role import Infrastructure
from cml_workers.runtime.settings import load_settings
from cml_workers.sql.database import open_database

# Where it is after 65339c3, and where it was then.
try:
    _policy = import_module("cml_workers.bus.delivery")
except ImportError:
    _policy = import_module("cml_workers.bus.rabbit")
try:
    _databases: Any = import_module("cml_workers.sql.adapters")
except ImportError:
    _databases = None
try:
    _fold = import_module("cml_workers.domain.fold")
except ImportError:
    _fold = import_module("cml_workers.domain.worker")
try:
    _names = import_module("cml_workers.eventstore.names")
except ImportError:
    _names = stream
fold: Callable[..., Any] = _fold.fold
stream_of: Callable[[UUID], str] = _names.stream_of
retry_delay: Callable[[int | None, int], int] = _policy.retry_delay

CLIENT = "cml.replies.bench.client"
"""Where replies are awaited."""
NEW = NO_STREAM
APART = 0.001
"""Seconds between two deliveries where they are staggered."""
Decoded = Any
JsonEvent = tuple[UUID, str, bytes, bytes]
"""Its id, type, data and metadata, as a store keeps them."""


# -- the command line and the store, for measurements over the wire ----------------------------------------


def command_line() -> None:
    """The entry point of ``cml-workers``."""
    cli.main()


class Store:
    """The kind of event store that the service uses, at this address."""

    def __init__(self, uri: str) -> None:
        self._store = open_event_store(uri)

    async def append(self, name: str, events: Sequence[JsonEvent], expected: int) -> int:
        """Append at the expected revision; the revision of the last one."""
        return await self._store.append(name, [NewEvent(*each) for each in events], expected=expected)

    async def extend(self, worker_id: UUID, events: Sequence[JsonEvent]) -> int:
        """Append to a worker's stream, however long it is; how long it is then."""
        name = stream_of(worker_id)
        try:
            length = len(await self._store.read(name))
        except StreamNotFoundError:
            length = 0
        return await self.append(name, events, length - 1) + 1

    async def load(self, worker_id: UUID) -> None:
        """Load the worker, as a handler that does not have it does."""
        await stream.load(self._store, worker_id)

    async def stored(self, worker_id: UUID) -> Sequence[Any]:
        """The events as they are stored."""
        return await self._store.read(stream_of(worker_id))

    async def close(self) -> None:
        await self._store.close()


# -- the fold ---------------------------------------------------------------------------------------------


def decode(stored: Any) -> Decoded:
    """A stored event as the fold takes it."""
    return stream.decode(stored)


def fold_all(worker_id: UUID, events: Iterable[Decoded]) -> None:
    """The worker after all of them."""
    fold(worker_id, events)


# -- all roles in one process, counted --------------------------------------------------------------------


@dataclass
class Counts:
    """What the roles asked of their ports, by role and kind; ``busy``: calls under way."""

    of: Counter[tuple[str, str]] = field(default_factory=Counter)
    busy: int = 0

    def add(self, role: str, what: str, number: int = 1) -> None:
        self.of[role, what] += number


class CountingStore(EventStore):
    """One role's calls to the store."""

    def __init__(self, store: EventStore, role: str, counts: Counts) -> None:
        self._store, self._role, self._counts = store, role, counts

    async def append(self, stream: str, events: Sequence[NewEvent], *, expected: int) -> int:
        if stream != RELAY_STREAM:  # the relay's checkpoints come by the clock, as reminders do
            self._counts.add(self._role, "appends")
        self._counts.busy += 1
        try:
            return await self._store.append(stream, events, expected=expected)
        finally:
            self._counts.busy -= 1

    async def read(
        self, stream: str, *, after: int = NO_STREAM, limit: int | None = None
    ) -> list[StoredEvent]:
        self._counts.add(self._role, "store reads")
        events = await self._store.read(stream, after=after, limit=limit)
        self._counts.add(self._role, "events read", len(events))
        return events

    async def last(self, stream: str) -> StoredEvent:
        return await self._store.last(stream)

    async def trim(self, stream: str, keep: int) -> None:
        await self._store.trim(stream, keep)

    async def follow(
        self, *, after: str | None, prefix: str = ""
    ) -> AsyncGenerator[StoredEvent | Checkpoint | CaughtUp, None]:
        async for item in self._store.follow(after=after, prefix=prefix):
            if isinstance(item, StoredEvent):
                self._counts.add(self._role, "events followed")
            yield item

    async def end(self) -> str | None:
        return await self._store.end()

    def is_after(self, position: str, other: str) -> bool:
        return self._store.is_after(position, other)

    async def ping(self) -> None:
        await self._store.ping()

    async def close(self) -> None:
        await self._store.close()


class MemoryBroker:
    """Exchanges and queues of the topology that ships; delivers in order to whoever consumes.

    ``staggered``: no two messages at the same moment, so that chance does not decide their order.
    """

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.replies: dict[str, asyncio.Future[bytes]] = {}
        """What callers await, by correlation id."""
        self.dead: list[str] = []
        self.staggered = True
        self._last = 0.0
        self._consumers: dict[str, tuple[str, Handler]] = {}
        self._waiting: dict[str, deque[Message]] = {queue.name: deque() for queue in QUEUES}
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(self, exchange: str, type_: str, body: bytes, message_id: str) -> bytes:
        """Publish as a client does, and await the reply."""
        reply = self.replies[message_id] = asyncio.get_running_loop().create_future()
        message = Message(
            body=body,
            type=type_,
            routing_key=type_,
            message_id=message_id,
            correlation_id=message_id,
            reply_to=CLIENT,
            content_type="application/json",
        )
        self._to(exchange, message)
        answer: bytes = await reply
        del self.replies[message_id]
        return answer

    def bus(self, role: str) -> "MemoryBus":
        return MemoryBus(self, role)

    def route(self, role: str, message: Outgoing) -> None:
        """Deliver what a role publishes."""
        if message.exchange is None and message.routing_key == CLIENT:
            self.counts.add(role, "replies")
            reply = self.replies.get(message.correlation_id or "")
            if reply and not reply.done():
                reply.set_result(message.body)
            return
        received = Message(
            body=message.body,
            type=message.type,
            routing_key=message.routing_key,
            message_id=message.message_id or None,
            correlation_id=message.correlation_id,
            reply_to=message.reply_to,
            headers=dict(message.headers),
            content_type=message.content_type,
            user_id=message.user_id,
        )
        if message.exchange is None:
            self._into(message.routing_key, received)
            return
        kind = (
            "events published"
            if message.exchange.name in ("cml.events", "cml.triggers")
            else "messages between roles"
        )
        self.counts.add(role, kind)
        if not self._to(message.exchange.name, received) and message.mandatory:
            raise UnroutableError(message.routing_key)

    def consume(self, role: str, queue: Queue, handler: Handler) -> None:
        self._consumers[queue.name] = role, handler
        while self._waiting[queue.name]:
            self._into(queue.name, self._waiting[queue.name].popleft())

    def _to(self, exchange: str, message: Message) -> bool:
        names = [
            queue.name
            for queue in QUEUES
            for binding in queue.bindings
            if binding.exchange.name == exchange and _matches(binding.routing_key, message.routing_key)
        ]
        for name in names:
            self._into(name, message)
        return bool(names)

    def _into(self, name: str, message: Message) -> None:
        if name not in self._consumers:
            self._waiting[name].append(message)
            return
        loop = asyncio.get_running_loop()
        if self.staggered:
            self._last = max(loop.time(), self._last) + APART
            loop.call_at(self._last, self._deliver, name, message)
        else:
            self._deliver(name, message)

    def _deliver(self, name: str, message: Message) -> None:
        role, handler = self._consumers[name]
        queue = next(each for each in QUEUES if each.name == name)
        task = asyncio.get_running_loop().create_task(self._handle(role, queue, handler, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, role: str, queue: Queue, handler: Handler, message: Message) -> None:
        self.counts.add(role, "messages handled")
        verdict: Verdict = await handler(message)
        match verdict:
            case Retry(seconds):
                self.counts.add(role, "retries published")
                again = replace(message, attempt=message.attempt + 1)
                wait = retry_delay(seconds, message.attempt)
                asyncio.get_running_loop().call_later(wait, self._into, queue.name, again)
            case Ack():
                pass
            case DeadLetter(reason):
                self.dead.append(f"{queue.name}: {message.type}: {reason}")


class MemoryBus:
    """What a role's composition does with ``RabbitBus``."""

    user = "guest"
    heartbeat = timedelta(seconds=60)

    def __init__(self, broker: MemoryBroker, role: str) -> None:
        self._broker, self._role = broker, role
        self._consuming: list[tuple[Queue, Handler]] = []
        self.consuming = asyncio.get_running_loop().create_future()
        """Never ends."""

    def consume(self, queue: Queue, handler: Handler, *, prefetch: int, **_: object) -> None:
        assert prefetch
        self._consuming.append((queue, handler))

    def watch_consumer(self, queue: Queue, *, lost: Callable[[], None], back: Callable[[], None]) -> None:
        """It is never lost."""

    async def publish(self, message: Outgoing) -> None:
        self._broker.route(self._role, message)

    async def routed(self, _: Outgoing) -> bool:
        return False  # what is published is confirmed

    def problem(self) -> str | None:
        return None

    def counts(self) -> dict[str, int]:
        return {}

    def warning(self) -> str | None:
        return None

    async def __aenter__(self) -> Self:
        for queue, handler in self._consuming:
            self._broker.consume(self._role, queue, handler)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to end."""


@asynccontextmanager
async def counted_roles(counts: Counts, clock: Callable[[], float]) -> AsyncGenerator[MemoryBroker, None]:
    """Every role as its own composition makes it, on counting ports; configured by the environment."""
    settings = load_settings()
    _run_on(clock)
    broker = MemoryBroker(counts)
    async with AsyncExitStack() as stack:
        if _databases is not None:
            stack.enter_context(_counted_database("projector", counts))
        store = open_event_store(event_store_uri(settings))
        stack.push_async_callback(store.close)
        for name in ("relay", "projector", "ec2-adapter", "lifecycle"):
            database = open_database(database_url(settings))
            stack.push_async_callback(database.dispose)
            _count_sql(database.sync_engine, name, counts)
            parts: dict[str, Any] = {
                "settings": settings,
                "amqp_url": "",
                "store": CountingStore(store, name, counts),
                "database": database,
                "archive": database,
                "ec2_endpoint": "http://127.0.0.1:9/",  # AWS limits how often it is called
                "broker": broker,
                "role": name,
            }
            given = _Given(**{part: value for part, value in parts.items() if part in _PARTS})
            await stack.enter_async_context(ROLES[name].compose(given))
        yield broker


@dataclass(frozen=True, kw_only=True)
class _Given(Infrastructure):
    broker: MemoryBroker
    role: str

    def bus(self, role: object) -> Any:
        assert role
        return self.broker.bus(self.role)

    def outages(self, *_: object) -> Any:
        """Nothing fails here. Only checkouts that have it ask."""
        return import_module("cml_workers.foundation.outages").NO_OUTAGES


_PARTS = {part.name for part in fields(_Given)}


@contextmanager
def _counted_database(role: str, counts: Counts) -> Iterator[None]:
    """The role opens a database of its own, which counts as well."""
    module = import_module(f"cml_workers.{role}.main")
    connect = module.connect

    def counted(url: str) -> Any:
        database = connect(url)
        for engine in database.engines:
            _count_sql(engine, role, counts)
        return database

    module.__dict__["connect"] = counted
    try:
        yield
    finally:
        module.__dict__["connect"] = connect


def _count_sql(engine: sa.Engine, role: str, counts: Counts) -> None:
    def begin(_connection: object) -> None:
        counts.add(role, "SQL transactions")

    def statement(_connection: object, _cursor: object, text: str, *_: object) -> None:
        if not text.startswith(("BEGIN", "COMMIT")):
            counts.add(role, "SQL statements")

    sa.event.listen(engine, "begin", begin)
    sa.event.listen(engine, "before_cursor_execute", statement)


def _run_on(clock: Callable[[], float]) -> None:
    """The roles' clocks are this one: both that for times and that for durations."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for name, module in list(sys.modules.items()):
        if name.startswith("cml_workers.") and hasattr(module, "utc_now"):
            cast("Any", module).utc_now = lambda: began + timedelta(seconds=clock())


def _matches(pattern: str, key: str) -> bool:
    return pattern in ("", "#", key) or (pattern.endswith(".#") and key.startswith(pattern[:-1]))


# -- what the executor remembers --------------------------------------------------------------------------


class WatchedExecutor:
    """The executor behind its queue of triggers, on a store file of its own; EC2 is never reached."""

    def __init__(self, folder: Path) -> None:
        self._store = open_event_store(f"sqlite:///{folder}/events.sqlite3")
        parts: dict[str, Any] = {
            "store": self._store,
            "ec2": None,
            "publish": _nowhere,
            "now": _now,
            "random": random.random,
            "takeover": timedelta(hours=1),  # for so long it leaves alone what others may have attempted
        }
        takes = signature(Executor).parameters
        self._executor = Executor(**{name: part for name, part in parts.items() if name in takes})

    async def trigger(self, event: bytes, event_type: str) -> None:
        """A message of its queue arrives, which somebody else may have had."""
        handler = getattr(self._executor, "on_trigger", None) or cast("Any", self._executor).on_wake
        await handler(Message(body=event, type=event_type, redelivered=True))

    def remembers(self, operation_ids: set[str]) -> int:
        """In how many places, of all that it refers to, one of the operations stands.

        But for the streams of the workers at hand: those are bounded, in number and in ids.
        """
        at_hand = [each for each in vars(self._executor).values() if isinstance(each, stream.Workers)]
        return sum(
            len(operation_ids.intersection(each))
            for each in _reachable(self._executor, besides=[self._store, *at_hand])
            if isinstance(each, dict | set | frozenset)
        )

    async def close(self) -> None:
        await self._store.close()


async def _nowhere(_message: Outgoing) -> None:
    """Take whatever is published."""


def _now() -> datetime:
    return datetime.now(UTC)


def _reachable(root: object, *, besides: Sequence[object]) -> list[object]:
    """Every object that it refers to, directly or not, but for code, types, modules and ``besides``."""
    seen = {id(each) for each in besides}
    found: list[object] = []
    left = [root]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, type | ModuleType | FunctionType | MethodType):
            continue
        seen.add(id(each))
        found.append(each)
        left += gc.get_referents(each)
    return found
