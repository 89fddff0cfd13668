"""Callers who ask one thing after the other, each until it is answered: by our client, and by aio-pika alone."""

import asyncio
import contextlib
import time
from itertools import count
from typing import Protocol, Self
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from cml_contracts.client import NoResultYetError, NotSentError, WorkerClient
from cml_contracts.commands import CreateCMLWorker, UpdateCMLWorkerTags, WorkerCommand
from cml_contracts.queries import GetCMLWorker, Query
from cml_contracts.topology import COMMANDS_EXCHANGE, QUERIES_EXCHANGE
from cml_embedded.ec2_simulator import DEMO_IMAGES
from system.cluster.waits import Waits

PAUSE = 0.25
"""Seconds between an answer and the next command."""
PATIENCE = 10.0
"""Seconds after which a caller asks again, under the same id."""


Request = WorkerCommand | Query


class Caller(Protocol):
    """``ask`` returns when it is answered."""

    kind: str

    async def ask(self, request: Request) -> None: ...


class ByClient:
    """By ``WorkerClient``, which sends again by itself when its connection is lost."""

    kind = "WorkerClient"

    def __init__(self, client: WorkerClient) -> None:
        self._client = client

    async def ask(self, request: Request) -> None:
        command_id = str(uuid4())
        while True:
            with contextlib.suppress(NotSentError, NoResultYetError):
                if isinstance(request, Query):
                    await self._client.query(request, deadline=PATIENCE)
                else:
                    await self._client.send(request, command_id=command_id, deadline=PATIENCE)
                return
            await asyncio.sleep(0.1)


class ByAioPika:
    """By aio-pika alone, with direct reply-to: whatever fails, it connects again and asks again under the same id."""

    kind = "aio-pika"

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel
        self._asked = ""
        self._answered: asyncio.Future[None]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def ask(self, request: Request) -> None:
        self._asked = message_id = str(uuid4())
        while True:
            self._answered = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._publish(request, message_id)
                    await self._answered
                return
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) and task.cancelling():
                    raise
            except Exception:  # noqa: BLE001 - the library raises a plain one, among others
                pass
            await self._close()
            await asyncio.sleep(0.1)

    async def _publish(self, request: Request, message_id: str) -> None:
        if self._connection is None:
            self._connection = await aio_pika.connect(self._url)
            self._connection.close_callbacks.add(self._lost)
            self._channel = await self._connection.channel(on_return_raises=True)
            replies = await self._channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
            await replies.consume(self._on_reply, no_ack=True)
        message = aio_pika.Message(
            request.model_dump_json(exclude_none=True).encode(),
            message_id=message_id,
            correlation_id=message_id,
            type=request.TYPE,
            reply_to="amq.rabbitmq.reply-to",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        to = QUERIES_EXCHANGE if isinstance(request, Query) else COMMANDS_EXCHANGE
        exchange = await self._channel.get_exchange(to.name, ensure=False)
        await exchange.publish(message, request.TYPE, mandatory=True)

    def _lost(self, connection: AbstractConnection | None, *_: object) -> None:
        """It asks again at once."""
        if connection is self._connection and not self._answered.done():
            self._answered.set_exception(ConnectionError("lost"))

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        if message.correlation_id == self._asked and not self._answered.done():
            self._answered.set_result(None)

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2):
                    await connection.close()


async def call(caller: Caller, who: str, waits: Waits) -> None:
    """Create a worker, then update its tags and look at it, until cancelled."""
    worker_id = uuid4()
    create = CreateCMLWorker(
        name=who,
        aws_region="us-east-1",
        ami_id=DEMO_IMAGES["us-east-1"],
        created_by=who,
        worker_id=worker_id,
    )
    await _timed(caller, create, who, waits)
    for number in count():
        await _timed(caller, UpdateCMLWorkerTags(worker_id=worker_id, tags={"n": str(number)}), who, waits)
        await _timed(caller, GetCMLWorker(worker_id=worker_id), who, waits)
        await asyncio.sleep(PAUSE)


async def _timed(caller: Caller, request: Request, who: str, waits: Waits) -> None:
    kind = f"{'queries' if isinstance(request, Query) else 'commands'}, {caller.kind}"
    began = time.monotonic()
    await caller.ask(request)
    waits.over(kind, who, began)
