"""Measures in one process: the fold, the load of a worker, and what the executor keeps of what is over."""

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from bench import adapter, history

LENGTHS = (50, 500, 2_000)
SETTLED_ELSEWHERE = 200


def measure(folder: Path, *, rounds: int = 15, lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    """All of them, on files in ``folder``."""
    return asyncio.run(_measure(folder, rounds, lengths))


async def _measure(folder: Path, rounds: int, lengths: Sequence[int]) -> dict[str, Any]:
    store = adapter.Store(f"sqlite:///{folder}/loads.sqlite3")
    loads, folds = {}, {}
    for length in lengths:
        worker = uuid4()
        await store.extend(worker, history.mixed(length))
        stored = await store.stored(worker)
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            await store.load(worker)
            taken.append(time.perf_counter() - began)
        loads[str(length)] = round(statistics.median(taken) * 1e3, 3)
        decoded = [adapter.decode(each) for each in stored]
        folds[str(length)] = {
            "decoded us": _microseconds(_folding(worker, decoded), length, rounds),
            "with decoding us": _microseconds(_decoding(worker, stored), length, rounds),
        }
    await store.close()
    return {
        "fold of one event": folds,
        "load ms": loads,
        "left in the executor": await _left_in_the_executor(folder),
        "operations settled elsewhere": SETTLED_ELSEWHERE,
    }


def _folding(worker: UUID, decoded: Sequence[Any]) -> Callable[[], None]:
    return lambda: adapter.fold_all(worker, decoded)


def _decoding(worker: UUID, stored: Sequence[Any]) -> Callable[[], None]:
    return lambda: adapter.fold_all(worker, map(adapter.decode, stored))  # one by one, as a worker is loaded


def _microseconds(work: Callable[[], None], events: int, rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return round(statistics.median(taken) / events * 1e6, 2)


async def _left_in_the_executor(folder: Path) -> int:
    """Places in which operations stand that it was triggered for, and that another one has settled since."""
    store = adapter.Store(f"sqlite:///{folder}/events.sqlite3")
    executor = adapter.WatchedExecutor(folder)
    operations = set()
    for _ in range(SETTLED_ELSEWHERE):
        worker, operation = uuid4(), str(uuid4())
        operations.add(operation)
        requested, updated = history.tag_requested(operation), history.tag_updated(operation)
        length = await store.extend(worker, [*history.running(), requested])
        await executor.trigger(_message(worker, requested, length - 1), requested[1])
        await store.extend(worker, [updated])
        await executor.trigger(_message(worker, updated, length), updated[1])
    left = executor.remembers(operations)
    await executor.close()
    await store.close()
    return left


def _message(worker: UUID, event: history.JsonEvent, revision: int) -> bytes:
    """The event as the relay publishes it."""
    event_id, event_type, data, metadata = event
    about = json.loads(metadata)
    return json.dumps(
        {
            "specversion": "1.0",
            "id": str(event_id),
            "source": "/bench",
            "type": event_type,
            "subject": str(worker),
            "time": about["time"],
            "streamrevision": revision,
            "commandid": about["command_id"],
            "correlationid": about["correlation_id"],
            "causationid": about["causation_id"],
            "data": json.loads(data),
        }
    ).encode()
