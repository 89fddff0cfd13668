"""A message that is kept, unacknowledged, while a part is unavailable that its handler needs."""

import asyncio

from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelInvalidStateError

from cml_workers.bus.port import Ack, Verdict
from cml_workers.bus.topology import Queue
from cml_workers.foundation.outages import Dependency

KEEPS = 900.0
"""Seconds, half of what RabbitMQ lets a consumer keep a message (``consumer_timeout``): then it takes all of them away, and counts that
against each."""


class NotHandledError(Exception):
    """It is not handled, and not by its fault."""


class LostError(NotHandledError):
    """The channel that it came by is closed: it is delivered again."""


class GivenBackError(NotHandledError):
    """Its consumer ends: it goes back."""


class KeptForLongError(NotHandledError):
    """It goes to the end of its queue, as a new message."""


class Kept:
    """``ending``: set when its consumer ends."""

    def __init__(self, message: AbstractIncomingMessage, queue: Queue, ending: asyncio.Event) -> None:
        self._message = message
        self._ending = ending
        now = asyncio.get_running_loop().time()
        self._until = now + KEEPS
        ttl = queue.arguments.get("x-message-ttl")
        ages = [ttl / 1000] if isinstance(ttl, int) else []
        if isinstance(message.expiration, int | float):
            ages.append(message.expiration)
        self._expires = now + min(ages) if ages else None

    def check(self) -> None:
        """Raise LostError if it is not ours any more."""
        try:
            _ = self._message.channel
        except ChannelInvalidStateError:
            raise LostError from None

    async def until(self, part: Dependency) -> Verdict | None:
        """Wait for the part to answer. What expires meanwhile is dropped, as in its queue.

        Raises NotHandledError: it is not to wait any longer.
        """
        self.check()
        over = part.over
        if over is None:
            return None
        loop = asyncio.get_running_loop()
        closing = self._message.channel.closing
        ending = asyncio.create_task(self._ending.wait())
        ends = self._until if self._expires is None else min(self._until, self._expires)
        try:
            await asyncio.wait(
                (over, closing, ending),
                timeout=max(ends - loop.time(), 0.0),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            ending.cancel()
            closing.cancel()  # of a channel that is open, an observer of our own
        self.check()
        if self._ending.is_set():
            raise GivenBackError
        if self._expires is not None and loop.time() >= self._expires:
            return Ack()
        if loop.time() >= self._until and part.over is not None:
            raise KeptForLongError
        return None
