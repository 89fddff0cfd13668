"""A subscription to events that outlives the connection it began on."""

import asyncio
import logging
from types import TracebackType
from typing import Self
from uuid import uuid4

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import (
    AMQPChannelError,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from aiormq.exceptions import ChannelAccessRefused

from cml_contracts.amqp import closed, despite_outage, outage
from cml_contracts.envelope import EventEnvelope
from cml_contracts.session import (
    PAUSE,
    SETUP_SECONDS,
    ClosedError,
    Session,
    Sessions,
    ended,
    until_lost,
    watch,
)
from cml_contracts.topology import EVENTS_EXCHANGE, SUBSCRIBERS, subscriber_queue
from cml_contracts.unreadable import SteppedOver, event_in

log = logging.getLogger(__name__)

PREFETCH = 100
"""Events that are fetched before they are taken."""


class Subscription:
    """Events whose type matches the pattern, from ``async with`` on; see ``WorkerClient.events``."""

    def __init__(
        self, sessions: Sessions, pattern: str, queue: str | None, *, user: str, stepped_over: SteppedOver
    ) -> None:
        self._sessions = sessions
        self._pattern = pattern
        self._queue = queue
        self._user = user
        self._stepped_over = stepped_over
        self._name: str | None = None
        """The whole name of the queue."""
        self._as_it_is = False
        """The queue exists, with arguments of its own."""
        self._fetched: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        """None: no more will come."""
        self._taken: AbstractIncomingMessage | None = None
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keep(), name=f"events {self._pattern}")
        try:
            await self._begun
        except BaseException:
            await ended(self._keeping)
            raise
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._keeping is not None:
            await ended(self._keeping)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EventEnvelope:
        if self._taken is not None:
            taken, self._taken = self._taken, None
            with despite_outage():
                await taken.ack()
        while (message := await self._fetched.get()) is not None:
            if self._queue and _lost(message):
                continue  # it was not acknowledged, so it comes again
            try:
                event = event_in(message)
            except ValueError as error:
                with despite_outage():
                    await message.reject(requeue=False)
                self._stepped_over.add(self._name or "", message, error)
                continue
            self._taken = message
            return event
        self._fetched.put_nowait(None)
        raise StopAsyncIteration

    async def _keep(self) -> None:
        """Subscribe on each session. Ends when the client is closed, or if the broker does not let us begin."""
        try:
            while True:
                try:
                    await self._follow(await self._sessions.current())
                except ClosedError:
                    raise
                except BaseException as error:
                    if isinstance(error, ChannelPreconditionFailed) and not self._as_it_is:
                        log.warning("queue %s is used as it is, and no quorum queue: %s", self._queue, error)
                        self._as_it_is = True
                        continue
                    denied = isinstance(error, AMQPChannelError) and not self._begun.done()
                    if denied or outage(error) is None:
                        raise
                    await asyncio.sleep(PAUSE)
        except (AMQPChannelError, ClosedError) as error:
            if not self._begun.done():
                self._begun.set_exception(error)
        finally:
            self._fetched.put_nowait(None)

    async def _declared(self, connection: AbstractConnection, channel: AbstractChannel) -> AbstractQueue:
        if self._queue is None:
            self._name = subscriber_queue(self._user, uuid4().hex)
            return await channel.declare_queue(self._name, exclusive=True, auto_delete=True)
        if self._name is None:
            self._name = await self._whole_name(connection, self._queue)
        if self._as_it_is:
            return await channel.declare_queue(self._name, passive=True)
        return await channel.declare_queue(self._name, durable=True, arguments={"x-queue-type": "quorum"})

    async def _whole_name(self, connection: AbstractConnection, queue: str) -> str:
        """The name that the application gave, if it is whole or there is such a queue; otherwise with our prefix."""
        ours = subscriber_queue(self._user, "")
        if queue.startswith(ours):
            return queue
        if queue.startswith(SUBSCRIBERS) or await _is_there(connection, queue):
            log.warning(
                "queue %s keeps its name; others may have rights to it, as it does not begin with %s",
                queue,
                ours,
            )
            return queue
        return ours + queue

    async def _follow(self, session: Session) -> None:
        """Subscribe on a channel of its own; returns when that is lost. Raises AMQPError, OSError."""
        lost = asyncio.Event()
        async with asyncio.timeout(SETUP_SECONDS):
            channel = await session.connection.channel()
        try:
            async with asyncio.timeout(SETUP_SECONDS):
                await watch(session.connection, channel, lost)
                await channel.set_qos(prefetch_count=PREFETCH)
                events = await self._declared(session.connection, channel)
                await events.bind(EVENTS_EXCHANGE.name, self._pattern)
                await events.consume(self._fetched.put)
            if not self._begun.done():
                self._begun.set_result(None)
            if self._queue is None:
                await until_lost(lost, session.connection, events.name)
            else:
                await lost.wait()
        finally:
            await closed(channel.close())


async def _is_there(connection: AbstractConnection, queue: str) -> bool:
    """Whether there is such a queue that we may ask for. Raises AMQPError, OSError: it is not known."""
    channel = await connection.channel()  # the broker closes it if there is none
    try:
        await channel.declare_queue(queue, passive=True)
    except (ChannelNotFoundEntity, ChannelAccessRefused):
        return False
    await closed(channel.close())
    return True


def _lost(message: AbstractIncomingMessage) -> bool:
    """Whether the channel is closed on which it came; the library does not name a closed one."""
    try:
        return message.channel.is_closed
    except ChannelInvalidStateError:
        return True
