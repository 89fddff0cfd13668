"""A RabbitMQ look-alike in the process: for demo and development only.

It speaks AMQP 0-9-1 so that the very same FastStream and aio-pika code runs on it and on RabbitMQ; one
conformance suite holds both to that. It is one node without users, permissions, clustering or management.

Run alone with ``python -m cml_embedded.amqp_broker --port 5672 --data-dir FOLDER``.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from cml_embedded.amqp.broker import Broker
from cml_embedded.amqp.connection import ServerConnection
from cml_embedded.amqp.journal import DataInUseError, InMemoryJournal, Journal
from cml_embedded.amqp.sqlite_journal import SqliteJournal
from cml_embedded.private import private_folder, private_sqlite

JOURNAL = "amqp.sqlite"


class AmqpBroker:
    """With ``data_dir``, durable queues and their persistent messages survive any end of the process.

    ``port`` 0 takes a free one. ``password``: of every user; None: anybody may connect, with any.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        data_dir: Path | None = None,
        password: str | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._data_dir = data_dir
        self._password = password
        self._connections: set[ServerConnection] = set()
        self._idle = asyncio.Event()

    @property
    def url(self) -> str:
        return f"amqp://guest:{self._password or 'guest'}@{self._host}:{self._port}/"

    async def start(self) -> None:
        """Restore what a former broker left, then listen.

        Raises:
            DataInUseError: another broker uses the data folder.
            OSError: the port is taken.
        """
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._broker = Broker(self._open_journal())
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._accept, self._host, self._port
            )
        except OSError:
            self._broker.journal.close()
            raise
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Notify the clients, hang up and write what is left; takes well under a second."""
        self._broker.stopping = True
        self._server.close()
        for connection in list(self._connections):
            connection.force_close()
        self._stopped_serving()
        await self._idle.wait()
        for queue in list(self._broker.queues.values()):
            queue.stop_timers()
        await asyncio.to_thread(self._broker.journal.close)

    async def failed(self) -> None:
        """Return never, or raise what keeps the journal from being written."""
        await asyncio.shield(self._failure)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _open_journal(self) -> Journal:
        if self._data_dir is None:
            return InMemoryJournal()
        private_folder(self._data_dir, "amqp")
        private_sqlite(self._data_dir / JOURNAL)
        return SqliteJournal(self._data_dir / JOURNAL, self._on_failure)

    def _on_failure(self, error: BaseException) -> None:
        """Without its journal the broker must not go on: clients would wait for confirms forever."""
        if not self._failure.done():
            self._failure.set_exception(error)
        self._server.close()
        for connection in list(self._connections):
            connection.abort()

    def _accept(self) -> ServerConnection:
        connection = ServerConnection(self._broker, self._hung_up, self._password)
        self._connections.add(connection)
        return connection

    def _hung_up(self, connection: ServerConnection) -> None:
        self._connections.discard(connection)
        self._stopped_serving()

    def _stopped_serving(self) -> None:
        if self._broker.stopping and not self._connections:
            self._idle.set()


async def _serve(host: str, port: int, data_dir: Path | None) -> None:
    done = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    async with AmqpBroker(host=host, port=port, data_dir=data_dir) as broker:
        print(broker.url, flush=True)  # noqa: T201 - the one thing a starter wants to know
        ended = asyncio.create_task(done.wait())
        failed = asyncio.create_task(broker.failed())
        await asyncio.wait((ended, failed), return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
        failed.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--data-dir", type=Path, help="without it nothing survives")
    chosen = parser.parse_args()
    try:
        asyncio.run(_serve(chosen.host, chosen.port, chosen.data_dir))
    except (DataInUseError, OSError) as error:
        sys.exit(f"amqp_broker: {error}")


if __name__ == "__main__":
    main()
