"""What each kind of command costs in calls, counted at the ports: no noise touches these figures.

All roles run in one process on the real SQLite store and read model, on a bus in memory with the topology that ships,
and on EC2 in memory; one command after the other, without faults, in virtual time: an instance takes half a minute
from state to state, and the wait costs nothing.
"""

import asyncio
import json
import selectors
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID, uuid5

import aioboto3
import aiosqlite

from bench import adapter
from bench.ec2_api import Ec2Api

TRANSITION = 30.0
"""Seconds that EC2 takes from state to state."""
WINDOW = 120.0
"""Seconds in which all that a command causes has happened."""
CROWD = 200
"""Workers at once."""
SLACK = 0.03
"""Real seconds without anything, after which all threads are taken to be idle, and time may pass."""
WORKER = UUID("22222222-2222-4222-8222-222222222222")
KINDS = (
    "store reads",
    "events read",
    "appends",
    "SQL transactions",
    "SQL statements",
    "events published",
    "messages between roles",
    "retries published",
    "replies",
    "messages handled",
)
_NEW = {
    "name": "lab",
    "aws_region": "us-east-1",
    "instance_type": "m5.large",
    "ami_id": "ami-11111111",
    "created_by": "ann",
}
COMMANDS = "cml.commands"
SCRIPT: Mapping[str, tuple[str, str, dict[str, Any], str]] = {
    "create, to RUNNING": (COMMANDS, "cml.worker.create.v1", _NEW, "succeeded"),
    "no-op": (COMMANDS, "cml.worker.start.v1", {}, "succeeded"),
    "rejected": (COMMANDS, "cml.worker.create.v1", _NEW, "rejected"),
    "tag update": (COMMANDS, "cml.worker.update_tags.v1", {"tags": {"course": "ccna"}}, "succeeded"),
    "status update": (COMMANDS, "cml.worker.update_status.v1", {}, "succeeded"),
    "stop, to STOPPED": (COMMANDS, "cml.worker.stop.v1", {}, "succeeded"),
    "start, to RUNNING": (COMMANDS, "cml.worker.start.v1", {}, "succeeded"),
    "get": ("cml.queries", "cml.worker.get.v1", {}, "succeeded"),
    "list": ("cml.queries", "cml.worker.list.v1", {}, "succeeded"),
    "terminate": (COMMANDS, "cml.worker.terminate.v1", {}, "succeeded"),
}
"""In this order, for one worker: exchange, type, body and outcome."""


class PassingTime(asyncio.SelectorEventLoop):
    """A loop on which time passes only when nobody, no thread either, has anything to do: then at once."""

    def __init__(self, counts: adapter.Counts) -> None:
        self._counts = counts
        self._selector_of_time = _Selector(counts)
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        return self._selector_of_time.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        self._counts.busy += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._done)
        return future

    def _done(self, _future: object) -> None:
        self._counts.busy -= 1


@contextmanager
def _databases_counted(counts: adapter.Counts) -> Iterator[None]:
    """Every call that waits for a thread of a database counts as under way."""
    execute: Any = aiosqlite.Connection._execute

    async def counted(*arguments: Any, **named: Any) -> Any:
        counts.busy += 1
        try:
            return await execute(*arguments, **named)
        finally:
            counts.busy -= 1

    cast("Any", aiosqlite.Connection)._execute = counted
    try:
        yield
    finally:
        cast("Any", aiosqlite.Connection)._execute = execute


class _Selector(selectors.SelectSelector):
    def __init__(self, counts: adapter.Counts) -> None:
        super().__init__()
        self.now = 0.0
        self._counts = counts

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        while True:
            ready = super().select(SLACK)
            if ready:
                return ready
            if not self._counts.busy and timeout is not None:
                self.now += timeout
                return []


def count_calls(only: Sequence[str] = (), crowd: int = CROWD) -> dict[str, Any]:
    """Each command's calls; the environment says where files are. ``only``: to begin with the first."""
    counts = adapter.Counts()
    loop = PassingTime(counts)
    with _databases_counted(counts), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(_count(counts, loop.time, only or list(SCRIPT), crowd))


async def _count(
    counts: adapter.Counts, clock: Callable[[], float], only: Sequence[str], crowd: int
) -> dict[str, Any]:
    api = Ec2Api(transition=TRANSITION, clock=clock)
    cast("Any", aioboto3).Session = api.session
    measured: dict[str, Any] = {}
    async with adapter.counted_roles(counts, clock) as broker:
        await asyncio.sleep(WINDOW)
        for number, name in enumerate(only):
            exchange, kind, fields, outcome = SCRIPT[name]
            named = fields if name == "list" else {"worker_id": str(WORKER), **fields}
            counts.of.clear()
            api.calls.clear()
            began = clock()
            body = json.dumps(named).encode()
            reply = json.loads(await broker.call(exchange, kind, body, f"command-{number}"))
            replied = clock() - began
            if reply["outcome"] != outcome:
                raise RuntimeError(f"{name}: {reply}")
            ec2_until_reply = dict(sorted(api.calls.items()))
            await asyncio.sleep(WINDOW)
            measured[name] = {
                "total": _totals(counts.of),
                "by role": _by_role(counts.of),
                "EC2 until the reply": ec2_until_reply,
                "EC2": dict(sorted(api.calls.items())),
                "replied after s": round(replied, 1),
            }
        at_once = await _crowd(counts, api, broker, crowd)
        if broker.dead:
            raise RuntimeError(f"dead letters: {broker.dead}")
    return {"transition s": TRANSITION, "commands": measured, "crowd": crowd, "at once": at_once}


async def _crowd(
    counts: adapter.Counts, api: Ec2Api, broker: adapter.MemoryBroker, crowd: int
) -> dict[str, Any]:
    """As many workers at once: what is done for many together shows here. May differ a little from run to run."""
    workers = [uuid5(WORKER, str(number)) for number in range(crowd)]
    measured = {}
    broker.staggered = False
    for name in ("create, to RUNNING", "no-op"):
        exchange, kind, fields, outcome = SCRIPT[name]
        counts.of.clear()
        api.calls.clear()
        replies = await asyncio.gather(
            *(
                broker.call(
                    exchange,
                    kind,
                    json.dumps({"worker_id": str(each), **fields}).encode(),
                    f"{name} {each}".replace(" ", "-"),
                )
                for each in workers
            )
        )
        if any(json.loads(reply)["outcome"] != outcome for reply in replies):
            raise RuntimeError(f"not all of {name} {outcome}")
        await asyncio.sleep(WINDOW)
        measured[name] = {
            "total": _totals(counts.of),
            "by role": _by_role(counts.of),
            "EC2": dict(sorted(api.calls.items())),
        }
    return measured


def _totals(of: Counter[tuple[str, str]]) -> dict[str, int]:
    return {kind: sum(number for (_, what), number in of.items() if what == kind) for kind in KINDS}


def _by_role(of: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    roles = sorted({role for role, _ in of})
    return {role: {kind: of[role, kind] for kind in KINDS if of[role, kind]} for role in roles}
