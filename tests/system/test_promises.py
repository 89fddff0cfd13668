"""What the README promises to whoever uses the system from outside, each promise by itself."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest
from yarl import URL

from cml_contracts.client import WorkerClient
from cml_contracts.envelope import EventEnvelope
from cml_contracts.events import LaunchRequested
from cml_contracts.queries import WorkerView
from cml_contracts.topology import subscriber_queue
from cml_workers.bus.topology import EC2_TRIGGERS, TRIGGERS_EXCHANGE
from cml_workers.eventstore.names import WORKER_STREAMS
from cml_workers.eventstore.port import CaughtUp, StoredEvent
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import load
from cml_workers.foundation.secrets import redacted
from cml_workers.readmodels.workers.fold import worker_row
from support.buses import emptied
from support.mailbox import Mailbox
from support.nets import warnings
from support.plain_amqp import PlainAmqp
from support.running import COMMAND, RunningSystem, unconfigured

CREATE: dict[str, Any] = {
    "name": "lab",
    "aws_region": "us-east-1",
    "instance_type": "m5.large",
    "created_by": "ann",
}


@pytest.fixture
def running(amqp_broker: tuple[str, str | None], tmp_path: Path) -> Iterator[RunningSystem]:
    kind, url = amqp_broker
    if url:
        asyncio.run(emptied(url))
    running = RunningSystem(tmp_path / kind, **({"RABBITMQ_URL": url} if url else {}))
    yield running
    running.kill()


async def stored(running: RunningSystem) -> tuple[list[StoredEvent], dict[UUID, WorkerView | None]]:
    """Every event of a worker in the store, and each worker as the fold of its stream."""
    store = SqliteEventStore(running.data_dir / "events.sqlite3")
    events = []
    async for item in store.follow(after=None, prefix=WORKER_STREAMS):
        if isinstance(item, CaughtUp):
            break
        if isinstance(item, StoredEvent):
            events.append(item)
    ids = {UUID(each.stream.removeprefix(WORKER_STREAMS)) for each in events}
    views = {worker_id: worker_row(await load(store, worker_id)) for worker_id in ids}
    await store.close()
    return events, views


async def some_lives(client: PlainAmqp, count: int) -> None:
    """Workers that are created, tagged, stopped and terminated, all at once; one command is rejected for each."""

    async def life(number: int) -> None:
        created = await client.command("create", **CREATE | {"name": f"lab-{number}"})
        worker_id = created["worker_id"]
        await client.until_status(worker_id, "RUNNING")
        tags, stop = await asyncio.gather(
            client.command("update_tags", worker_id=worker_id, tags={"a": str(number)}, updated_by="ann"),
            client.command("stop", worker_id=worker_id),
        )
        assert (tags["data"]["a"], stop["data"]) == (str(number), True)
        await client.until_status(worker_id, "STOPPED")
        if number % 2:
            await client.command("terminate", worker_id=worker_id)
            await client.until_event(worker_id, "cml.worker.terminated.v1")
            refused = await client.command("start", worker_id=worker_id)
            assert refused["problem"]["code"] == "WorkerTerminated"

    await asyncio.gather(*(life(number) for number in range(count)))


async def test_every_event_comes_once_and_in_order_to_a_queue_that_was_bound_before(running: RunningSystem):
    amqp = running.start()["amqp"]
    everything = await Mailbox.opened(amqp, exchange="cml.events")
    stops = await Mailbox.opened(amqp, exchange="cml.events", pattern="cml.worker.stop_requested.v1")
    async with PlainAmqp(amqp, inside=True) as client:
        await some_lives(client, 6)
        events, views = await stored(running)
        got = await everything.taken(amqp, len(events))
        assert sorted(each["id"] for each in got) == sorted(str(each.event_id) for each in events)
        by_worker = sorted(got, key=lambda each: str(each["subject"]))  # stable: in the order they came
        stored_by_worker = sorted(events, key=lambda event: event.stream)
        for each, event in zip(by_worker, stored_by_worker, strict=True):
            assert each["type"] == event.type
            assert each["streamrevision"] == event.revision
            assert each["subject"] == event.stream.removeprefix(WORKER_STREAMS)
            assert each["data"] == json.loads(event.data)
            assert {"specversion", "source", "time", "datacontenttype"} <= each.keys()
        assert len(await stops.taken(amqp, 6)) == 6

        for worker_id, view in views.items():  # what was published last is in the read model by now, or soon
            async with asyncio.timeout(10):
                while True:
                    shown = WorkerView.model_validate(
                        (await client.query("worker.get", worker_id=str(worker_id)))["data"]
                    )
                    assert view
                    if shown.revision == view.revision:
                        break
                    await asyncio.sleep(0.05)
            assert shown == view
        listed = (await client.query("worker.list", limit=100, sort="name"))["data"]["workers"]
        assert [WorkerView.model_validate(each) for each in listed] == sorted(
            (view for view in views.values() if view), key=lambda view: view.name
        )
        for event in events:
            if "observed" not in event.type:
                command_id = json.loads(event.metadata)["command_id"]
                operation = (await client.query("operation.get", command_id=command_id))["data"]
                assert operation["worker_id"] == event.stream.removeprefix(WORKER_STREAMS)
                assert operation["result"] is not None
    assert warnings(running.log()) == []


async def test_a_subscriber_that_was_away_finds_what_came_meanwhile(running: RunningSystem):
    amqp = running.start()["amqp"]
    queue = f"subscriber.{uuid4()}"
    async with WorkerClient(amqp) as subscriber, subscriber.events("cml.worker.#", queue=queue):
        pass  # the queue is there from now on
    async with PlainAmqp(amqp, inside=True) as client:
        created = await client.command("create", **CREATE)
        await client.until_status(created["worker_id"], "RUNNING")
    came: list[EventEnvelope] = []
    for _ in range(2):  # who goes away before it asks for the next one is given the same one again
        async with WorkerClient(amqp) as subscriber, subscriber.events("cml.worker.#", queue=queue) as events:
            came += [await anext(events), await anext(events)]
    assert [each.revision for each in came] == [0, 1, 1, 2]
    assert came[1] == came[2]
    async with await aio_pika.connect(amqp) as connection:
        await (await connection.channel()).queue_delete(subscriber_queue(URL(amqp).user or "guest", queue))


async def test_who_names_no_correlation_is_answered_by_the_command_id_and_who_names_no_address_asks_later(
    running: RunningSystem,
):
    endpoints = running.start()
    printed = running.printed()
    assert all(
        f"{name:12} {url}" in printed or f"{name:12} {redacted(url)}" in printed
        for name, url in endpoints.items()
    )
    async with PlainAmqp(endpoints["amqp"], inside=True) as client:
        commands = await client.channel.get_exchange("cml.commands", ensure=False)
        for command_id, reply_to in ((str(uuid4()), client.reply_to), (str(uuid4()), None)):
            bare = aio_pika.Message(json.dumps(CREATE).encode(), message_id=command_id, reply_to=reply_to)
            await commands.publish(bare, "cml.worker.create.v1")  # not even a type
            if reply_to:
                (result,) = await client.replies_to(command_id)
                assert (result["command_id"], result["outcome"]) == (command_id, "succeeded")
            async with asyncio.timeout(30):
                while True:
                    operation = (await client.query("operation.get", command_id=command_id))["data"]
                    if operation and operation["result"]:
                        break
                    await asyncio.sleep(0.1)
            assert operation["result"]["outcome"] == "succeeded"
            if reply_to:
                assert operation["result"] == result
    assert warnings(running.log()) == []


async def test_a_lost_trigger_is_made_up_for_by_a_reminder_and_by_nothing_else(running: RunningSystem):
    amqp = running.start()["amqp"]
    async with await aio_pika.connect(amqp) as connection:
        triggers = await (await connection.channel()).get_queue(EC2_TRIGGERS.name)
        await triggers.unbind(TRIGGERS_EXCHANGE.name, LaunchRequested.TYPE)
    replies = await Mailbox.opened(amqp)
    async with PlainAmqp(amqp, inside=True) as client:
        await client.publish(
            "cml.commands", "cml.worker.create.v1", json.dumps(CREATE).encode(), reply_to=replies.name
        )
        async with asyncio.timeout(30), client.arrived:
            await client.arrived.wait_for(
                lambda: any(each["type"] == LaunchRequested.TYPE for each in client.events)
            )
        await asyncio.sleep(4)
        assert [each["streamrevision"] for each in client.events] == [0, 1]
    assert await asyncio.to_thread(running.stop) == 0
    assert warnings(running.log()) == []
    running.environment["CML_REMINDER_SECONDS"] = "1"
    amqp = running.start()["amqp"]
    result, *again = await replies.taken(amqp, 1)
    assert result["outcome"] == "succeeded"
    assert again == [result] * len(again)  # reminded of every second


def test_the_demo_finds_everything_as_it_should_be(tmp_path: Path):
    done = subprocess.run(
        [COMMAND, "demo"],
        env={**unconfigured(), "CML_REMINDER_SECONDS": "3600"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All checks passed." in done.stdout
    assert warnings(done.stderr) == []
