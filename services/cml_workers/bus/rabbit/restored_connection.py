"""A role's connection: restored by the library, at whichever node answers, and never waiting long for one that hangs."""

import asyncio
from typing import Any

import aio_pika
from aio_pika.abc import UnderlayConnection
from faststream.rabbit import RabbitBroker
from yarl import URL

from cml_contracts.amqp import closed
from cml_contracts.broker import CONNECT_SECONDS, Nodes, first, no_answer
from cml_workers.bus.rabbit.reaching import missing

RESTORE_SECONDS = 20.0
"""How long a node may take until channels and consumers are there again."""


async def connect(broker: RabbitBroker, nodes: Nodes) -> None:
    """Connect the broker, and have it reconnect, by ``nodes``. Raises as ``cml_contracts.broker.connect``."""

    def make(url: URL, **options: Any) -> RestoredConnection:
        return RestoredConnection(url, nodes=nodes, **options)

    options = broker._connection_kwargs  # noqa: SLF001 - FastStream has no other way
    options.update(connection_class=make, timeout=CONNECT_SECONDS)
    await first(nodes, broker.connect)


class RestoredConnection(aio_pika.RobustConnection):
    """Restored at whichever node answers."""

    def __init__(self, url: URL, *, nodes: Nodes, **options: Any) -> None:
        super().__init__(url, **options)
        self.kwargs["transport_factory"] = nodes
        self._missed: tuple[float, str] | None = None

    @property
    def missing(self) -> str | None:
        """The broker's words, if it is there but has not restored the connection, as a queue or an exchange does not exist."""
        if self._missed is None or self.loop.time() - self._missed[0] > CONNECT_SECONDS:
            return None
        return self._missed[1]

    async def connect(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the library's
        try:
            await super().connect(timeout)
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError):
                raise no_answer() from error
            raise

    async def _on_connected(self) -> None:
        transport = self.transport
        try:
            async with asyncio.timeout(RESTORE_SECONDS):
                await super()._on_connected()
            self._missed = None
        except BaseException as error:
            if missing(error):
                self._missed = (self.loop.time(), str(error))
            await _leave(transport)  # otherwise the library takes it for restored
            raise

    async def give_up(self) -> None:
        """Leave this node: the library connects to the next one."""
        await _leave(self.transport)


async def _leave(transport: UnderlayConnection | None) -> None:
    if transport is not None:
        await closed(transport.connection.close())
