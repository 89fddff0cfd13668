"""A network between a service and its clients that can be cut, closed, stalled and slowed, at chosen messages too."""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

Towards = Literal["server", "client"]
What = Literal["cut before", "cut after", "cut the answer", "silence"]
WHAT: tuple[What, ...] = ("cut before", "cut after", "cut the answer", "silence")

LOOPBACK = "127.0.0.1"
LONGEST_PATTERN = 128
"""Bytes; so many less one are remembered of what has passed, so that a pattern in two pieces is found."""

_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Trap:
    """What happens to the connection on which these bytes pass in this direction, ``times`` times in all.

    ``cut before``: it is reset, and they do not arrive. ``cut after``: they are passed on, and it is reset at once.
    ``cut the answer``: they are passed on, and it is reset instead of passing on the first bytes that come back.
    ``silence``: it stays open, nothing passes in either direction for ``seconds``, then all of it does.
    """

    pattern: bytes
    towards: Towards
    what: What
    seconds: float = 0.0
    times: int = 1

    def __post_init__(self) -> None:
        assert 0 < len(self.pattern) <= LONGEST_PATTERN


@dataclass(eq=False)
class Armed:
    """A trap that waits; ``fired`` is set when it has caught something."""

    trap: Trap
    left: int
    fired: asyncio.Event = field(default_factory=asyncio.Event)


class TcpProxy:
    """Passes bytes to a port on loopback; in the running event loop. Of several ``ports`` each connection goes to the next
    one that lets it in, as by a load balancer. ``also`` leads to another server over the same network.

    ``host``: where it listens, an address of this machine. A server is reached from the same address, or from that of the client
    if it has one of its own: so it knows by which network a client comes.
    ``delay``: seconds that every piece of data takes longer, in both directions. ``closed``: new connections are
    refused as soon as they are made. ``fired``: how often traps did what.
    """

    def __init__(self, *ports: int, host: str = LOOPBACK, port: int = 0) -> None:
        self.host = host
        self.port = port
        self.delay = 0.0
        self.closed = False
        self.cuts = 0
        self.fired: Counter[What] = Counter()
        self.ports: dict[int, int] = {}
        """By the port of each server, but of several that take turns only of the first one, where it leads there."""
        self._targets = ports
        self._turn = 0
        self._servers: list[asyncio.Server] = []
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._armed: list[Armed] = []

    async def __aenter__(self) -> Self:
        self.port = await self._listen(self.port, self._targets)
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut()  # what was opened in between

    async def also(self, target: int, port: int = 0) -> int:
        """Listen at another port, which leads to another server; whatever happens to this network happens to both."""
        return await self._listen(port, (target,))

    async def _listen(self, port: int, targets: tuple[int, ...]) -> int:
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._start(self._open((reader, writer), targets))

        server = await asyncio.start_server(connected, self.host, port)
        self._servers.append(server)
        self.ports[targets[0]] = int(server.sockets[0].getsockname()[1])
        return self.ports[targets[0]]

    def through(self, url: str) -> str:
        """The address of these servers by way of this network."""
        return re.sub(rf"{LOOPBACK}:(\d+)", lambda found: f"{self.host}:{self.ports[int(found[1])]}", url)

    @property
    def connected(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    def cut(self) -> None:
        """Reset every connection there is."""
        self.cuts += 1
        for connection in list(self._connections):
            connection.reset()

    async def outage(self, seconds: float) -> None:
        """Cut, and let nobody in for a while."""
        self.closed = True
        self.cut()
        await asyncio.sleep(seconds)
        self.closed = False

    async def stall(self, seconds: float) -> None:
        """Keep connections open and let new ones in, and pass nothing on for a while."""
        self.pause()
        await asyncio.sleep(seconds)
        self._flowing.set()

    def pause(self) -> None:
        """The same until ``heal``."""
        self._flowing.clear()

    def arm(self, trap: Trap) -> Armed:
        """Watch for the bytes of a trap, on every connection, from now on."""
        armed = Armed(trap, trap.times)
        self._armed.append(armed)
        return armed

    def disarm(self, armed: Armed) -> None:
        """Watch for them no longer."""
        if armed in self._armed:
            self._armed.remove(armed)

    def heal(self) -> None:
        """Whatever was wrong is over."""
        self.closed, self.delay = False, 0.0
        self._armed.clear()
        self._flowing.set()
        for connection in self._connections:
            connection.flowing.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, client: _Stream, targets: tuple[int, ...]) -> None:
        try:
            if self.closed:
                raise ConnectionRefusedError
            server = await self._reach(targets, client[1])
        except (OSError, asyncio.CancelledError) as error:
            client[1].transport.abort()
            if isinstance(error, OSError):
                return
            raise  # the proxy ends
        connection = _Connection(client, server)
        self._connections.add(connection)
        self._start(self._pass(connection, "server"))
        self._start(self._pass(connection, "client"))

    async def _reach(self, targets: tuple[int, ...], client: asyncio.StreamWriter) -> _Stream:
        """Raises the OSError of the last one if none lets us in."""
        of_client = client.get_extra_info("peername")[0]
        source = self.host if of_client == LOOPBACK else of_client
        self._turn += 1
        for tried in range(len(targets)):
            port = targets[(self._turn + tried) % len(targets)]
            try:
                return await asyncio.open_connection(
                    LOOPBACK, port, local_addr=None if source == LOOPBACK else (source, 0)
                )
            except OSError as error:
                refused = error
        raise refused

    async def _pass(self, connection: "_Connection", towards: Towards) -> None:
        source, sink = connection.ends(towards)
        passed = b""
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._flowing.wait()
                await connection.flowing.wait()
                if connection.answer_to_cut == towards:
                    connection.reset()
                    break
                found = self._caught(passed, data, towards)
                if found is not None:
                    await self._fire(*found, connection, data, sink)
                else:
                    await _write(sink, data)
                passed = (passed + data)[1 - LONGEST_PATTERN :]
        connection.ended += 1
        if connection.ended == 2:
            self._connections.discard(connection)
        sink.close()  # after what was written; a connection that was cut is closed already

    def _caught(self, passed: bytes, data: bytes, towards: Towards) -> tuple[Armed, int] | None:
        """The first trap for these bytes, and where in ``data`` its pattern begins: below 0 if before."""
        for armed in self._armed:
            pattern = armed.trap.pattern
            if armed.trap.towards != towards:
                continue
            # What has been passed on already is no new occurrence.
            before = passed[len(passed) - len(pattern) + 1 :] if len(passed) >= len(pattern) else passed
            place = (before + data).find(pattern)
            if place >= 0 and place + len(pattern) > len(before):
                return armed, place - len(before)
        return None

    async def _fire(
        self, armed: Armed, place: int, connection: "_Connection", data: bytes, sink: asyncio.StreamWriter
    ) -> None:
        trap = armed.trap
        armed.left -= 1
        if armed.left <= 0:
            self.disarm(armed)
        self.fired[trap.what] += 1
        armed.fired.set()
        if trap.what == "silence":
            await connection.silence(trap.seconds)
        if trap.what == "cut the answer":
            connection.answer_to_cut = "client" if trap.towards == "server" else "server"
        await _write(sink, data[: max(0, place)] if trap.what == "cut before" else data)
        if trap.what in ("cut before", "cut after"):
            connection.reset()


@asynccontextmanager
async def network_to(url: str, *, host: str = LOOPBACK) -> AsyncIterator[TcpProxy]:
    """One network to all the servers that the address names.

    ``host``: another one for servers that say themselves at which ports they are, as the nodes of a store do. Then these are the same.
    """
    first, *others = [int(port) for port in re.findall(rf"{LOOPBACK}:(\d+)", url)]
    same = host != LOOPBACK
    async with TcpProxy(first, host=host, port=first if same else 0) as network:
        for port in others:
            await network.also(port, port if same else 0)
        yield network


class _Connection:
    """A client's connection and ours to the server."""

    def __init__(self, client: _Stream, server: _Stream) -> None:
        self._client, self._server = client, server
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.answer_to_cut: Towards | None = None
        self.ended = 0
        """Directions in which nothing passes any more."""
        for _, writer in (client, server):
            writer.transport.set_write_buffer_limits(high=0)  # what was drained is sent

    def ends(self, towards: Towards) -> _Stream:
        """Where to read and where to write."""
        if towards == "server":
            return self._client[0], self._server[1]
        return self._server[0], self._client[1]

    def reset(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()
        self.flowing.set()

    async def silence(self, seconds: float) -> None:
        self.flowing.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.flowing.wait()
        self.flowing.set()


async def _write(sink: asyncio.StreamWriter, data: bytes) -> None:
    sink.write(data)
    await sink.drain()
