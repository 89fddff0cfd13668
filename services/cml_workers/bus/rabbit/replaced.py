"""A queue that took the place of one of an earlier version: what waits there is moved, and the earlier one deleted."""

import asyncio
from collections.abc import Iterable

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from cml_contracts.amqp import outage
from cml_contracts.broker import Nodes, connect
from cml_workers.bus.headers import OWN_HEADERS, USER_HEADER
from cml_workers.bus.topology import Queue

log = structlog.get_logger(__name__)

TIMEOUT = 5.0
"""Seconds for one queue. The node that has the earlier one may be down; no role needs it for its start."""


async def replace_earlier(nodes: Nodes, queues: Iterable[Queue]) -> None:
    """Unbind earlier queues, move their messages, delete them. What cannot be done now is left to the next start.

    Raises:
        AMQPError, OSError: the broker cannot be reached.
    """
    replacing = [(queue, queue.replaces) for queue in queues if queue.replaces]
    if not replacing:
        return
    async with await connect(nodes) as connection:
        for queue, earlier in replacing:
            await _replace(connection, queue, earlier, nodes.user)


async def _replace(connection: AbstractConnection, queue: Queue, earlier: str, own_user: str) -> None:
    try:
        async with asyncio.timeout(TIMEOUT):
            moved = await _move(await connection.channel(), queue, earlier, own_user)
        log.info("queue of an earlier version replaced", queue=earlier, by=queue.name, moved=moved)
    except ChannelNotFoundEntity:
        return
    except ChannelPreconditionFailed as error:
        _left(earlier, str(error))
    except BaseException as error:
        if (cause := outage(error)) is None:
            raise
        _left(earlier, cause)


async def _move(channel: AbstractChannel, queue: Queue, earlier: str, own_user: str) -> int:
    """How many messages were moved.

    Raises ChannelNotFoundEntity: the earlier queue is gone; ChannelPreconditionFailed: an earlier version still consumes it.
    """
    unbinding = await channel.get_queue(earlier, ensure=False)
    for binding in queue.bindings:  # also of a queue whose node is down: it would refuse what is published
        await unbinding.unbind(binding.exchange.name, binding.routing_key)
    old = await channel.declare_queue(earlier, passive=True)
    moved = 0
    while (message := await old.get(fail=False)) is not None:
        await channel.default_exchange.publish(_again(message, own_user), queue.name)
        await message.ack()
        moved += 1
    await old.delete(if_unused=True, if_empty=True)
    return moved


def _again(message: AbstractIncomingMessage, own_user: str) -> aio_pika.Message:
    """The same message, in its sender's name: see ``messages``."""
    headers = {name: value for name, value in message.headers.items() if name not in OWN_HEADERS}
    return aio_pika.Message(
        message.body,
        headers={**headers, USER_HEADER: message.user_id or ""},
        content_type=message.content_type,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        message_id=message.message_id,
        type=message.type or message.routing_key,
        user_id=own_user,
    )


def _left(earlier: str, cause: str) -> None:
    log.warning("queue of an earlier version is left for the next start", queue=earlier, cause=cause)
