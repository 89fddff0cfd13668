"""A connection to RabbitMQ that is replaced when it is lost, with an address for replies.

Nothing is declared again under the name it had: an exclusive queue whose node is dead stays locked until that node is back
(RabbitMQ 4.2 and later). Each connection has names of its own.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from cml_contracts.amqp import CLOSE_SECONDS, closed, outage
from cml_contracts.broker import Nodes, attempt, connect
from cml_contracts.topology import reply_queue

PAUSE = 0.5
"""Seconds between two attempts to connect."""
CONFIRM_SECONDS, LEAST_CONFIRM_SECONDS = 10.0, 2.0
"""How long a node may confirm nothing, across calls, and how long each call waits at least, as nobody may have seen the confirm of the one
before."""
AGAIN_SECONDS = 2.5
"""How long a message waits for its confirm until it is published again on the same connection; then twice as long. A channel whose
quorum queue was without a leader when the message came keeps it, and sends it on when the queue confirms the next one
(``rabbit_fifo_client``, which has no time-out for it)."""
LOOKS_EVERY = 10.0
"""Seconds between two looks whether the broker still knows a queue of this connection. Nodes that were separated from its own for a
while may have forgotten it: then it is consumed, and gets nothing."""
SETUP_SECONDS = 10.0
"""How long a broker may take to open a channel, and to declare and consume a queue."""


@dataclass(slots=True)
class Session:
    """One connection, until it is ``lost``: a channel to publish, and the address of the replies.

    ``asked_at``: since when a confirm is missing and none has come, by the event loop's clock; None: it is not.
    """

    connection: AbstractConnection
    channel: AbstractChannel
    reply_to: str
    lost: asyncio.Event
    asked_at: float | None = None

    def ask(self, tries: int = 0) -> float:
        """A message is published, after so many ``tries``: until when it is to be confirmed."""
        now = asyncio.get_running_loop().time()
        if self.asked_at is None:
            self.asked_at = now
        until = max(self.asked_at + CONFIRM_SECONDS, now + LEAST_CONFIRM_SECONDS)
        return min(until, now + AGAIN_SECONDS * 2.0 ** min(tries, 30))

    def confirm(self) -> None:
        """The broker has confirmed a message."""
        self.asked_at = None

    @property
    def is_silent(self) -> bool:
        """Its node may be separated from the others: then it answers heartbeats, and confirms nothing."""
        now = asyncio.get_running_loop().time()
        return self.asked_at is not None and now >= self.asked_at + CONFIRM_SECONDS


class ClosedError(ConnectionError):
    """There is no session any more, and will be none."""


class Sessions:
    """The session there is, or will be. ``on_reply``: gets the replies; ``on_new``: called for each but the first."""

    def __init__(
        self,
        nodes: Nodes,
        *,
        on_reply: Callable[[AbstractIncomingMessage], Awaitable[Any]],
        on_new: Callable[[], None],
    ) -> None:
        self._nodes = nodes
        self._on_reply = on_reply
        self._on_new = on_new
        self._current: asyncio.Future[Session] | None = None
        self._connection: AbstractConnection | None = None
        self._keeping: asyncio.Task[None] | None = None
        self.trouble = ""
        """While there is none: why, with a colon before it."""

    async def open(self) -> None:
        """Connect. Raises AMQPError, OSError."""
        self._connection = await connect(self._nodes)
        session = await self._opened(self._connection)
        self._current = asyncio.get_running_loop().create_future()
        self._current.set_result(session)
        self._keeping = asyncio.create_task(self._keep(session), name="connection to RabbitMQ")

    async def close(self) -> None:
        """Disconnect, and connect no more."""
        if self._keeping is None or self._current is None or self._connection is None:
            return
        await ended(self._keeping)
        if self._current.done():
            self._current = asyncio.get_running_loop().create_future()
        self._current.set_exception(ClosedError("the client is closed"))
        self._current.exception()  # seen, also if nobody waits
        await closed(self._connection.close())

    async def current(self) -> Session:
        """The session; waits until there is one. Raises ClosedError."""
        assert self._current is not None, "use the client in `async with`"  # noqa: S101
        while True:
            session = await asyncio.shield(self._current)
            if not session.lost.is_set():
                return session
            await asyncio.sleep(0)  # its successor is awaited from the next moment on

    async def _keep(self, session: Session) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await until_lost(session.lost, session.connection, session.reply_to)
            self._current = loop.create_future()
            self.trouble = ": the connection was lost"
            if loop.time() - began < PAUSE:
                await asyncio.sleep(PAUSE)  # it may be lost for what is sent on it
            session = await self._successor(session)
            self.trouble = ""
            self._current.set_result(session)
            self._on_new()

    async def _successor(self, lost: Session) -> Session:
        """Another session, on the same connection if only its channel was closed."""
        connection = lost.connection
        serves = connection.connected.is_set() and not lost.is_silent
        while True:
            try:
                if serves:
                    await closed(lost.channel.close())
                else:
                    await closed(connection.close())
                    connection = self._connection = await attempt(self._nodes)
                return await self._opened(connection)
            except BaseException as error:
                cause = outage(error)
                if cause is None and not isinstance(error, Exception):
                    raise
                self.trouble = f": {cause or error!r}"
            # The library takes one for connected that was closed while it was opened: none is tried twice.
            serves = False
            await asyncio.sleep(PAUSE)

    async def _opened(self, connection: AbstractConnection) -> Session:
        lost = asyncio.Event()
        try:
            async with asyncio.timeout(SETUP_SECONDS):
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                await watch(connection, channel, lost)
                reply_to = reply_queue(self._nodes.user, uuid4().hex)
                replies = await channel.declare_queue(reply_to, exclusive=True, auto_delete=True)
                await replies.consume(self._on_reply, no_ack=True)
        except BaseException:
            await closed(connection.close())
            raise
        return Session(connection, channel, reply_to, lost)


async def watch(connection: AbstractConnection, channel: AbstractChannel, lost: asyncio.Event) -> None:
    """Have ``lost`` set when nothing comes on this channel any more."""
    for closable in (connection, channel):
        closable.close_callbacks.add(lambda *_: lost.set())
    underlay = await channel.get_underlay_channel()
    underlay.on_consumer_cancel_callbacks.add(lambda *_: lost.set())


async def until_lost(lost: asyncio.Event, connection: AbstractConnection, queue: str) -> None:
    """Wait until ``lost`` is set, here if the broker does not know the connection's queue any more, or does not say."""

    async def look() -> None:
        known = True
        while known:
            await asyncio.sleep(LOOKS_EVERY)
            known = await _is_known(connection, queue)
        lost.set()

    looking = asyncio.create_task(look(), name=f"looks for {queue}")
    try:
        await lost.wait()
    finally:
        looking.cancel()


async def _is_known(connection: AbstractConnection, queue: str) -> bool:
    try:
        async with asyncio.timeout(SETUP_SECONDS):
            channel = await connection.channel()  # one that is asked for what is not there is closed
            await channel.declare_queue(queue, passive=True)
    except BaseException as error:
        if outage(error) is None:
            raise
        return False
    await closed(channel.close())
    return True


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel the task until it has ended: the AMQP library may lose a cancellation (python/cpython issue 86296)."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=CLOSE_SECONDS)
