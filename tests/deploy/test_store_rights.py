"""The rights that ``deploy/kurrentdb/restrict.py`` gives: each role does its work with its own user, and no user does more.

On the stand-in, which keeps to access lists as a server does, and on a server whose administrator's address is given
(``KURRENTDB_ADMIN_URI``): its users and access lists are set, too.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import pytest
from kurrentdbclient import AsyncKurrentDBClient, StreamState
from kurrentdbclient.exceptions import AccessDeniedError

from cml_contracts.commands import StartCMLWorker
from cml_embedded.amqp_broker import AmqpBroker
from cml_workers.bus.port import Ack
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.names import WORKER_STREAMS, stream_of
from cml_workers.eventstore.port import (
    CaughtUp,
    EventStore,
    StoreConfigurationError,
    StoredEvent,
    StoreForbiddenError,
    StoreUnavailableError,
)
from cml_workers.eventstore.quarantine import RELAY, WORKERS, Broken, Decision, Quarantine, What
from cml_workers.eventstore.relay_stream import KEEP, RELAY_STREAM, ensure_begun, load_saved
from cml_workers.eventstore.worker_streams import Workers, append, decode, load_ledger
from cml_workers.foundation.outages import Dependency
from cml_workers.lifecycle.denials import DENIALS_STREAM, Denials
from cml_workers.lifecycle.main import LIFECYCLE
from cml_workers.process.starting import Starting
from cml_workers.relay.checkpoint import RelayCheckpoint
from cml_workers.runtime.role import Infrastructure, Part, utc_now
from cml_workers.runtime.settings import Settings
from support.broken import append_raw, binary
from support.certificates import Certificates
from support.given import NOW, created, recorded
from support.kurrentdb_secured import SecuredKurrentDb
from support.secured import ROOT
from support.service import Service

PASSWORDS = {
    "cml-writer": "CML_WRITER_PASSWORD",
    "cml-reader": "CML_READER_PASSWORD",
    "cml-relay": "CML_RELAY_STORE_PASSWORD",
    "cml-projector": "CML_PROJECTOR_STORE_PASSWORD",
}
"""Where the password of each user is in the environment of the script; here it is the user's name."""
ADMIN_URI = "KURRENTDB_ADMIN_URI"
CREATED = created()


@dataclass
class Restricted:
    """A store whose users have the rights that are shipped."""

    admin: str
    resources: AsyncExitStack = field(default_factory=AsyncExitStack)

    def uri(self, user: str) -> str:
        parsed = urlsplit(self.admin)
        return urlunsplit(parsed._replace(netloc=f"{user}:{user}@{parsed.netloc.rpartition('@')[2]}"))

    def store(self, user: str) -> EventStore:
        """As this user sees it."""
        store = KurrentDbEventStore(self.uri(user))
        self.resources.push_async_callback(store.close)
        return store

    async def client(self, user: str) -> AsyncKurrentDBClient:
        """For what the roles never do."""
        client = AsyncKurrentDBClient(self.uri(user))
        await client.connect()
        self.resources.push_async_callback(client.close)
        return client

    async def restrict(self) -> None:
        """Run the script, as an administrator does."""
        script = ROOT / "deploy/kurrentdb/restrict.py"
        passwords = {variable: user for user, variable in PASSWORDS.items()}
        done = await asyncio.to_thread(
            partial(
                subprocess.run,
                [sys.executable, script],
                env={**os.environ, **passwords, "KURRENTDB_URI": self.admin},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
        )
        assert done.returncode == 0, done.stderr or done.stdout


@pytest.fixture
async def new(certificates: Certificates) -> AsyncIterator[Restricted]:
    """A store in which nothing is yet."""
    server = SecuredKurrentDb(certificates)
    await server.start()
    restricted = Restricted(server.uri("admin", "changeit"))
    await restricted.restrict()
    async with restricted.resources:
        yield restricted
    await server.stop()


@pytest.fixture(params=["standin", *(["given"] if os.environ.get(ADMIN_URI) else [])])
async def restricted(request: pytest.FixtureRequest, certificates: Certificates) -> AsyncIterator[Restricted]:
    """A store in which the relay has begun."""
    async with AsyncExitStack() as stack:
        if request.param == "given":
            restricted = Restricted(os.environ[ADMIN_URI])
        else:
            server = SecuredKurrentDb(certificates)
            await server.start()
            stack.push_async_callback(server.stop)
            restricted = Restricted(server.uri("admin", "changeit"))
        await restricted.restrict()
        await stack.enter_async_context(restricted.resources)
        await RelayCheckpoint(restricted.store("cml-relay"), new_id=uuid4, begins="end").load()
        yield restricted


async def followed(store: EventStore, stream: str) -> list[StoredEvent]:
    """The events of this stream that a follower is given."""
    seen = []
    async with aclosing(store.follow(after=None, prefix=WORKER_STREAMS)) as items:
        async for item in items:
            if isinstance(item, CaughtUp):
                break
            if isinstance(item, StoredEvent) and item.stream == stream:
                seen.append(item)
    return seen


async def worker_in(store: EventStore) -> UUID:
    worker = Worker(uuid4())
    await append(store, worker, [(CREATED, recorded(worker, CREATED, NOW, "c").metadata)])
    return worker.id


async def broken_and_skipped(restricted: Restricted, worker_id: UUID) -> None:
    """An event of the worker that nobody can read, held by the projector, and skipped by an operator through it."""
    (event,) = await append_raw(restricted.store("cml-writer"), stream_of(worker_id), binary())
    quarantine = Quarantine(restricted.store("cml-projector"), WORKERS)
    await quarantine.load()
    await quarantine.hold(Broken.of(event, ValueError("it is no JSON")))
    await quarantine.decide(
        stream_of(worker_id), event.revision, Decision(What.SKIPPED, "ann", None, "no use")
    )


async def test_lifecycle_appends_and_reads_with_its_user(restricted: Restricted):
    store = restricted.store("cml-writer")
    await store.ping()
    await ensure_begun(store, uuid4)
    worker_id = await worker_in(store)
    assert (await Workers(store).newest(worker_id)).revision == 0
    assert (await Workers(store).newest(uuid4())).revision < 0
    await Denials(store, now=utc_now, new_id=uuid4).record({"user": "portal"})
    assert (await store.last(DENIALS_STREAM)).revision >= 0


async def test_lifecycle_goes_on_with_a_worker_whose_broken_event_was_skipped(restricted: Restricted):
    service = Service(restricted.store("cml-writer"))
    worker_id = await worker_in(service.store)
    await broken_and_skipped(restricted, worker_id)
    assert await service.command(StartCMLWorker(worker_id=worker_id)) == Ack()
    assert (await Workers(service.store).newest(worker_id)).revision == 2  # what became of the command


async def test_the_relay_follows_and_saves_with_its_user(restricted: Restricted):
    worker_id = await worker_in(restricted.store("cml-writer"))
    store = restricted.store("cml-relay")
    checkpoint = RelayCheckpoint(store, new_id=uuid4, begins="end")
    await checkpoint.load()
    (event,) = await followed(store, stream_of(worker_id))
    await checkpoint.save(event.position)
    saved = await load_saved(store)
    assert saved is not None
    assert saved.position == event.position
    await store.trim(RELAY_STREAM, KEEP)  # is done by the shipped metadata
    quarantine = Quarantine(store, RELAY)
    await quarantine.load()
    await quarantine.hold(Broken.of(event, ValueError("for the test")))
    by_operator = Quarantine(restricted.store("cml-projector"), RELAY)
    await by_operator.load()
    await by_operator.decide(event.stream, 0, Decision(What.TAKEN_UP, "ann", None, None))


async def test_the_projector_follows_with_its_user(restricted: Restricted):
    worker_id = await worker_in(restricted.store("cml-writer"))
    (event,) = await followed(restricted.store("cml-projector"), stream_of(worker_id))
    assert decode(event).event == CREATED


async def test_the_ec2_adapter_reads_with_its_user_also_what_was_skipped(restricted: Restricted):
    worker_id = await worker_in(restricted.store("cml-writer"))
    await broken_and_skipped(restricted, worker_id)
    store = restricted.store("cml-reader")
    assert (await Workers(store).newest(worker_id)).revision == 1
    assert (await load_ledger(store, worker_id)).worker.revision == 0


FORBIDDEN: dict[str, tuple[str, ...]] = {
    "cml-writer": ("$all", "$users", "$user-admin", "$settings", "cml_quarantine-relay"),
    "cml-reader": ("$all", "$users", "$user-admin", "$settings"),
    "cml-relay": ("$users", "$user-admin", "$user-cml-writer"),
    "cml-projector": ("$users", "$user-admin", "$user-cml-writer"),
}
"""What each user must not read."""
NOT_WRITTEN: dict[str, tuple[str, ...]] = {
    "cml-writer": ("cml_quarantine-relay", f"cml_quarantine-{WORKERS}"),
    "cml-reader": (
        f"{WORKER_STREAMS}x",
        RELAY_STREAM,
        DENIALS_STREAM,
        "cml_quarantine-relay",
        f"cml_quarantine-{WORKERS}",
    ),
    "cml-relay": (f"{WORKER_STREAMS}x", DENIALS_STREAM, f"cml_quarantine-{WORKERS}"),
    "cml-projector": (f"{WORKER_STREAMS}x", RELAY_STREAM, DENIALS_STREAM),
}
"""What it must not append to."""


def test_all_users_of_the_script_are_looked_at(restrict: ModuleType):
    assert {user: variable for user, (_, variable) in restrict.USERS.items()} == PASSWORDS
    assert {*FORBIDDEN} == {*NOT_WRITTEN} == {*PASSWORDS}


@pytest.mark.parametrize("user", PASSWORDS)
async def test_no_user_does_more_than_its_role(restricted: Restricted, user: str):
    worker_id = await worker_in(restricted.store("cml-writer"))
    store, client = restricted.store(user), await restricted.client(user)
    for stream in FORBIDDEN[user]:
        with pytest.raises(StoreForbiddenError, match="does not let our user do this"):
            await (anext(store.follow(after=None)) if stream == "$all" else store.read(stream))
    for stream in NOT_WRITTEN[user]:
        with pytest.raises(StoreForbiddenError, match="does not let our user do this"):
            await append_raw_blindly(store, stream)
    for stream in (stream_of(worker_id), RELAY_STREAM, DENIALS_STREAM, f"cml_quarantine-{WORKERS}"):
        calls: list[Callable[[], Awaitable[object]]] = [
            partial(client.set_stream_metadata, stream, metadata={"$maxCount": 1}),
            partial(client.delete_stream, stream, current_version=StreamState.ANY),
            partial(client.tombstone_stream, stream, current_version=StreamState.ANY),
        ]
        for call in calls:
            with pytest.raises(AccessDeniedError):
                await call()
    assert len(await restricted.store("cml-writer").read(stream_of(worker_id))) == 1


async def append_raw_blindly(store: EventStore, stream: str) -> None:
    """Without a look at what is there, which might be what is forbidden."""
    await store.append(stream, [binary()], expected=-1)


async def test_who_has_another_password_is_not_let_in(restricted: Restricted):
    store = KurrentDbEventStore(restricted.uri("cml-writer").replace(":cml-writer@", ":other@"))
    restricted.resources.push_async_callback(store.close)
    with pytest.raises(StoreConfigurationError, match="user name and password"):
        await store.ping()


async def test_lifecycle_that_starts_before_the_relay_on_a_new_store_waits_for_it(
    new: Restricted, capsys: pytest.CaptureFixture[str]
):
    store = new.store("cml-writer")
    starting = Starting(LIFECYCLE)
    (check,) = starting.running.checks
    async with AmqpBroker() as broker, AsyncExitStack() as stack:
        part = Dependency("event store", store.ping, (StoreUnavailableError, StoreConfigurationError))
        stack.push_async_callback(part.close)
        given = Infrastructure(Settings(), broker.url, store, dependencies={Part.STORE: part})
        task = asyncio.create_task(starting.started(given, stack))
        async with asyncio.timeout(20):
            while check() == "it starts" and not task.done():
                await asyncio.sleep(0.05)
        assert check() == "it cannot start yet: the relay has not begun its stream cml_relay yet"
        await asyncio.sleep(1.5)  # it has tried again
        assert not task.done()
        await RelayCheckpoint(new.store("cml-relay"), new_id=uuid4).load()
        running = await asyncio.wait_for(task, 20)
        assert [each() for each in running.checks] == [None]
    assert capsys.readouterr().out.count("the role cannot start yet") == 1
