"""Calls to the server: each has a deadline, and none is made on a connection on which another one has had no answer."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from cml_workers.eventstore.kurrentdb.client import Client, close
from cml_workers.eventstore.kurrentdb.errors import port_errors, timed_out
from cml_workers.eventstore.port import StoreConfigurationError, StoreUnavailableError
from cml_workers.foundation.ids import apart

CALL_SECONDS = 3.0
"""How long the server may take for a call, unless the address sets DefaultDeadline (seconds); of a read, how long from event to event."""
LEEWAY_SECONDS = 1.0
"""How much longer a call may take with all else: the leader is looked for, and the client may try again."""
LONGEST_READ = 120.0
"""Seconds for a whole read."""
KEEP_ALIVE = {"KeepAliveInterval": 10_000, "KeepAliveTimeout": 10_000}
"""Milliseconds after which a silent connection is probed, and given up, by gRPC; unless set in the address."""


@dataclass(frozen=True, slots=True)
class Call:
    """One that is being made, on ``client``; ``seconds``: how long the server may take."""

    client: Client
    seconds: float
    _until: asyncio.Timeout

    def heard(self) -> None:
        """The server is answering: it may take as long again."""
        self._until.reschedule(asyncio.get_running_loop().time() + self.seconds + LEEWAY_SECONDS)


class Calls:
    """Makes clients for ``uri``, and calls on the latest of them.

    After a time-out the next call is made on a new client, which looks for the leader again. What is under way on the one
    before goes on there.

    Raises StoreConfigurationError: see ``KurrentDbEventStore``.
    """

    def __init__(self, uri: str) -> None:
        self.address = urlsplit(uri).netloc.rpartition("@")[2]
        self.closed = False
        self._uri = _kept_alive(uri)
        self.client = self.new_client()
        self.seconds = float(self.client.connection_spec.options.default_deadline or CALL_SECONDS)
        self._under_way: Counter[Client] = Counter()
        self._closing: set[asyncio.Task[None]] = set()

    def new_client(self) -> Client:
        """One of its own, which its owner closes."""
        try:
            return Client(self._uri)
        except (ValueError, OSError) as error:
            # The client's messages repeat the address with its password.
            reason = str(error).replace(self._uri, self.address)
            raise StoreConfigurationError(f"KurrentDB at {self.address} cannot be used: {reason}") from None

    @contextlib.asynccontextmanager
    async def call(self) -> AsyncIterator[Call]:
        """Make a call. Raises StoreUnavailableError, StoreConfigurationError, and as ``port_errors`` does about a stream."""
        client = self.client
        self._under_way[client] += 1
        try:
            async with self.on(client) as call:
                yield call
        except StoreUnavailableError as error:
            if timed_out(error):
                self.replace(client)
            raise
        finally:
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]
                self._close_if_replaced(client)

    @contextlib.asynccontextmanager
    async def on(self, client: Client) -> AsyncIterator[Call]:
        """Make a call on a client of one's own. Raises as ``call`` does."""
        async with self.explained(), asyncio.timeout(self.seconds + LEEWAY_SECONDS) as until:
            yield Call(client, self.seconds, until)

    @contextlib.asynccontextmanager
    async def explained(self) -> AsyncIterator[None]:
        """What is done on any client. Raises as ``call`` does."""
        closed = f"the event store at {self.address} is closed"
        if self.closed:
            raise StoreUnavailableError(closed)
        try:
            async with port_errors(self.address):
                yield
        except AttributeError as error:  # a closed client has no connection any more
            if self.closed:
                raise StoreUnavailableError(closed) from error
            raise

    def replace(self, client: Client) -> None:
        """Make no more calls on this one."""
        if client is self.client and not self.closed:
            self.client = self.new_client()
            if client not in self._under_way:
                self._close_if_replaced(client)

    async def close(self) -> None:
        """Close all clients but those that have other owners."""
        self.closed = True
        await asyncio.gather(*map(close, {self.client, *self._under_way}), *self._closing)

    def _close_if_replaced(self, client: Client) -> None:
        if client is not self.client and not self.closed:
            task = asyncio.get_running_loop().create_task(close(client), context=apart())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _kept_alive(uri: str) -> str:
    """The address with the options of ``KEEP_ALIVE``, unless it has them."""
    query = urlsplit(uri).query
    missing = [f"{name}={value}" for name, value in KEEP_ALIVE.items() if name.lower() not in query.lower()]
    return f"{uri}{'&' if query else '?'}{'&'.join(missing)}" if missing else uri
