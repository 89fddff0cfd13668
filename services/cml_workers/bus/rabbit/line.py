"""What is published on one channel: each message is noted when it is begun, written together with others, and answered.

The AMQP library takes a task's turn, two locks and a write for each message (``basic_publish``). Here a message is begun at once, and
all that are begun in one turn of the event loop are written together. The library's channel keeps the books: it reads the answers, and
knows by a message's id which one is returned. So nobody else may publish on this channel.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from uuid import uuid4

from aiormq import Channel
from aiormq.abc import ChannelFrame, ConfirmationFrameType
from aiormq.exceptions import ChannelInvalidStateError

from cml_workers.bus.port import Outgoing
from cml_workers.bus.rabbit.frames import frames
from cml_workers.foundation.ids import apart

CONFIRM_TIMEOUT = 15.0
"""Seconds to wait for a publisher confirm before it counts as missing."""
UNDRAINED = 500
"""Messages of the channel that are not answered, from which on each next one waits until the connection has taken those before it: one
that takes nothing, as RabbitMQ has too little memory or disk, must not fill ours."""

Answered = Callable[[asyncio.Future[ConfirmationFrameType]], None]


def no_answer() -> TimeoutError:
    """For what the broker has not answered in time."""
    return TimeoutError(f"no answer within {CONFIRM_TIMEOUT:g} s")


class Line:
    """``channel``: it and its line last equally long."""

    def __init__(self, channel: Channel, app_id: str) -> None:
        self.channel = channel
        self._app_id = app_id
        self._unwritten: list[bytes] = []
        self._writing: asyncio.Task[None] | None = None
        self._begun: dict[int, tuple[float, asyncio.Future[ConfirmationFrameType]]] = {}
        """What is not answered, by its number on the channel: since when, by the clock of the event loop."""
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._closing = channel.closing
        self._closing.add_done_callback(self._closed)

    @property
    def is_open(self) -> bool:
        return not self.channel.is_closed

    def has(self, message_id: str) -> bool:
        """Whether the message is begun and not answered: what is begun from now on is written behind it."""
        return message_id in self.channel.message_id_delivery_tag

    @property
    def is_full(self) -> bool:
        """Whether the next message has to wait until all before it are written."""
        return self._writing is not None and len(self.channel.confirmations) >= UNDRAINED

    async def written(self) -> None:
        """Wait until the connection has taken what is begun, or is lost."""
        if self._writing is not None:
            await asyncio.wait((self._writing,))

    def begin(self, message: Outgoing, answered: Answered, *, user_id: str | None) -> None:
        """Have it written. ``answered`` is called with the broker's answer, or with what the channel was closed by.

        ``user_id``: who publishes it, if the broker is to vouch for it. The future is cancelled if there is no answer within ``CONFIRM_TIMEOUT``.

        Raises ChannelInvalidStateError, if it is closed, and ValueError or TypeError for a message that cannot be encoded.
        """
        channel = self.channel
        if channel.is_closed:
            raise ChannelInvalidStateError("the channel is closed")
        message_id = message.message_id or uuid4().hex
        encoded = frames(
            message,
            message_id=message_id,
            user_id=user_id,
            app_id=self._app_id,
            channel=channel.number,
            most=channel.max_content_size,
        )
        channel.delivery_tag += 1
        tag = channel.delivery_tag
        answer: asyncio.Future[ConfirmationFrameType] = self._loop.create_future()
        channel.confirmations[tag] = answer
        channel.message_id_delivery_tag[message_id] = tag
        self._begun[tag] = self._loop.time(), answer
        answer.add_done_callback(partial(self._answered, tag, message_id))
        answer.add_done_callback(answered)
        self._unwritten.append(encoded)
        if self._writing is None:
            self._writing = self._loop.create_task(
                self._write(), name="writes what is published", context=apart()
            )
        if self._timer is None:
            self._timer = self._loop.call_later(CONFIRM_TIMEOUT, self._expire)

    def _answered(self, tag: int, message_id: str, _: object) -> None:
        self._begun.pop(tag, None)
        if self.channel.message_id_delivery_tag.get(message_id) == tag:
            del self.channel.message_id_delivery_tag[message_id]

    async def _write(self) -> None:
        try:
            while self._unwritten:
                taken = self._loop.create_future()
                payload = b"".join(self._unwritten)
                self._unwritten.clear()
                await self.channel.write_queue.put(
                    ChannelFrame(payload, should_close=False, drain_future=taken)
                )
                await taken
        finally:
            self._writing = None

    def _expire(self) -> None:
        """Give up what has waited too long; the first one begun has waited longest."""
        self._timer = None
        latest = self._loop.time() - CONFIRM_TIMEOUT
        for began, answer in list(self._begun.values()):
            if began > latest:
                self._timer = self._loop.call_at(began + CONFIRM_TIMEOUT, self._expire)
                return
            answer.cancel()

    def _closed(self, closing: asyncio.Future[object]) -> None:
        """No answer comes any more, and nobody takes what is not written."""
        reason = None if closing.cancelled() else closing.exception()
        for _, answer in list(self._begun.values()):
            if not answer.done():
                answer.set_exception(reason or ConnectionError("the channel was closed"))
        if self._writing is not None:
            self._writing.cancel()
        if self._timer is not None:
            self._timer.cancel()
