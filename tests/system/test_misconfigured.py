"""Wrong configuration: one line that says how to fix it, and an exit code, within seconds.

On a store and a database that were given, too: only what a role says when it is started with a changed address of theirs. Nothing is
changed there but in a database of the tests' own and, by roles that run, in the streams of cml-workers.
"""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit
from uuid import uuid4

import aio_pika
import asyncpg  # type: ignore[import-untyped]
import pytest

from cml_workers.bus.rabbit import declare_topology
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.process.registry import ROLES
from support.certificates import Certificates
from support.kurrentdb import GIVEN as GIVEN_STORE
from support.kurrentdb import relay_may_begin
from support.kurrentdb_standin import KurrentDbStandIn
from support.postgresql import GIVEN as GIVEN_DATABASE
from support.postgresql import private_postgresql
from support.rabbitmq import SpawnedRabbitMQ, private_rabbitmq
from support.running import COMMAND, unconfigured


@dataclass
class Parts:
    """Servers that are in order, by their addresses; our own ask for TLS and a password, those that were given perhaps not."""

    rabbitmq: SpawnedRabbitMQ
    store: str
    database: str
    certificates: Certificates
    folder: Path

    @property
    def bus(self) -> str:
        return f"amqps://guest:guest@127.0.0.1:{self.rabbitmq.tls_port}/?cafile={self.certificates.authority}"

    def settings(self, **changes: str) -> dict[str, str]:
        return {
            "RABBITMQ_URL": self.bus,
            "KURRENTDB_URI": self.store,
            "DATABASE_URL": self.database,
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "CML_AUTHORIZE": "false",
            "CML_DATA_DIR": str(self.folder),
            **changes,
        }

    def passwords(self) -> list[str]:
        """That nobody may read in what a role says."""
        return [each for url in (self.store, self.database) if (each := urlsplit(url).password)]


@pytest.fixture(scope="module")
def rabbitmq(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[SpawnedRabbitMQ]:
    tls = certificates.key, certificates.certificate
    with private_rabbitmq(tmp_path_factory.mktemp("rabbitmq"), tls=tls) as server:
        yield server


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[str]:
    """A database of our own on the server that was given; or a server of our own."""
    if os.environ.get(GIVEN_DATABASE):
        yield request.getfixturevalue("postgresql_url")
    else:
        tls = certificates.key.read_text(), certificates.certificate.read_text()
        with private_postgresql(password="secret", tls=tls) as server:
            yield (
                f"postgresql://cml:secret@127.0.0.1:{server.port}/postgres"
                f"?sslmode=verify-full&sslrootcert={certificates.authority}"
            )


@pytest.fixture
async def store(certificates: Certificates) -> AsyncIterator[str]:
    """The one that was given; or the stand-in."""
    if given := os.environ.get(GIVEN_STORE):
        store = KurrentDbEventStore(given)
        await relay_may_begin(store)
        await store.close()
        yield given
        return
    tls = certificates.key.read_bytes(), certificates.certificate.read_bytes()
    node = KurrentDbStandIn(users={"me": "secret"}, tls=tls)
    await node.start()
    yield f"esdb://me:secret@127.0.0.1:{node.port}?TlsCaFile={certificates.authority}"
    await node.stop()


@pytest.fixture
def parts(
    rabbitmq: SpawnedRabbitMQ, store: str, database: str, certificates: Certificates, tmp_path: Path
) -> Parts:
    return Parts(rabbitmq, store, database, certificates, tmp_path)


def with_password(url: str, password: str) -> str:
    """Who has none gets one."""
    parsed = urlsplit(url)
    server = parsed.netloc.rpartition("@")[2]
    return parsed._replace(netloc=f"{parsed.username or 'nobody'}:{password}@{server}").geturl()


def with_options(url: str, **options: object) -> str:
    parsed = urlsplit(url)
    before = {name: values[-1] for name, values in parse_qs(parsed.query).items()}
    asked = {**before, **{name: str(value) for name, value in options.items()}}
    return parsed._replace(query=urlencode(asked, safe="/")).geturl()


def insecure(store: str) -> bool:
    return parse_qs(urlsplit(store).query.lower()).get("tls", ["true"])[-1] == "false"


async def lets_in(database: str) -> bool:
    """Whoever asks."""
    try:
        await (await asyncpg.connect(database)).close()
    except asyncpg.InvalidAuthorizationSpecificationError:
        return False
    return True


Change = Callable[[Parts], str]
"""The setting that is wrong."""


def a_stranger_signed_the_bus(parts: Parts) -> str:
    return parts.bus.replace(str(parts.certificates.authority), str(parts.certificates.stranger))


def wrong_password_of_the_store(parts: Parts) -> str:
    if insecure(parts.store):
        pytest.skip("the store that was given asks nobody for a password")
    return with_password(parts.store, "wrong")


def a_stranger_signed_the_store(parts: Parts) -> str:
    if insecure(parts.store):
        pytest.skip("the store that was given has no TLS")
    return with_options(parts.store, TlsCaFile=parts.certificates.stranger)


def tls_that_the_store_lacks(parts: Parts) -> str:
    if not insecure(parts.store):
        pytest.skip("the store that was given has TLS")
    return with_password(parts.store.replace("tls=false", "tls=true"), "wrong")


def wrong_password_of_the_database(parts: Parts) -> str:
    changed = with_password(parts.database, "wrong")
    if asyncio.run(lets_in(changed)):
        pytest.skip("the server that was given lets everybody in")
    return changed


def no_such_database(parts: Parts) -> str:
    return urlsplit(parts.database)._replace(path=f"/cml_test_nowhere_{uuid4().hex}").geturl()


def a_stranger_signed_the_database(parts: Parts) -> str:
    return with_options(parts.database, sslmode="verify-full", sslrootcert=parts.certificates.stranger)


def an_option_of_the_database(**option: str) -> Change:
    return lambda parts: with_options(parts.database, **option)


async def started(role: str, settings: dict[str, str]) -> tuple[int, list[str]]:
    """The exit code, and what it said besides its log."""
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *("role", role),
        env={**unconfigured(), "GRPC_VERBOSITY": "ERROR", **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    lines = [line for line in said.decode().splitlines() if line and not line.startswith("{")]
    assert process.returncode is not None
    return process.returncode, lines


WRONG: list[tuple[str, Change, str]] = [
    ("RABBITMQ_URL", a_stranger_signed_the_bus, "certificate"),
    ("RABBITMQ_URL", lambda parts: parts.bus.replace(":guest@", ":wrong@"), "password"),
    ("RABBITMQ_URL", lambda parts: f"{parts.bus.partition('=')[0]}=/none.pem", "/none.pem"),
    ("KURRENTDB_URI", wrong_password_of_the_store, "password"),
    ("KURRENTDB_URI", a_stranger_signed_the_store, "TlsCaFile"),
    *([("KURRENTDB_URI", tls_that_the_store_lacks, "tls=false")] if os.environ.get(GIVEN_STORE) else []),
    ("DATABASE_URL", wrong_password_of_the_database, "password"),
    ("DATABASE_URL", no_such_database, "nowhere"),
    ("DATABASE_URL", a_stranger_signed_the_database, "ssl"),
    ("DATABASE_URL", an_option_of_the_database(sslmode="require", sslrootcert="/none.pem"), "sslrootcert"),
    ("DATABASE_URL", an_option_of_the_database(sslmode="always"), "verify-full"),
    ("DATABASE_URL", an_option_of_the_database(colour="blue"), "colour"),
]


@pytest.mark.parametrize(("name", "change", "what"), WRONG, ids=[f"{name}-{what}" for name, _, what in WRONG])
async def test_one_line_says_what_to_fix(parts: Parts, name: str, change: Change, what: str):
    settings = parts.settings(**{name: await asyncio.to_thread(change, parts)})
    code, lines = await started("projector", settings)
    assert len(lines) == 1, lines
    assert what in lines[0]
    assert not [each for each in parts.passwords() if each in lines[0]]
    assert code in (2, 3)


async def test_a_queue_with_other_arguments_is_named_with_the_remedy(parts: Parts):
    url = parts.settings()["RABBITMQ_URL"]
    await declare_topology(url)
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.queue_delete(LIFECYCLE_COMMANDS.name)
        await channel.declare_queue(LIFECYCLE_COMMANDS.name, durable=True, arguments={"x-max-length": 5})
    code, lines = await started("lifecycle", parts.settings())
    assert len(lines) == 1, lines
    assert "'cml.lifecycle.commands' exists with other arguments" in lines[0]
    assert "delete" in lines[0]
    assert code == 2
    async with await aio_pika.connect(url) as connection:
        await (await connection.channel()).queue_delete(LIFECYCLE_COMMANDS.name)


async def test_a_role_that_still_starts_can_be_ended(parts: Parts):
    connected = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    mute = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = f"amqp://guest:guest@127.0.0.1:{mute.sockets[0].getsockname()[1]}/"
    process = await asyncio.create_subprocess_exec(
        COMMAND, "role", "lifecycle", env={**unconfigured(), **parts.settings(RABBITMQ_URL=url)}
    )
    try:
        async with asyncio.timeout(60):
            await connected.wait()
            process.terminate()
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        mute.close()


@pytest.mark.parametrize("role", ROLES)
async def test_every_role_runs_on_these_parts(parts: Parts, role: str):
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *("role", role),
        env={**unconfigured(), **parts.settings()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while b"is ready" not in (line := await process.stderr.readline()):
                assert line, "it ended"
        process.terminate()
        assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
