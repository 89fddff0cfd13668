"""What the embedded store promises beyond the contract: many processes on one file, crashes, bad files."""

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path
from uuid import uuid4

import pytest

from cml_workers.eventstore.port import (
    NO_STREAM,
    NewEvent,
    StoreConfigurationError,
    StoredEvent,
    StoreUnavailableError,
)
from cml_workers.eventstore.sqlite import SqliteEventStore, file

WRITER = """
import asyncio, sys
from uuid import uuid4
from cml_workers.eventstore.port import NewEvent, WrongExpectedVersionError
from cml_workers.eventstore.sqlite import SqliteEventStore

async def main(path, name, number):
    store = SqliteEventStore(path)
    shared = -1
    for revision in range(number):
        await store.append(name, [NewEvent(uuid4(), "T", b"{}", b"{}")], expected=revision - 1)
        print(revision, flush=True)
        if revision % 5 == 0:  # now and then all want the same stream
            try:
                shared = await store.append("shared", [NewEvent(uuid4(), "T", b"{}", b"{}")], expected=shared)
            except WrongExpectedVersionError:
                shared = len(await store.read("shared")) - 1
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "events.db"


@pytest.fixture
async def store(path):
    store = SqliteEventStore(path)
    yield store
    await store.close()


def events(number=1):
    return [NewEvent(uuid4(), "T", b"{}", b"{}") for _ in range(number)]


def writer(path: Path, name: str, number: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(number)], stdout=subprocess.PIPE, text=True
    )


async def test_a_reader_sees_what_many_processes_write_in_order_and_without_gaps(path, store):
    processes = [writer(path, f"own-{n}", 200) for n in range(3)]
    seen: list[StoredEvent] = []
    done = asyncio.create_task(asyncio.to_thread(lambda: [process.communicate() for process in processes]))
    async with asyncio.timeout(60), aclosing(store.follow(after=None)) as items:
        async for item in items:
            if isinstance(item, StoredEvent):
                seen.append(item)
            if sum(event.stream.startswith("own-") for event in seen) == 600:
                break
    await done

    assert [process.returncode for process in processes] == [0, 0, 0]
    positions = [int(event.position) for event in seen]
    assert positions == list(range(1, len(seen) + 1))
    for name in ("own-0", "own-1", "own-2", "shared"):
        revisions = [event.revision for event in seen if event.stream == name]
        assert revisions == list(range(len(revisions)))


async def test_what_was_acknowledged_survives_a_killed_writer(path, store):
    process = writer(path, "own", 100_000)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 150:
            break
    process.kill()
    rest, _ = process.communicate()
    acknowledged = max([150, *(int(line) for line in rest.splitlines())])

    stored = await store.read("own")

    assert [event.revision for event in stored] == list(range(len(stored)))
    assert stored[-1].revision in {acknowledged, acknowledged + 1}
    assert await store.append("own", events(), expected=stored[-1].revision) == stored[-1].revision + 1


async def test_only_the_owner_may_read_the_files(path, store):
    await store.append("a", events(), expected=NO_STREAM)
    files = list(path.parent.iterdir())
    assert {file.name for file in files} == {"events.db", "events.db-wal", "events.db-shm"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_positions_are_never_given_out_twice(path, store):
    await store.append("a", events(3), expected=NO_STREAM)
    [*_, last] = await store.read("a")
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM events WHERE stream = 'a'")
    connection.close()
    await store.append("b", events(), expected=NO_STREAM)
    [after] = await store.read("b")
    assert int(after.position) > int(last.position)


async def _refused(path: Path, reason: str) -> None:
    store = SqliteEventStore(path)
    try:
        with pytest.raises(StoreConfigurationError, match=reason):
            await store.ping()
        with pytest.raises(StoreConfigurationError, match=reason):
            await store.append("a", events(), expected=NO_STREAM)
        with pytest.raises(StoreConfigurationError, match=reason):
            await anext(store.follow(after=None))
    finally:
        await store.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "events.db"
    path.write_bytes(b"no database " * 1000)
    await _refused(path, "damaged or no SQLite file")


async def test_a_damaged_file_is_refused(path, store):
    await store.append("a", [NewEvent(uuid4(), "T", b"x" * 20_000, b"{}")], expected=NO_STREAM)
    await store.close()
    damaged = bytearray(path.read_bytes())
    damaged[4096:] = os.urandom(len(damaged) - 4096)
    path.write_bytes(damaged)
    again = SqliteEventStore(path)
    with pytest.raises(StoreConfigurationError, match="damaged"):
        await again.read("a")
    await again.close()


async def test_a_database_of_another_application_is_refused(tmp_path):
    connection = sqlite3.connect(tmp_path / "events.db")
    connection.execute("CREATE TABLE accounts (name)")
    connection.close()
    await _refused(tmp_path / "events.db", "another application")


async def test_a_newer_format_is_refused(path, store):
    await store.ping()
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    await _refused(path, "format 2")


async def test_a_place_without_access_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    await _refused(tmp_path / "file" / "events.db", "cannot open")
    await _refused(tmp_path, "no permission|cannot open")


async def test_a_locked_file_is_unavailable_and_then_available(path, store, monkeypatch):
    monkeypatch.setattr(file, "BUSY_SECONDS", 0.1)
    await store.ping()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    same = events()
    with pytest.raises(StoreUnavailableError, match="locked"):
        await store.append("a", same, expected=NO_STREAM)
    other.close()
    assert await store.append("a", same, expected=NO_STREAM) == 0


async def test_a_full_disk_is_unavailable_and_then_available(path, monkeypatch):
    class Limited(file.EventFile):
        pages = 100

        def connect(self) -> sqlite3.Connection:
            connection = super().connect()
            connection.execute(f"PRAGMA max_page_count = {self.pages}")
            return connection

    monkeypatch.setattr("cml_workers.eventstore.sqlite.store.EventFile", Limited)
    store = SqliteEventStore(path)
    large = [NewEvent(uuid4(), "T", b"x" * 1_000_000, b"{}")]
    await store.append("a", events(), expected=NO_STREAM)
    with pytest.raises(StoreUnavailableError, match="no space left"):
        await store.append("a", large, expected=0)
    assert len(await store.read("a")) == 1
    Limited.pages = 10_000
    assert await store.append("a", large, expected=0) == 1
    await store.close()


async def test_closing_leaves_no_thread_and_no_journal(path, store):
    await store.append("a", events(), expected=NO_STREAM)
    async with aclosing(store.follow(after=None)) as items:
        await anext(items)
    await store.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("event-store")]
    assert [file.name for file in path.parent.iterdir()] == ["events.db"]


async def test_an_event_that_cannot_be_stored_hurts_nobody_for_long(store):
    impossible = NewEvent(uuid4(), "T", object(), b"{}")  # type: ignore[arg-type]  # a caller's mistake
    with pytest.raises(sqlite3.ProgrammingError, match="type 'object' is not supported"):
        await store.append("a", [impossible], expected=NO_STREAM)
    assert await store.append("a", events(), expected=NO_STREAM) == 0
