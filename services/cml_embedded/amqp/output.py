"""What goes out to a client: frames, collected until the end of the event loop's round."""

import asyncio
from collections.abc import Callable
from struct import Struct
from typing import Final

from pamqp import base, constants, frame

from cml_embedded.amqp.message import Properties

FRAME: Final = Struct(">BHI")
END: Final = bytes((constants.FRAME_END,))
FRAME_MAX: Final = 131_072

_LIMIT: Final = 1 << 20
"""Bytes waiting to be written above which a client gets no further deliveries."""


class Output:
    """``before``: called before each write, to add to it; ``room``: called when there is room again for deliveries."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, before: Callable[[], None], room: Callable[[], None]
    ) -> None:
        self.frame_max = FRAME_MAX
        self.closed = False
        """No deliveries any more; what is to be said before the end is still written."""
        self.last_write = loop.time()
        self._loop = loop
        self._before = before
        self._room = room
        self._parts: list[bytes] = []
        self._size = 0
        self._paused = False
        self._starved = False
        self._flushing = False

    def open(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=_LIMIT)

    @property
    def writable(self) -> bool:
        """Whether there is room for another delivery; if not, ``room`` is called later."""
        if self._paused or self._size > _LIMIT or self.closed:
            self._starved = True
            return False
        return True

    def send(self, channel: int, method: base.Frame) -> None:
        self.write(frame.marshal(method, channel))

    def send_content(self, channel: int, method: bytes, properties: Properties, body: bytes) -> None:
        header = properties.header(len(body))
        parts = [
            FRAME.pack(constants.FRAME_METHOD, channel, len(method)),
            method,
            END,
            FRAME.pack(constants.FRAME_HEADER, channel, len(header)),
            header,
            END,
        ]
        fits = self.frame_max - 8
        for start in range(0, len(body), fits):
            part = body if len(body) <= fits else body[start : start + fits]
            parts += (FRAME.pack(constants.FRAME_BODY, channel, len(part)), part, END)
        self.write(b"".join(parts))

    def write(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        self.flush_soon()

    def flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._give_room()

    def close(self) -> None:
        """Write what is left."""
        self.closed = True
        self._flush()

    def _flush(self) -> None:
        self._before()
        self._flushing = False
        parts, self._parts, self._size = self._parts, [], 0
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))
            self.last_write = self._loop.time()
        self._give_room()

    def _give_room(self) -> None:
        if self._starved and not self._paused and not self.closed:
            self._starved = False
            self._room()
