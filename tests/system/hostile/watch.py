"""What the roles, the broker, the archive and the store take up, while it runs."""

import asyncio
import json
import sqlite3
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing

import aio_pika

from cml_workers.bus.usage import EVERYTHING
from system.hostile.messages import USER
from system.hostile.parts import SENDERS, WATCHER, Parts, cpu_seconds, memory, size

EVERY = 1.0
DISK_EVERY = 5.0

QUEUES = EVERYTHING.with_own(SENDERS).queues


class Watch:
    """The most of each so far. ``lengths``: of queues, in messages."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.lengths: dict[str, int] = {}
        self.longest: dict[str, int] = defaultdict(int)
        self.disk = 0
        self.broker_memory = 0

    async def run(self) -> None:
        """Without end."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look())
            group.create_task(self._measure())

    async def _look(self) -> None:
        async with await aio_pika.connect(self._parts.url(WATCHER)) as connection:
            channel = await connection.channel()
            while True:
                for name in QUEUES:
                    declared = await channel.declare_queue(name, passive=True)
                    count = declared.declaration_result.message_count or 0
                    self.lengths[name] = count
                    self.longest[name] = max(self.longest[name], count)
                await asyncio.sleep(EVERY)

    async def _measure(self) -> None:
        while True:
            self.disk = max(self.disk, await asyncio.to_thread(size, self._parts.broker_data))
            self.broker_memory = max(self.broker_memory, *(memory(pid) for pid in self.broker_pids()))
            await asyncio.sleep(DISK_EVERY)

    def broker_pids(self) -> list[int]:
        """The broker's processes: those of its group."""
        listed = subprocess.run(
            ["pgrep", "-g", str(self._parts.rabbitmq.group)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()] or [0]

    def cpu(self) -> dict[str, float]:
        """Seconds so far, by role and of the broker."""
        used = {name: cpu_seconds(each.pid) for name, each in self._parts.roles.processes.items()}
        return {**used, "broker": sum(map(cpu_seconds, self.broker_pids()))}

    def peaks(self) -> dict[str, int]:
        """Bytes of memory that each role has had at most."""
        return {name: memory(each.pid, "VmHWM") for name, each in self._parts.roles.processes.items()}

    def queues(self) -> dict[str, tuple[int, int]]:
        """Messages and bytes of their bodies, by queue; it costs a second of CPU."""
        columns = ("name", "messages", "message_bytes")
        said = self._parts.rabbitmq.control(
            "rabbitmqctl", "-q", "list_queues", *columns, "--formatter", "json"
        )
        return {
            each["name"]: (int(each["messages"] or 0), int(each["message_bytes"] or 0))
            for each in json.loads(said)
        }

    def archive(self) -> Mapping[str, int]:
        """Rows that wait and were sent by the hostile user, all rows, the longest body, bytes of all bodies."""
        with closing(sqlite3.connect(f"file:{self._parts.database}?mode=ro", uri=True, timeout=30)) as read:
            (waiting,) = read.execute(
                "SELECT count(*) FROM dead_letters WHERE state = 'waiting' AND \"user\" = ?", (USER,)
            ).fetchone()
            rows, longest, total = read.execute(
                "SELECT count(*), coalesce(max(length(body)), 0), coalesce(sum(length(body)), 0) FROM dead_letters"
            ).fetchone()
        return {"waiting": waiting, "rows": rows, "longest": longest, "bytes": total}

    def events(self) -> int:
        """In the event store."""
        with closing(sqlite3.connect(f"file:{self._parts.store}?mode=ro", uri=True, timeout=30)) as read:
            (count,) = read.execute("SELECT count(*) FROM events").fetchone()
        return int(count)

    def waits(self) -> int:
        """Messages in the queues of the roles."""
        return sum(self.lengths.values())
