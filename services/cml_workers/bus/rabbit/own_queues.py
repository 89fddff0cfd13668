"""Consuming the senders' own queues: each on a channel that is not restored with the connection.

So one that is missing, or that does not answer, is left out, and consumed when it is there: nobody else waits for it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
from aiormq.exceptions import ChannelAccessRefused

from cml_contracts.amqp import closed, outage
from cml_workers.bus.port import BusConfigurationError, BusUnavailableError
from cml_workers.bus.rabbit.consuming import Consumer
from cml_workers.bus.rabbit.topology import ANSWER_TIMEOUT, no_right, usable
from cml_workers.bus.topology import Queue
from cml_workers.foundation.tasks import ended

log = structlog.get_logger(__name__)

LOOKS_EVERY, AGAIN = 1.0, 5.0
"""Seconds between two looks at a consumer; after which one that could not be is tried again."""


@dataclass(slots=True)
class _Own:
    """``channel`` and ``tag``: what it is consumed by, while it is."""

    queue: Queue
    consumer: Consumer
    prefetch: int
    channel: Any | None = None
    tag: str = ""
    problem: str | None = None

    @property
    def is_consumed(self) -> bool:
        return self.channel is not None and consumes(self.channel, self.tag)


class OwnQueues:
    """``connection``: the role's, at whichever node it is now; ``declare``: what is missing is made; ``delivered`` is called with each delivery."""

    def __init__(
        self,
        connection: Callable[[], AbstractConnection | None],
        *,
        user: str,
        declare: bool,
        delivered: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._user = user
        self._declare = declare
        self._delivered = delivered
        self._own: dict[str, _Own] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = False

    def add(self, queue: Queue, consumer: Consumer, *, prefetch: int) -> None:
        """Have it consumed; before ``start``."""
        self._own[queue.name] = _Own(queue, consumer, prefetch)

    def start(self) -> None:
        """Begin to consume them, and to try again what could not be. Waits for none."""
        self._tasks = [
            asyncio.create_task(self._keep(each), name=f"consumes {name}") for name, each in self._own.items()
        ]

    async def cancel(self) -> None:
        """Consume no more; what was delivered is still handled."""
        self._ending = True
        for each in self._own.values():
            if each.channel is not None and each.is_consumed:
                await closed(each.channel.basic_cancel(each.tag))

    async def stop(self) -> None:
        """End the tasks; after ``cancel``, and after the handlers, as a call that is cancelled may cost the connection."""
        for task in self._tasks:
            await ended(task)

    @property
    def consumed(self) -> list[Queue]:
        """Those that are consumed now."""
        return [each.queue for each in self._own.values() if each.is_consumed]

    def problems(self) -> Mapping[str, str]:
        """Why a queue is not consumed, by its name; not of those that are, nor while there is no connection."""
        return {name: each.problem for name, each in self._own.items() if each.problem}

    async def _keep(self, own: _Own) -> None:
        """Return when it is to end."""
        while not self._ending:
            if not own.is_consumed:
                await self._renew(own)
            await asyncio.sleep(AGAIN if own.problem else LOOKS_EVERY)

    async def _renew(self, own: _Own) -> None:
        """Try to consume it on a new channel, and note what comes of it."""
        if own.channel is not None and not own.channel.is_closed:
            await closed(own.channel.close())  # the broker has cancelled the consumer: the queue was deleted
        own.channel, before = None, own.problem
        own.problem = await self._consume(own)
        if own.problem and own.problem != before:
            log.warning("a sender's own queue is not consumed", queue=own.queue.name, cause=own.problem)
        if before and own.is_consumed:
            log.warning("a sender's own queue is consumed again", queue=own.queue.name)

    async def _consume(self, own: _Own) -> str | None:
        """Why it cannot be; None if it is, and while there is no connection, which is not the queue's problem."""
        connection = self._connection()
        if connection is None or not connection.connected.is_set():
            return None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                channel = aio_pika.Channel(connection, publisher_confirms=False)
                await channel.initialize()
                queue = await usable(connection, channel, own.queue, user=self._user, declare=self._declare)
                await channel.set_qos(own.prefetch)
                underlay = await channel.get_underlay_channel()
                own.tag = await queue.consume(self._on_message(own.consumer))
                own.channel = underlay
        except ChannelAccessRefused as error:
            return no_right(self._user, f"queue {own.queue.name!r}", str(error))
        except (BusConfigurationError, BusUnavailableError) as error:
            return str(error)
        except BaseException as error:
            if (cause := outage(error)) is None:
                if not isinstance(error, Exception):
                    raise
                log.exception("a sender's own queue cannot be consumed", queue=own.queue.name)
            return (cause or repr(error)) if connection.connected.is_set() else None
        return None

    def _on_message(self, consumer: Consumer) -> Callable[[AbstractIncomingMessage], Awaitable[None]]:
        async def on_message(received: AbstractIncomingMessage) -> None:
            self._delivered()
            await consumer.on_message(received)

        return on_message


def consumes(channel: Any, tag: str | None) -> bool:
    """Whether the broker still delivers to this consumer: aiormq forgets one that the broker cancelled."""
    return not channel.is_closed and tag in channel.consumers
