"""How many messages wait in queues, and how many consume them: what the broker says to whoever may use the queue."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping

from aio_pika.abc import AbstractConnection

from cml_contracts.amqp import outage
from cml_contracts.broker import Nodes, connect
from cml_workers.bus.port import BusUnavailableError
from cml_workers.bus.topology import Queue
from cml_workers.foundation.metrics import QUEUE_CONSUMERS, QUEUE_MESSAGES

LOOKS_EVERY = 10.0
"""Seconds between two looks."""
TIMEOUT = 5.0
"""Seconds for one look of a role, or at one queue of many."""


async def keep_measured(
    connected: Callable[[], AbstractConnection | None], consumed: Callable[[], Collection[Queue]]
) -> None:
    """Measure those that a role consumes, now and then, and return never. What cannot be asked is not shown: that has a reason which readiness has, too."""
    while True:
        queues = consumed()
        try:
            async with asyncio.timeout(TIMEOUT):
                await _look(connected(), queues)
        except BaseException as error:
            if not isinstance(error, Exception) and outage(error) is None:
                raise
            # Whatever it is, the consumers find out for themselves.
            for name in {_shown_as(each) for each in queues}:
                QUEUE_MESSAGES.remove(name)
                QUEUE_CONSUMERS.remove(name)
        await asyncio.sleep(LOOKS_EVERY)


async def _look(connection: AbstractConnection | None, queues: Collection[Queue]) -> None:
    """On a channel of its own, which is not restored with the connection."""
    messages: dict[str, int] = defaultdict(int)
    consumers: dict[str, list[int]] = defaultdict(list)
    transport = connection and connection.transport
    if not transport:
        raise ConnectionError("not connected")
    channel = await transport.connection.channel()
    try:
        for each in queues:
            found = await channel.queue_declare(each.name, passive=True)
            messages[_shown_as(each)] += found.message_count or 0
            consumers[_shown_as(each)].append(found.consumer_count or 0)
    finally:
        await channel.close()
    for name, waiting in messages.items():
        QUEUE_MESSAGES.labels(name).set(waiting)
        QUEUE_CONSUMERS.labels(name).set(min(consumers[name]))


def _shown_as(queue: Queue) -> str:
    """Senders' own queues are shown with the one of all: no label grows with users."""
    return (queue.shared or queue).name


async def depths(url: str, queues: Iterable[str]) -> Mapping[str, Mapping[str, int] | str]:
    """Of each queue ``messages`` that are ready and ``consumers``; or why it is not known. Raises BusUnavailableError."""
    found: dict[str, Mapping[str, int] | str] = {}
    try:
        async with await connect(Nodes(url, "RABBITMQ_URL")) as connection:
            for name in queues:
                found[name] = await _depth(connection, name)
    except BaseException as error:
        if (cause := outage(error)) is None:
            raise
        raise BusUnavailableError(f"RabbitMQ: {cause}") from error
    return found


async def _depth(connection: AbstractConnection, queue: str) -> Mapping[str, int] | str:
    """On a channel of its own: the broker closes it with a refusal."""
    try:
        async with asyncio.timeout(TIMEOUT), connection.channel() as channel:
            said = (await channel.declare_queue(queue, passive=True)).declaration_result
    except BaseException as error:
        if (cause := outage(error)) is None:
            raise
        return cause
    return {"messages": said.message_count or 0, "consumers": said.consumer_count or 0}
