"""Appends and catch-up of the event stores: ``PYTHONPATH=tests python tests/bench/bench_event_store.py``.

The stand-in runs in a process of its own; it keeps events in memory, so its figures are those of the client.
"""

import asyncio
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import count
from pathlib import Path
from uuid import uuid4

from cml_workers.eventstore.opening import open_event_store
from cml_workers.eventstore.port import NO_STREAM, CaughtUp, EventStore, NewEvent, StoredEvent

SECONDS = 2.0
"""How long each kind of append is measured."""
BACKLOG = 10_000
"""Events a new follower catches up with, at most."""
BODY = b'{"worker_id":"00000000-0000-0000-0000-000000000000","reason":"about as long as our events are"}'

_names = count()


def _event() -> NewEvent:
    return NewEvent(uuid4(), "StartRequested.v1", BODY, BODY)


async def appends_per_second(store: EventStore, appenders: int) -> float:
    """Each appender writes a stream of its own, one event after the other."""
    deadline = time.perf_counter() + SECONDS

    async def appender() -> int:
        stream, revision = f"bench-{next(_names)}", NO_STREAM
        while time.perf_counter() < deadline:
            revision = await store.append(stream, [_event()], expected=revision)
        return revision + 1

    started = time.perf_counter()
    done = await asyncio.gather(*(appender() for _ in range(appenders)))
    return sum(done) / (time.perf_counter() - started)


async def catch_up_per_second(store: EventStore) -> float:
    for _ in range(BACKLOG // 100):
        await store.append(f"backlog-{next(_names)}", [_event() for _ in range(100)], expected=NO_STREAM)
    seen, started = 0, time.perf_counter()
    async with aclosing(store.follow(after=None, prefix="backlog-")) as items:
        async for item in items:
            seen += isinstance(item, StoredEvent)
            if isinstance(item, CaughtUp):
                break
    return seen / (time.perf_counter() - started)


@asynccontextmanager
async def standin() -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "support.kurrentdb_standin", "--port", str(port)),
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    try:
        yield f"esdb://127.0.0.1:{port}?tls=false"
    finally:
        process.terminate()
        await process.wait()


async def measure(name: str, uri: str) -> None:
    store = open_event_store(uri)
    async with asyncio.timeout(30):
        while True:
            try:
                await store.ping()
                break
            except ConnectionError:
                await asyncio.sleep(0.1)
    for appenders in (1, 50, 200):
        rate = await appends_per_second(store, appenders)
        print(f"{name:18} {appenders:4} appending {rate:10,.0f} appends/s")
    rate = await catch_up_per_second(store)
    print(f"{name:18}      catching up {rate:8,.0f} events/s")
    await store.close()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        await measure("sqlite", f"sqlite:///{folder}/events.db")
    async with standin() as uri:
        await measure("kurrentdb-standin", uri)


if __name__ == "__main__":
    asyncio.run(main())
