"""A network between a service and its clients that can be cut, closed, stalled and slowed."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class TcpProxy:
    """Passes bytes to ``port`` on loopback; in the running event loop.

    ``delay``: seconds that every piece of data takes longer, in both directions. ``closed``: new connections are
    refused as soon as they are made.
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.delay = 0.0
        self.closed = False
        self.cuts = 0
        self._target = port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection there is."""
        self.cuts += 1
        for writer in list(self._open):
            writer.transport.abort()

    async def outage(self, seconds: float) -> None:
        """Cut, and let nobody in for a while."""
        self.closed = True
        self.cut()
        await asyncio.sleep(seconds)
        self.closed = False

    async def stall(self, seconds: float) -> None:
        """Keep connections open and let new ones in, and pass nothing on for a while."""
        self._flowing.clear()
        await asyncio.sleep(seconds)
        self._flowing.set()

    def heal(self) -> None:
        """Whatever was wrong is over."""
        self.closed, self.delay = False, 0.0
        self._flowing.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.closed:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back}
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pass(source, sink))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        self._open.discard(sink)
        sink.close()  # after what was written; a connection that was cut is closed already
