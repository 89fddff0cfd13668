"""Callers that send a command once, on a connection of their own, and keep every reply."""

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Self

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from cml_contracts.broker import connect
from cml_contracts.commands import WorkerCommand
from cml_contracts.envelope import JSON
from cml_contracts.results import OperationResult
from cml_contracts.tokens import TOKEN_HEADER
from cml_contracts.topology import COMMANDS_EXCHANGE
from support.canaries import CANARY

CONFIRM_SECONDS = 20.0
"""How long to wait for the broker's confirm before the message is published again."""
_QUORUM = {"x-queue-type": "quorum"}
_LOST = (Exception,)
"""The library raises a plain ``Exception``, among others, where the connection is gone."""


class Callers:
    """They know nothing of this project but the README, and their replies wait for them in a durable queue.

    A message is published until the broker confirms it, and never again: who has no confirm cannot know whether the
    message was taken. Another message about the same command, e.g. of an impatient caller, has an address of its own.
    """

    def __init__(self, url: str, queue: str) -> None:
        self.awaited: dict[str, str] = {}
        """By address (the correlation id): the command of each confirmed message that gave one."""
        self.replies: dict[str, list[OperationResult]] = {}
        """By command id, those to other callers' messages about it included."""
        self.answered: set[str] = set()
        """Addresses at which a reply came."""
        self.confirmed: dict[str, str] = {}
        """The type of each confirmed command, by its id."""
        self.unconfirmed = 0
        """Messages that were published again, as they were not confirmed. One that was taken all the same comes
        twice, which can make up for a loss: too many of them, and nothing is tested."""
        self._url, self.queue = url, queue
        self._channel: AbstractChannel | None = None
        self._connected = asyncio.Event()
        self._arrived = asyncio.Condition()
        self._connecting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._connecting = asyncio.create_task(self._stay_connected())
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)

    @property
    def unanswered(self) -> set[str]:
        """Addresses at which no reply came yet."""
        return self.awaited.keys() - self.answered

    async def send(self, command: WorkerCommand, command_id: str, address: str | None) -> None:
        """Publish it until it is confirmed; ``address``: where its reply is awaited, if it is."""
        message = aio_pika.Message(
            command.model_dump_json(exclude_none=True).encode(),
            message_id=command_id,
            type=command.TYPE,
            reply_to=self.queue if address else None,
            correlation_id=address,
            content_type=JSON,
            headers={TOKEN_HEADER: f"{CANARY} of {command_id}", "authorization": CANARY},
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        while not await self._confirmed(message, command.TYPE):
            await asyncio.sleep(0.2)
        self.confirmed[command_id] = command.TYPE
        if address:
            self.awaited[address] = command_id

    async def answer(self, address: str, seconds: float) -> bool:
        """Whether a reply comes to this address within so many seconds."""
        return await self._until(lambda: address in self.answered, seconds)

    async def all_answers(self, seconds: float) -> bool:
        """Whether a reply comes to every address within so many seconds."""
        return await self._until(lambda: not self.unanswered, seconds)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._arrived:
                await self._arrived.wait_for(condition)
        return condition()

    async def _confirmed(self, message: aio_pika.Message, routing_key: str) -> bool:
        await self._connected.wait()
        assert self._channel is not None
        published = False
        try:
            exchange = await self._channel.get_exchange(COMMANDS_EXCHANGE.name, ensure=False)
            published = True
            await exchange.publish(message, routing_key, mandatory=True, timeout=CONFIRM_SECONDS)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            self.unconfirmed += published  # the library gave the connection up
            return False
        except _LOST:
            self.unconfirmed += published
            return False
        return True

    async def _stay_connected(self) -> None:
        while True:
            lost = asyncio.Event()
            with contextlib.suppress(*_LOST):
                async with asyncio.timeout(20):
                    connection = await connect(self._url)
                try:
                    async with asyncio.timeout(20):
                        await self._open(connection, lost)
                    self._connected.set()
                    await lost.wait()
                finally:
                    self._connected.clear()
                    with contextlib.suppress(*_LOST):
                        async with asyncio.timeout(5):
                            await connection.close()
            await asyncio.sleep(0.2)

    async def _open(self, connection: aio_pika.abc.AbstractConnection, lost: asyncio.Event) -> None:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        for closable in (connection, channel):
            closable.close_callbacks.add(lambda *_: lost.set())
        await channel.set_qos(prefetch_count=100)
        queue = await channel.declare_queue(self.queue, durable=True, arguments=dict(_QUORUM))
        await queue.consume(self._on_reply)
        self._channel = channel

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        """Kept first, then acknowledged: if that fails it comes again."""
        result = OperationResult.model_validate_json(message.body)
        async with self._arrived:
            replies = self.replies.setdefault(result.command_id or "", [])
            replies.append(result)
            self.answered.add(message.correlation_id or "")
            self._arrived.notify_all()
        with contextlib.suppress(*_LOST):
            await message.ack()
