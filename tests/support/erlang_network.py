"""The network between the nodes of a cluster: each node can be separated from the others, and nothing else is touched.

Erlang nodes ask a daemon on their own host, epmd, for the port of another. Here each node has such a daemon of its own,
which names the port of a proxy instead. See https://www.erlang.org/doc/apps/erts/erl_dist_protocol.html
"""

import asyncio
import contextlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from itertools import count
from types import TracebackType
from typing import Self

from support.tcp_proxy import TcpProxy

_ALIVE, _PORT_PLEASE, _NAMES = 120, 122, 110
_ALIVE_ANSWER, _PORT_ANSWER = 118, 119


class ErlangNetwork:
    """``nodes``: the ports at which they listen for each other, by the part of their names before the @."""

    def __init__(self, nodes: Mapping[str, int]) -> None:
        self._proxies = {
            (one, other): TcpProxy(port) for one in nodes for other, port in nodes.items() if one != other
        }
        registered: dict[str, int] = {}
        self._daemons = {
            node: _PortDaemon(
                {other: proxy for (one, other), proxy in self._proxies.items() if one == node}, registered
            )
            for node in nodes
        }
        self._opened = AsyncExitStack()

    @property
    def epmd_ports(self) -> dict[str, int]:
        """The port of each node's daemon."""
        return {node: daemon.port for node, daemon in self._daemons.items()}

    async def __aenter__(self) -> Self:
        for proxy in self._proxies.values():
            await self._opened.enter_async_context(proxy)
        for daemon in self._daemons.values():
            await self._opened.enter_async_context(daemon)
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self._opened.aclose()

    async def separate(self, node: str, seconds: float) -> None:
        """Nothing passes between this node and the others, and nobody knows; then all of it does."""
        await asyncio.gather(*(proxy.stall(seconds) for ends, proxy in self._proxies.items() if node in ends))


class _PortDaemon:
    """An epmd for one node.

    ``links``: to the other nodes. ``registered``: the ports of all, commands that talk to nodes included: every node
    reaches these at their own ports.
    """

    def __init__(self, links: Mapping[str, TcpProxy], registered: dict[str, int]) -> None:
        self.port = 0
        self._links = links
        self._registered = registered
        self._lives = count(4)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            match request[0]:
                case code if code == _ALIVE:
                    await self._register(request, reader, writer)
                case code if code == _PORT_PLEASE:
                    writer.write(self._port_of(request[1:]))
                case code if code == _NAMES:
                    names = "".join(
                        f"name {name} at port {port}\n" for name, port in self._registered.items()
                    )
                    writer.write(self.port.to_bytes(4, "big") + names.encode())
            await writer.drain()

    async def _register(
        self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """For as long as the connection lasts."""
        name = request[11 : 11 + int.from_bytes(request[9:11], "big")].decode()
        self._registered[name] = int.from_bytes(request[1:3], "big")
        # Another number each time, by which a process of a node's former life is distinguished from one of this life.
        writer.write(bytes([_ALIVE_ANSWER, 0]) + next(self._lives).to_bytes(4, "big"))
        try:
            await reader.read()
        finally:
            del self._registered[name]

    def _port_of(self, name: bytes) -> bytes:
        port = self._registered.get(name.decode())
        if port is None:
            return bytes([_PORT_ANSWER, 1])
        if link := self._links.get(name.decode()):
            port = link.port
        visible, tcp, newest, oldest = 77, 0, 6, 5
        return (
            bytes([_PORT_ANSWER, 0])
            + port.to_bytes(2, "big")
            + bytes([visible, tcp, 0, newest, 0, oldest])
            + len(name).to_bytes(2, "big")
            + name
            + bytes(2)
        )
