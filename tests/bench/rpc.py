"""A caller as any AMQP client is one: publishes, confirmed and persistent, and awaits the reply by its correlation id."""

import asyncio
from types import TracebackType
from typing import Self
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage


class Rpc:
    """Many calls at once on one connection; the same for the service and for what it is measured beside."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._exchanges: dict[str, AbstractExchange] = {}

    async def __aenter__(self) -> Self:
        self._connection: AbstractConnection = await aio_pika.connect(self._url)
        self._channel: AbstractChannel = await self._connection.channel()
        replies = await self._channel.declare_queue(exclusive=True, auto_delete=True)
        self._reply_to = replies.name
        await replies.consume(self._on_reply, no_ack=True)
        self._exchanges[""] = self._channel.default_exchange
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self._connection.close()

    async def call(
        self, exchange: str, type_: str, body: bytes, *, message_id: str | None = None, deadline: float = 60
    ) -> bytes:
        """The reply's body. Raises TimeoutError."""
        message_id = message_id or str(uuid4())
        reply = self._waiting[message_id] = asyncio.get_running_loop().create_future()
        if exchange not in self._exchanges:
            self._exchanges[exchange] = await self._channel.get_exchange(exchange, ensure=False)
        try:
            async with asyncio.timeout(deadline):
                await self._exchanges[exchange].publish(
                    aio_pika.Message(
                        body,
                        message_id=message_id,
                        correlation_id=message_id,
                        reply_to=self._reply_to,
                        type=type_,
                        content_type="application/json",
                        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    ),
                    type_,
                )
                answer: bytes = await reply
                return answer
        finally:
            del self._waiting[message_id]

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        reply = self._waiting.get(message.correlation_id or "")
        if reply is not None and not reply.done():
            reply.set_result(message.body)
