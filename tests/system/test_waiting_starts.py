"""A role that starts while a part is away waits for it: alive, not ready, a line when that begins and one when it ends."""

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest

from cml_workers.process.registry import ROLES
from support.children import module, tied
from support.ports import free_port
from support.postgresql import SpawnedPostgreSQL, private_postgresql
from support.rabbitmq import SpawnedRabbitMQ, private_rabbitmq
from support.running import COMMAND, unconfigured
from support.waiting import probed, trouble, until_probed

PARTS = ("RabbitMQ", "event store", "database")


class Parts:
    """Servers that may be away; the store is a process that begins with nothing in it."""

    def __init__(self, rabbitmq: SpawnedRabbitMQ, postgresql: SpawnedPostgreSQL) -> None:
        self.rabbitmq = rabbitmq
        self.postgresql = postgresql
        self.store_port = free_port()
        self.health_port = free_port()
        self._store = AsyncExitStack()

    async def come(self, part: str) -> None:
        match part:
            case "RabbitMQ":
                self.rabbitmq.start()  # not in a thread: it ends with the one that has started it
            case "database":
                self.postgresql.start()
            case _:
                self._store.enter_context(module("support.kurrentdb_standin", "--port", str(self.store_port)))

    async def go(self, part: str) -> None:
        match part:
            case "RabbitMQ":
                await asyncio.to_thread(self.rabbitmq.stop)
            case "database":
                await asyncio.to_thread(self.postgresql.stop)
            case _:
                await self._store.aclose()

    def settings(self, folder: Path) -> dict[str, str]:
        return {
            **unconfigured(),
            "RABBITMQ_URL": self.rabbitmq.url,
            "KURRENTDB_URI": f"esdb://127.0.0.1:{self.store_port}?tls=false",
            "DATABASE_URL": self.postgresql.url,
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "CML_AUTHORIZE": "false",
            "CML_DATA_DIR": str(folder / "data"),
            "CML_HEALTH_PORT": str(self.health_port),
            "CML_DATABASE_CALL_SECONDS": "2",
            "GRPC_VERBOSITY": "ERROR",
        }


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SpawnedRabbitMQ, SpawnedPostgreSQL]]:
    with (
        private_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as rabbitmq,
        private_postgresql() as postgresql,
    ):
        yield rabbitmq, postgresql


@pytest.fixture
async def parts(servers: tuple[SpawnedRabbitMQ, SpawnedPostgreSQL]) -> AsyncIterator[Parts]:
    parts = Parts(*servers)
    await parts.come("event store")
    yield parts
    await parts.go("event store")


class Started:
    """A process of ours and its log."""

    def __init__(self, parts: Parts, folder: Path, *arguments: str, **changes: str) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                tied(COMMAND, *arguments),
                env={**parts.settings(folder), **changes},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def named(part: str) -> str:
    """As ``/readyz`` names it."""
    return part.lower().replace(" ", "-")


@pytest.mark.parametrize("part", PARTS)
async def test_it_waits_alive_and_not_ready_and_starts_when_the_part_comes(
    parts: Parts, tmp_path: Path, part: str
):
    await parts.go(part)
    process = Started(parts, tmp_path, "role", "projector")
    try:
        await until_probed(parts.health_port, "livez", 200)
        await until_probed(
            parts.health_port, "readyz", 503, within=f'"{named(part)}": ["work waits for it since'
        )
        _, content = await asyncio.to_thread(probed, parts.health_port, "readyz")
        assert set(content["problems"]) == {named(part), "projector"}
        await asyncio.sleep(5)  # several tries
        assert process.process.poll() is None
        assert trouble(process.log) == [f"outage begins of the {part}"]
    finally:
        await parts.come(part)
    back = time.monotonic()
    await until_probed(parts.health_port, "readyz", 200)
    print(f"{part}: ready {time.monotonic() - back:.1f} s after it came")
    assert trouble(process.log) == [f"outage {what} of the {part}" for what in ("begins", "ends")]
    assert process.end() == 0
    assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["refuses", "says nothing"])
async def test_one_that_waits_ends_at_once_when_it_is_asked_to(
    parts: Parts, tmp_path: Path, part: str, how: str
):
    async with AsyncExitStack() as stack:
        port = free_port()
        if how == "says nothing":
            listening = asyncio.Event()

            async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                listening.set()
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()

            mute = await asyncio.start_server(say_nothing, "127.0.0.1", port)
            stack.callback(mute.close)
        changes = {
            "RabbitMQ": {"RABBITMQ_URL": f"amqp://guest:guest@127.0.0.1:{port}/"},
            "event store": {"KURRENTDB_URI": f"esdb://127.0.0.1:{port}?tls=false"},
            "database": {"DATABASE_URL": f"postgresql://cml@127.0.0.1:{port}/postgres"},
        }[part]
        process = Started(parts, tmp_path, "role", "projector", **changes)
        if how == "says nothing":
            await asyncio.wait_for(listening.wait(), 60)
        else:
            await until_probed(parts.health_port, "readyz", 503, within=named(part))
        await until_probed(parts.health_port, "livez", 200)
        began = time.monotonic()
        assert await asyncio.to_thread(process.end) == 0
        took = time.monotonic() - began
        print(f"{part} that {how}: ended {took:.1f} s after SIGTERM")
        assert took < 15  # seconds; it is aborted after 20
    assert "did not end cleanly" not in process.log.read_text()
    assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize("role", ROLES)
async def test_every_role_waits_for_all_it_needs(parts: Parts, tmp_path: Path, role: str):
    for part in PARTS:
        await parts.go(part)
    process = Started(parts, tmp_path, "role", role)
    needed = [part for part in PARTS if part != "database" or role == "projector"]
    for part in needed:
        await until_probed(
            parts.health_port, "readyz", 503, within=f'"{named(part)}": ["work waits for it since'
        )
    for part in PARTS:
        await parts.come(part)
    await until_probed(parts.health_port, "readyz", 200)
    assert sorted(trouble(process.log)) == sorted(
        f"outage {what} of the {part}" for what in ("begins", "ends") for part in needed
    )
    assert process.end() == 0


async def test_the_whole_system_in_one_process_waits_too(parts: Parts, tmp_path: Path):
    for part in PARTS:
        await parts.go(part)
    process = Started(parts, tmp_path, "run")
    for part in PARTS:
        await until_probed(
            parts.health_port, "readyz", 503, within=f'"{named(part)}": ["work waits for it since'
        )
    _, content = await asyncio.to_thread(probed, parts.health_port, "readyz")
    assert set(content["problems"]) == {*map(named, PARTS), *ROLES}
    for part in reversed(PARTS):
        await parts.come(part)
    await until_probed(parts.health_port, "readyz", 200)
    assert process.end(signal.SIGINT) == 0


async def test_what_waiting_does_not_change_ends_it_though_another_part_is_away(parts: Parts, tmp_path: Path):
    await parts.go("RabbitMQ")
    try:
        process = Started(
            parts, tmp_path, "role", "projector", DATABASE_URL=f"{parts.postgresql.url}_of_nobody"
        )
        assert await asyncio.to_thread(process.process.wait, 60) == 2
        assert "postgres_of_nobody" in process.log.read_text().splitlines()[-1]
    finally:
        await parts.come("RabbitMQ")


async def test_a_migration_waits_for_who_has_the_tables_and_for_a_database_that_goes_away_meanwhile(
    parts: Parts, tmp_path: Path
):
    """It answers when the role begins; the tables do not, for longer than a call may take, and then the server is restarted."""
    first = Started(parts, tmp_path, "role", "projector")
    await until_probed(parts.health_port, "readyz", 200)
    assert first.end() == 0
    holding = await asyncpg.connect(parts.postgresql.url)
    await holding.execute("BEGIN; LOCK alembic_version IN ACCESS EXCLUSIVE MODE")
    process = Started(parts, tmp_path, "role", "projector")
    await until_probed(parts.health_port, "readyz", 503, within='"projector": ["it starts"]')
    await asyncio.sleep(4)
    assert process.process.poll() is None
    parts.postgresql.restart()
    holding.terminate()
    await until_probed(parts.health_port, "readyz", 200)
    assert process.end() == 0
    assert "Traceback" not in process.log.read_text()
