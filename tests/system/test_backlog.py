"""A relay that has much to catch up on: what is asked for now does not wait for it."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from bench.bench_rebuild import filled
from cml_contracts.client import WorkerClient
from cml_contracts.commands import CreateCMLWorker
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from cml_workers.eventstore.relay_stream import begin, load_saved
from cml_workers.eventstore.sqlite import SqliteEventStore
from support.buses import emptied
from support.roles import Roles

EVENTS, WORKERS = 20_000, 2_000
SOON = 20.0
"""Seconds to the answer that a loaded machine is allowed: the backlog takes it longer."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteEventStore]:
    """Of which nothing was published yet."""
    store = SqliteEventStore(tmp_path / "data" / "events.sqlite3")
    await begin(store, None, uuid4())
    await filled(store, EVENTS, WORKERS)
    yield store
    await store.close()


@pytest.mark.timeout(180)
async def test_a_create_is_answered_soon_while_the_relay_catches_up(
    rabbitmq_url: str, store: SqliteEventStore, tmp_path: Path
):
    await emptied(rabbitmq_url)
    end = await store.end()
    assert end is not None
    with Ec2Simulator(transition_seconds=0.2) as simulator:
        roles = Roles(
            tmp_path,
            processes=["lifecycle", "ec2-adapter"],
            RABBITMQ_URL=rabbitmq_url,
            AWS_ENDPOINT_URL=simulator.url,
            CML_VISIBILITY_GRACE_SECONDS="3",
            CML_AUTHORIZE="false",
        )
        try:
            await until_ready(roles, "lifecycle", "ec2-adapter")
            roles.logs["relay"] = tmp_path / "relay.log"
            roles.processes["relay"] = roles.start("relay")
            await until_ready(roles, "relay")
            async with WorkerClient(rabbitmq_url) as client:
                began = time.monotonic()
                create = CreateCMLWorker(
                    name="lab", aws_region="us-east-1", ami_id=DEMO_IMAGES["us-east-1"], created_by="ann"
                )
                result = await client.send(create, deadline=60)
                took = time.monotonic() - began
            saved = await load_saved(store)
        finally:
            roles.kill()
            await emptied(rabbitmq_url)
    assert result.outcome == "succeeded", result
    assert saved is not None
    assert saved.position is None or store.is_after(end, saved.position), "the backlog was published before"
    print(f"answered after {took:.1f} s, with the checkpoint at {saved.position} of {end}")
    assert took < SOON


async def until_ready(roles: Roles, *names: str) -> None:
    async with asyncio.timeout(60):
        while not all(roles.ready(name) for name in names):
            await asyncio.sleep(0.05)
