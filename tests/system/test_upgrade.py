"""What an earlier version stored is read, shown, answered and continued by this one."""

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from cml_contracts.commands import UpdateCMLWorkerStatus
from cml_contracts.results import OperationResult
from cml_workers.eventstore.names import worker_of
from cml_workers.eventstore.sqlite import SqliteEventStore
from support import old_version
from support.ec2 import SimulatorAdmin
from support.invariants import plain, violations
from support.observed import Observed, observe, stored_events
from support.plain_amqp import PlainAmqp
from support.running import RunningSystem

Command = Mapping[str, Any]
by_stream = attrgetter("stream")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningSystem]:
    """Not started yet; its data folder is ``tmp_path / "data"``."""
    system = RunningSystem(tmp_path / "data")
    yield system
    system.kill()


async def sent(client: PlainAmqp, commands: Iterable[Command], **changes: Any) -> list[dict[str, Any]]:
    """The replies to these commands, sent at once under their old ids; ``changes``: of their bodies."""
    correlations = [
        await client.publish(
            "cml.commands",
            each["type"],
            json.dumps({**each["body"], **changes}).encode(),
            message_id=each["command_id"],
        )
        for each in commands
    ]
    return [(await client.replies_to(each))[0] for each in correlations]


def recorded(commands: Iterable[Command]) -> list[Command]:
    """Those with a result for good. A status update is a query: a repetition is answered by what EC2 shows then."""
    return [each for each in commands if each["type"] != UpdateCMLWorkerStatus.TYPE]


async def with_other_bodies(client: PlainAmqp, commands: Sequence[Command]) -> None:
    """The same ids with another body: rejected, and each a dead letter."""
    client.dead_expected += len(commands)
    replies = await sent(client, commands, reason="another body")
    assert {(each["problem"] or {}).get("code") for each in replies} == {"DuplicateCommand"}


async def result_of(client: PlainAmqp, command: Command) -> dict[str, Any]:
    """Wait until its operation has ended."""
    async with asyncio.timeout(60):
        while True:
            found = await client.query("operation.get", command_id=command["command_id"])
            if found["data"] and found["data"].get("result"):
                result: dict[str, Any] = found["data"]["result"]
                return result
            await asyncio.sleep(0.2)


async def until_shown(client: PlainAmqp, worker_id: str, revision: int) -> dict[str, Any]:
    """Wait until the read model has got so far."""
    async with asyncio.timeout(30):
        while True:
            shown = await client.query("worker.get", worker_id=worker_id)
            if shown["data"] and shown["data"]["revision"] >= revision:
                data: dict[str, Any] = shown["data"]
                return data
            await asyncio.sleep(0.1)


async def test_streams_of_an_earlier_version_are_folded_to_what_it_showed(tmp_path: Path):
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    await old_version.append_events(store)
    workers, operations, instances = old_version.seen()
    commands = old_version.answers()
    observed = Observed(
        events=await stored_events(store),
        instances=instances,
        replies={each["command_id"]: [OperationResult.model_validate(each["result"])] for each in commands},
        confirmed=frozenset(each["command_id"] for each in commands),
        status_updates={
            each["command_id"] for each in commands if each["type"] == UpdateCMLWorkerStatus.TYPE
        },
        rows=workers,
        operations=operations,
    )
    assert len(observed.streams()) > 20
    assert violations(observed) == []
    await store.close()


async def test_a_store_of_an_earlier_version_is_projected_and_its_commands_are_recognised(
    running: RunningSystem,
):
    store = SqliteEventStore(running.data_dir / "events.sqlite3")
    await old_version.append_events(store)
    await store.close()
    endpoints = running.start()
    workers, operations, _ = old_version.seen()
    commands = recorded(old_version.answers())
    async with PlainAmqp(endpoints["amqp"], inside=True) as client:
        for worker in workers:
            shown = await until_shown(client, str(worker.id), worker.revision)
            assert plain(worker.model_dump(mode="json")).items() <= plain(shown).items()
        for each in operations:
            found = await client.query("operation.get", command_id=each.command_id)
            assert plain(each.model_dump(mode="json")).items() <= plain(found["data"]).items()
        assert plain(await sent(client, commands)) == plain([each["result"] for each in commands])
        await with_other_bodies(client, commands)


async def test_a_system_of_an_earlier_version_goes_on_where_it_was_killed(
    running: RunningSystem, tmp_path: Path
):
    data_dir, answers = old_version.unpack_system(tmp_path)
    commands = recorded(answers)
    assert data_dir == running.data_dir
    endpoints = running.start()
    async with PlainAmqp(endpoints["amqp"], disturbed=True) as client:
        # It was killed while EC2 throttled some of them; now EC2 does not.
        results = [each["result"] or await result_of(client, each) for each in commands]
        under_way = [result for each, result in zip(commands, results, strict=True) if not each["result"]]
        assert [each["outcome"] for each in under_way] == ["succeeded"] * 4
        assert plain(await sent(client, commands)) == plain(results)
        await with_other_bodies(client, commands)

        of_name = {each["body"].get("name"): each["body"].get("worker_id") for each in commands}
        runs, stopped = of_name["runs"], of_name["stopped"]
        tagged = await client.command("update_tags", worker_id=runs, tags={"lab": "bgp"})
        assert tagged["data"].items() >= {"course": "ccna", "lab": "bgp"}.items()
        assert (await client.command("start", worker_id=stopped))["data"] is True
        await client.until_status(stopped, "RUNNING")
        assert (await client.command("terminate", worker_id=runs))["data"] is True
        await client.until_event(runs, "cml.worker.terminated.v1")
        for worker_id in filter(None, of_name.values()):
            await client.command("update_status", worker_id=worker_id)  # as after any quiet time

        store = SqliteEventStore(running.data_dir / "events.sqlite3")
        for stream, events in groupby(sorted(await stored_events(store), key=by_stream), key=by_stream):
            *_, last = events
            if last.revision > 0:  # of a worker that is more than one rejected command
                await until_shown(client, str(worker_of(stream)), last.revision)
        replies = {
            result["command_id"]: [OperationResult.model_validate(result)]
            for result in results
            if result["worker_id"]
        }
        observed = await observe(
            store,
            SimulatorAdmin(endpoints["ec2"]),
            f"sqlite:///{running.data_dir}/read-model.sqlite3",
            replies,
            replies.keys(),
        )
        await store.close()
    assert violations(observed) == []
