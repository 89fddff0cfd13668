"""The journal in an SQLite file.

Changes are collected and written by one thread, a batch in one transaction, while the next batch fills up
(group commit).
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pamqp import common, decode, encode

from cml_embedded.amqp.exchanges import Binding, Exchange
from cml_embedded.amqp.journal import DataInUseError, Stored, StoredQueue
from cml_embedded.amqp.message import Message, Properties, Queued

_LAZINESS: Final = 0.02
"""Seconds that changes nobody waits for (deliveries, acknowledgements) are held back, to share a commit."""

_SCHEMA: Final = """
-- Some columns are of earlier versions and not used any more: kind is always 'queue' now.
CREATE TABLE IF NOT EXISTS exchanges (
    name TEXT PRIMARY KEY, kind TEXT, auto_delete INTEGER, internal INTEGER, arguments BLOB);
CREATE TABLE IF NOT EXISTS queues (name TEXT PRIMARY KEY, auto_delete INTEGER, arguments BLOB);
CREATE TABLE IF NOT EXISTS bindings (
    exchange TEXT, kind TEXT, destination TEXT, routing_key TEXT,
    PRIMARY KEY (exchange, kind, destination, routing_key));
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY, queue TEXT, exchange TEXT, routing_key TEXT, header BLOB, body BLOB,
    expires_at INTEGER, returns INTEGER, delivered INTEGER);
"""

_Row = tuple[int, str, str, str, bytes, bytes, int | None, int, int]


@dataclass(slots=True)
class _Batch:
    topology: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)
    added: dict[int, _Row] = field(default_factory=dict)
    marked: dict[int, tuple[int, bool]] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    waiting: list[Callable[[], None]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.topology or self.added or self.marked or self.removed or self.waiting)

    def write(self, database: sqlite3.Connection) -> None:
        database.execute("BEGIN")
        for statement, parameters in self.topology:
            database.execute(statement, parameters)
        database.executemany("INSERT INTO messages VALUES (?,?,?,?,?,?,?,?,?)", self.added.values())
        database.executemany(
            "UPDATE messages SET returns = ?, delivered = ? WHERE id = ?",
            ((returns, delivered, key) for key, (returns, delivered) in self.marked.items()),
        )
        database.executemany("DELETE FROM messages WHERE id = ?", ((key,) for key in self.removed))
        database.execute("COMMIT")


class SqliteJournal:
    """See ``Journal``. WAL with ``synchronous=FULL``: what is committed survives a kill and a power cut.

    If a commit fails (disk full), nothing is confirmed any more and ``on_failure`` is called in the loop.

    Raises:
        DataInUseError: another process holds the file.
        sqlite3.DatabaseError: it is not a readable journal.
    """

    def __init__(self, path: Path, on_failure: Callable[[BaseException], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_failure = on_failure
        self._batch = _Batch()
        self._changed = threading.Condition()
        self._urgent = False
        self._closing = False
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
        try:
            # EXCLUSIVE keeps a second broker out; the lock goes with the process, however it ends.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            self._database.close()
            if "locked" in str(error):
                raise DataInUseError(f"another broker uses {path}") from error
            raise
        self._writer = threading.Thread(target=self._write, name="amqp-journal", daemon=True)
        self._writer.start()

    def load(self) -> Stored:
        rows = self._database.execute
        return Stored(
            exchanges=[Exchange(*row) for row in rows("SELECT name, kind FROM exchanges")],
            queues=[
                StoredQueue(name, bool(auto_delete), _table(raw))
                for name, auto_delete, raw in rows("SELECT name, auto_delete, arguments FROM queues")
            ],
            bindings=[
                Binding(*row)
                for row in rows(
                    "SELECT exchange, destination, routing_key FROM bindings WHERE kind = 'queue'"
                )
            ],
            messages=list(self._messages()),
        )

    def _messages(self) -> Iterator[tuple[str, Queued]]:
        for (
            key,
            queue,
            exchange,
            routing_key,
            header,
            body,
            expires_at,
            returns,
            delivered,
        ) in self._database.execute("SELECT * FROM messages ORDER BY id"):
            message = Message(exchange, routing_key, Properties.parse(header)[1], body)
            # What was out when the broker died came back unacknowledged.
            yield queue, Queued(key, message, True, expires_at, returns + delivered)

    def exchange_declared(self, exchange: Exchange) -> None:
        self._topology(
            "INSERT OR REPLACE INTO exchanges (name, kind) VALUES (?,?)", exchange.name, exchange.kind
        )

    def exchange_deleted(self, name: str) -> None:
        self._topology("DELETE FROM exchanges WHERE name = ?", name)

    def queue_declared(self, name: str, arguments: common.FieldTable, *, auto_delete: bool) -> None:
        self._topology(
            "INSERT OR REPLACE INTO queues VALUES (?,?,?)", name, auto_delete, encode.field_table(arguments)
        )

    def queue_deleted(self, name: str) -> None:
        self._topology("DELETE FROM queues WHERE name = ?", name)

    def bound(self, binding: Binding) -> None:
        self._topology(
            "INSERT OR IGNORE INTO bindings VALUES (?,'queue',?,?)",
            binding.exchange,
            binding.queue,
            binding.routing_key,
        )

    def unbound(self, binding: Binding) -> None:
        self._topology(
            "DELETE FROM bindings WHERE exchange = ? AND destination = ? AND routing_key = ?",
            binding.exchange,
            binding.queue,
            binding.routing_key,
        )

    def _topology(self, statement: str, *parameters: object) -> None:
        with self._changed:
            self._batch.topology.append((statement, parameters))
            self._changed.notify()

    def added(self, queue: str, queued: Queued) -> None:
        message = queued.message
        row: _Row = (
            queued.id,
            queue,
            message.exchange,
            message.routing_key,
            message.properties.header(len(message.body)),
            message.body,
            queued.expires_at,
            queued.returns,
            0,
        )
        with self._changed:
            self._batch.added[queued.id] = row
            self._changed.notify()

    def marked(self, queued: Queued, *, delivered: bool) -> None:
        with self._changed:
            self._batch.marked[queued.id] = (queued.returns, delivered)
            self._changed.notify()

    def removed(self, queued: Queued) -> None:
        with self._changed:
            self._batch.marked.pop(queued.id, None)
            if self._batch.added.pop(queued.id, None) is None:
                self._batch.removed.append(queued.id)
                self._changed.notify()

    def after_commit(self, done: Callable[[], None]) -> None:
        with self._changed:
            self._batch.waiting.append(done)
            self._urgent = True
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._writer.join()
        self._database.close()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or not self._batch.empty)
                if not (self._urgent or self._closing):
                    self._changed.wait_for(lambda: self._urgent or self._closing, timeout=_LAZINESS)
                batch, self._batch, self._urgent = self._batch, _Batch(), False
                closing = self._closing
            try:
                batch.write(self._database)
            except sqlite3.Error as error:
                if not closing:
                    self._loop.call_soon_threadsafe(self._on_failure, error)
                return
            if closing:
                return
            self._loop.call_soon_threadsafe(_run, batch.waiting)


def _run(waiting: list[Callable[[], None]]) -> None:
    for done in waiting:
        done()


def _table(raw: bytes) -> common.FieldTable:
    return decode.field_table(raw)[1]
