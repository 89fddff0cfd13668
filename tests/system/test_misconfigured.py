"""Wrong configuration: one line that says how to fix it, and an exit code, within seconds."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aio_pika
import pytest

from cml_workers.bus.rabbit import declare_topology
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.process.registry import ROLES
from support.certificates import Certificates
from support.kurrentdb_standin import KurrentDbStandIn
from support.postgresql import SpawnedPostgreSQL, private_postgresql
from support.rabbitmq import SpawnedRabbitMQ, private_rabbitmq
from support.running import COMMAND, unconfigured


@dataclass
class Parts:
    """Servers that are in order; every one asks for TLS and a password."""

    rabbitmq: SpawnedRabbitMQ
    kurrentdb: KurrentDbStandIn
    postgresql: SpawnedPostgreSQL
    certificates: Certificates
    folder: Path

    def settings(self, **changes: str) -> dict[str, str]:
        authority = self.certificates.authority
        return {
            "RABBITMQ_URL": f"amqps://guest:guest@127.0.0.1:{self.rabbitmq.tls_port}/?cafile={authority}",
            "KURRENTDB_URI": f"esdb://me:secret@127.0.0.1:{self.kurrentdb.port}?TlsCaFile={authority}",
            "DATABASE_URL": f"postgresql://cml:secret@127.0.0.1:{self.postgresql.port}/postgres"
            f"?sslmode=verify-full&sslrootcert={authority}",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "CML_AUTHORIZE": "false",
            "CML_DATA_DIR": str(self.folder),
            **{
                name: change.format(
                    rabbitmq=self.rabbitmq.tls_port,
                    kurrentdb=self.kurrentdb.port,
                    postgresql=self.postgresql.port,
                    authority=authority,
                    stranger=self.certificates.stranger,
                )
                for name, change in changes.items()
            },
        }


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[tuple[SpawnedRabbitMQ, SpawnedPostgreSQL]]:
    key, certificate = certificates.key, certificates.certificate
    with (
        private_rabbitmq(tmp_path_factory.mktemp("rabbitmq"), tls=(key, certificate)) as rabbitmq,
        private_postgresql(password="secret", tls=(key.read_text(), certificate.read_text())) as postgresql,
    ):
        yield rabbitmq, postgresql


@pytest.fixture
async def parts(
    servers: tuple[SpawnedRabbitMQ, SpawnedPostgreSQL], certificates: Certificates, tmp_path: Path
) -> AsyncIterator[Parts]:
    tls = certificates.key.read_bytes(), certificates.certificate.read_bytes()
    node = KurrentDbStandIn(users={"me": "secret"}, tls=tls)
    await node.start()
    yield Parts(servers[0], node, servers[1], certificates, tmp_path)
    await node.stop()


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


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"RABBITMQ_URL": "amqps://guest:guest@127.0.0.1:{rabbitmq}/?cafile={stranger}"}, "certificate"),
        ({"RABBITMQ_URL": "amqps://guest:wrong@127.0.0.1:{rabbitmq}/?cafile={authority}"}, "password"),
        ({"RABBITMQ_URL": "amqps://guest:guest@127.0.0.1:{rabbitmq}/?cafile=/none.pem"}, "/none.pem"),
        ({"KURRENTDB_URI": "esdb://me:wrong@127.0.0.1:{kurrentdb}?TlsCaFile={authority}"}, "password"),
        ({"KURRENTDB_URI": "esdb://me:secret@127.0.0.1:{kurrentdb}?TlsCaFile={stranger}"}, "TlsCaFile"),
        ({"DATABASE_URL": "postgresql://cml:wrong@127.0.0.1:{postgresql}/postgres"}, "password"),
        ({"DATABASE_URL": "postgresql://cml:secret@127.0.0.1:{postgresql}/nowhere"}, "nowhere"),
        (
            {
                "DATABASE_URL": "postgresql://cml:secret@127.0.0.1:{postgresql}/postgres"
                "?sslmode=verify-full&sslrootcert={stranger}"
            },
            "sslrootcert",
        ),
        ({"DATABASE_URL": "postgresql://cml:secret@127.0.0.1/postgres?sslrootcert=/none.pem"}, "sslrootcert"),
        ({"DATABASE_URL": "postgresql://cml:secret@127.0.0.1/postgres?sslmode=always"}, "verify-full"),
        ({"DATABASE_URL": "postgresql://cml:secret@127.0.0.1/postgres?colour=blue"}, "colour"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
async def test_one_line_says_what_to_fix(parts: Parts, changes: dict[str, str], what: str):
    code, lines = await started("projector", parts.settings(**changes))
    assert len(lines) == 1, lines
    assert what in lines[0]
    assert "secret" not in lines[0]
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
async def test_every_role_runs_on_secured_parts(parts: Parts, role: str):
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
