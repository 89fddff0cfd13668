"""What was published is not published again, whatever becomes of the read model's database."""

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import aio_pika
import pytest

from cml_contracts.topology import EVENTS_EXCHANGE
from cml_workers.eventstore.names import WORKER_STREAMS
from cml_workers.eventstore.relay_stream import RELAY_STREAM
from cml_workers.relay.checkpoint import LOST
from support.postgresql import emptied
from support.running import RunningSystem, problems

pytestmark = pytest.mark.timeout(400)  # each starts the system several times

AUDIT = "audit"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningSystem]:
    system = RunningSystem(tmp_path / "data", CML_HEALTH_PORT="0")
    yield system
    system.kill()


async def subscribe(amqp: str) -> None:
    """A queue that takes every event, and outlives the broker."""
    async with await aio_pika.connect(amqp) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(AUDIT, durable=True)
        await queue.bind(EVENTS_EXCHANGE.name, "cml.#")


async def taken(amqp: str, *until: str) -> list[tuple[str, str]]:
    """Id and type of the events that came, until there is one of each of these types and no other at hand.

    None of them comes again when the broker is killed: it keeps that they were taken before it confirms what is published after that.
    """
    found: list[tuple[str, str]] = []
    async with await aio_pika.connect(amqp) as connection, asyncio.timeout(60):
        channel = await connection.channel()
        queue = await channel.get_queue(AUDIT)
        while True:
            message = await queue.get(fail=False, no_ack=True)
            if message is not None:
                found.append((str(message.message_id), str(message.type)))
            elif set(until) <= {kind for _, kind in found}:
                break
            else:
                await asyncio.sleep(0.1)
        after = await channel.declare_queue("after", durable=True)
        kept = aio_pika.Message(b"", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(kept, after.name)
        return found


async def first_life(running: RunningSystem) -> set[str]:
    """A worker is created, runs, and is tagged; the ids of its events, after which no more come. All of them are saved as published."""
    endpoints = running.start()
    await subscribe(endpoints["amqp"])
    created = await asyncio.to_thread(running.cli_json, "create", "lab-1")
    assert created["outcome"] == "succeeded"
    await asyncio.to_thread(running.cli_json, "tag", "lab-1", "course=ccna")
    events = await taken(
        endpoints["amqp"], "cml.worker.tags_updated.v1", "cml.worker.instance_state_observed.v1"
    )
    async with asyncio.timeout(60):
        while not is_saved(running):
            await asyncio.sleep(0.1)
    return {each for each, _ in events}


def is_saved(running: RunningSystem) -> bool:
    """Whether the relay's checkpoint is that of the last event of a worker."""
    with closing(sqlite3.connect(running.data_dir / "events.sqlite3")) as connection:
        ((saved,),) = connection.execute(
            "SELECT data FROM events WHERE stream = ? ORDER BY position DESC LIMIT 1", (RELAY_STREAM,)
        )
        ((last,),) = connection.execute(
            "SELECT max(position) FROM events WHERE stream LIKE ?", (f"{WORKER_STREAMS}%",)
        )
    return int(json.loads(saved)["position"] or 0) >= int(last)


async def no_old_event_comes(running: RunningSystem, amqp: str, old: set[str]) -> None:
    """What comes next is new."""
    listed = running.cli_json
    async with asyncio.timeout(60):
        while not (await asyncio.to_thread(listed, "list"))["workers"]:
            await asyncio.sleep(0.2)
    await asyncio.to_thread(listed, "terminate", "lab-1")
    new = [each for each, _ in await taken(amqp, "cml.worker.terminated.v1")]
    assert new
    assert not old & set(new)
    assert len(new) == len(set(new))


async def test_a_database_that_is_deleted_while_the_system_is_stopped(running: RunningSystem):
    old = await first_life(running)
    assert running.stop() == 0
    for file in running.data_dir.glob("read-model*"):
        file.unlink()
    endpoints = running.start()
    await no_old_event_comes(running, endpoints["amqp"], old)
    assert problems(endpoints) == {}


@pytest.mark.parametrize("killed", [True, False])
async def test_a_database_that_is_dropped_under_a_running_system(
    running: RunningSystem, postgresql_url: str, killed: bool
):
    running.environment["DATABASE_URL"] = await emptied(postgresql_url)
    old = await first_life(running)
    await emptied(postgresql_url)
    running.kill() if killed else running.stop()
    endpoints = running.start()
    await no_old_event_comes(running, endpoints["amqp"], old)


def lose_the_checkpoint(running: RunningSystem) -> None:
    with closing(sqlite3.connect(running.data_dir / "events.sqlite3")) as connection, connection:
        deleted = connection.execute("DELETE FROM events WHERE stream = ?", (RELAY_STREAM,)).rowcount
    assert deleted > 0


async def test_a_lost_checkpoint_is_said_and_nothing_is_published_until_an_operator_chooses(
    running: RunningSystem,
):
    old = await first_life(running)
    assert running.stop() == 0
    lose_the_checkpoint(running)
    endpoints = running.start()
    end = time.monotonic() + 60
    while LOST not in problems(endpoints).get("relay", []):
        assert time.monotonic() < end
        await asyncio.sleep(0.2)
    assert "CML_RELAY_BEGIN=end" in running.log()
    async with await aio_pika.connect(endpoints["amqp"]) as connection:
        queue = await (await connection.channel()).declare_queue(AUDIT, durable=True, passive=True)
        assert queue.declaration_result.message_count == 0
    running.stop()
    running.environment["CML_RELAY_BEGIN"] = "end"
    endpoints = running.start()
    # What is recorded before it has found the end is before the end.
    while "publishing begins as CML_RELAY_BEGIN says" not in running.log() or problems(endpoints):
        assert time.monotonic() < end + 120
        await asyncio.sleep(0.2)
    await no_old_event_comes(running, endpoints["amqp"], old)
    assert running.stop() == 0


async def test_a_lost_checkpoint_that_begins_at_the_beginning_has_every_event_published_again(
    running: RunningSystem,
):
    old = await first_life(running)
    assert running.stop() == 0
    lose_the_checkpoint(running)
    running.environment["CML_RELAY_BEGIN"] = "beginning"
    endpoints = running.start()
    again = await taken(endpoints["amqp"], "cml.worker.tags_updated.v1")
    assert old <= {each for each, _ in again}
