"""Connections for a moment, which nobody restores."""

import aio_pika
from aio_pika.abc import AbstractConnection


class _ShortConnection(aio_pika.Connection):
    async def connect(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the library's
        try:
            await super().connect(timeout)
        except BaseException:
            await self.close()
            raise


async def connect(url: str, *, seconds: float | None = None) -> AbstractConnection:
    """A connection that is closed already if it cannot be opened within ``seconds``.

    aio-pika closes one that nobody keeps when it is collected as garbage, in whatever thread that happens; in one without
    an event loop its coroutine is left over ("Connection.close was never awaited").

    Raises:
        AMQPError, OSError: the broker cannot be reached.
    """
    return await aio_pika.connect(url, timeout=seconds, connection_class=_ShortConnection)
