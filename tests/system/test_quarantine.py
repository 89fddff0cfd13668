"""A broken event on the parts of production: the fleet goes on, an operator sees it, decides, and the worker catches up."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import UUID

import pytest

from cml_contracts.client import WorkerClient
from cml_contracts.commands import CreateCMLWorker, UpdateCMLWorkerTags
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from cml_workers.bus.rabbit import declare_topology
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.names import WORKER_STREAMS, stream_of
from support.broken import append_raw, binary
from support.children import module
from support.ports import free_port
from support.postgresql import SpawnedPostgreSQL, private_postgresql
from support.rabbitmq import SpawnedRabbitMQ, private_rabbitmq
from support.roles import Roles
from support.running import COMMAND

RELAY, PROJECTOR = "cml_quarantine-relay", "cml_quarantine-projector-workers"


@pytest.fixture
def rabbitmq(tmp_path: Path) -> Iterator[SpawnedRabbitMQ]:
    with private_rabbitmq(tmp_path / "rabbitmq") as server:
        yield server


@pytest.fixture
def postgresql() -> Iterator[SpawnedPostgreSQL]:
    with private_postgresql() as server:
        yield server


class Fleet:
    """The roles, each a process of its own, their store, and the command line of an operator."""

    def __init__(self, roles: Roles, store: KurrentDbEventStore, ports: dict[str, int]) -> None:
        self.roles = roles
        self.store = store
        self.ports = ports

    async def cli(self, *arguments: str) -> str:
        """What it prints; it must succeed."""
        return await asyncio.to_thread(self._cli, *arguments)

    def _cli(self, *arguments: str) -> str:
        done = subprocess.run(
            [COMMAND, *arguments],
            env={**self.roles.environment, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def until_listed(self, number: int, *conditions: str) -> list[dict[str, Any]]:
        """The dead letters that wait, once there are so many."""
        async with asyncio.timeout(120):
            while True:
                content = json.loads(await self.cli("deadletters", "list", *conditions, "--json"))
                found: list[dict[str, Any]] = content["dead_letters"]
                if len(found) == number:
                    return found
                await asyncio.sleep(0.2)

    async def in_quarantine(self, number: int) -> dict[str, dict[str, Any]]:
        """Those of them that are events in quarantine, by its stream."""
        found = await self.until_listed(number, "--cause", "Quarantined")
        return {each["queue"]: each for each in found}

    def ready(self, role: str) -> dict[str, Any]:
        with urlopen(f"http://127.0.0.1:{self.ports[role]}/readyz", timeout=30) as answer:
            content: dict[str, Any] = json.load(answer)
            return content

    async def until_ready(self, role: str, **expected: int) -> dict[str, Any]:
        async with asyncio.timeout(120):
            while True:
                content = await asyncio.to_thread(self.ready, role)
                if all(content[name] == value for name, value in expected.items()):
                    return content
                await asyncio.sleep(0.2)


@pytest.fixture
async def fleet(
    rabbitmq: SpawnedRabbitMQ, postgresql: SpawnedPostgreSQL, tmp_path: Path
) -> AsyncIterator[Fleet]:
    await declare_topology(rabbitmq.url)
    port = free_port()
    ports = {role: free_port() for role in ("relay", "projector")}
    with (
        Ec2Simulator(transition_seconds=0.3) as simulator,
        module("support.kurrentdb_standin", "--port", str(port)),
    ):
        roles = Roles(
            tmp_path,
            each=lambda role: {"CML_HEALTH_PORT": str(ports[role])} if role in ports else {},
            RABBITMQ_URL=rabbitmq.url,
            KURRENTDB_URI=f"esdb://127.0.0.1:{port}?tls=false",
            DATABASE_URL=postgresql.url,
            AWS_ENDPOINT_URL=simulator.url,
            CML_VISIBILITY_GRACE_SECONDS="3",
            CML_AUTHORIZE="false",
            CML_REMINDER_SECONDS="3600",
        )
        store = KurrentDbEventStore(roles.environment["KURRENTDB_URI"])
        try:
            async with asyncio.timeout(120):
                while not all(roles.ready(name) for name in roles.processes):
                    await asyncio.sleep(0.1)
            yield Fleet(roles, store, ports)
            assert all(process.poll() is None for process in roles.processes.values()), roles.log()
        finally:
            await store.close()
            roles.kill()
    assert not [each for each in roles.tracebacks() if "lifecycle" not in each]


@pytest.mark.timeout(600)
async def test_a_broken_event_comes_the_fleet_goes_on_an_operator_decides_and_the_worker_catches_up(
    fleet: Fleet,
):
    client = WorkerClient(fleet.roles.environment["RABBITMQ_URL"], deadline=400)
    seen: dict[UUID, list[int]] = {}
    async with client, client.events("cml.worker.#") as events:

        async def collect() -> None:
            async for event in events:
                seen.setdefault(event.worker_id, []).append(event.revision)

        async def until_seen(worker_id: UUID, revisions: list[int]) -> None:
            async with asyncio.timeout(120):
                while list(dict.fromkeys(seen.get(worker_id, []))) != revisions:
                    await asyncio.sleep(0.1)

        async def created(name: str) -> UUID:
            create = CreateCMLWorker(
                name=name, aws_region="us-east-1", ami_id=DEMO_IMAGES["us-east-1"], created_by="ann"
            )
            result = await client.send(create)
            assert result.worker_id, result
            async with asyncio.timeout(120):
                while (view := await client.worker(result.worker_id)) is None or view.status != "RUNNING":
                    await asyncio.sleep(0.1)
            return result.worker_id

        async def tagged(worker_id: UUID, value: str) -> None:
            tag = UpdateCMLWorkerTags(worker_id=worker_id, tags={"n": value}, updated_by="ann")
            result = await client.send(tag)
            assert result.problem is None, result

        collecting = asyncio.create_task(collect())
        broken, other = await created("lab-1"), await created("lab-2")
        stream = stream_of(broken)
        before = len(await fleet.store.read(stream))
        await append_raw(fleet.store, f"{WORKER_STREAMS}pool", binary())  # another application's
        await append_raw(fleet.store, stream, binary())

        # The fleet goes on; a command to the worker becomes a dead letter that says why.
        letters = await fleet.in_quarantine(2)
        waiting = asyncio.create_task(tagged(broken, "1"))
        await tagged(other, "1")
        await tagged(await created("lab-3"), "1")
        await until_seen(other, list(range(len(await fleet.store.read(stream_of(other))))))
        for role, quarantine in (("relay", RELAY), ("projector", PROJECTOR)):
            content = await fleet.until_ready(role, workers_held=1, events_not_ours=1)
            assert content["ready"] is True
            assert f"{stream}@{before} at position" in " ".join(content["warnings"][role])
            letter = letters[quarantine]
            assert f"{stream}@{before} at position" in letter["reason"]
            shown = json.loads(await fleet.cli("deadletters", "show", letter["id"], "--json"))
            assert (shown["headers"]["stream"], shown["headers"]["revision"]) == (stream, before)
            assert shown["headers"]["position"]
        (failed,) = await fleet.until_listed(1, "--cause", "HandlerFailed")
        assert f"{stream}@{before} at position" in failed["reason"]
        assert not waiting.done()
        assert list(dict.fromkeys(seen[broken])) == list(range(before))

        # Taken up too early it is the same dead letter again.
        await fleet.cli("deadletters", "redrive", letters[RELAY]["id"], "--by", "ann")
        async with asyncio.timeout(120):
            while (await fleet.in_quarantine(2))[RELAY]["deaths"] != 2:
                await asyncio.sleep(0.2)

        # Skipped, it goes on; whoever dies meanwhile.
        for letter in letters.values():
            await fleet.cli("deadletters", "discard", letter["id"], "--reason", "not ours", "--by", "ann")
        fleet.roles.kill_and_start("relay")
        fleet.roles.kill_and_start("projector")
        await fleet.in_quarantine(0)
        await fleet.cli("deadletters", "redrive", failed["id"], "--by", "ann")
        await waiting
        await tagged(broken, "2")
        last = len(await fleet.store.read(stream)) - 1
        await until_seen(broken, [each for each in range(last + 1) if each != before])
        async with asyncio.timeout(120):
            while (view := await client.worker(broken)) is None or view.revision != last:
                await asyncio.sleep(0.1)
        assert view.tags["n"] == "2"
        for role in ("relay", "projector"):
            content = await fleet.until_ready(role, workers_held=0)
            assert content["warnings"] == {}
        shown = json.loads(await fleet.cli("deadletters", "show", letters[RELAY]["id"], "--json"))
        history = [(each["what"], each["by"], each["reason"]) for each in shown["history"]]
        assert [what for what, *_ in history] == ["died", "redriven", "died", "discarded"]
        assert history[-1][1:] == ("ann", "not ours")
        again = await fleet.cli("rebuild", "--verify")
        assert "equal to the one in use before" in again
        collecting.cancel()
