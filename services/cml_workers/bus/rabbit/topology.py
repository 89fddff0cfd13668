"""Declares the topology at the broker, or verifies that it is there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractQueue
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from cml_contracts.broker import Nodes, connect
from cml_contracts.topology import Exchange
from cml_workers.bus.port import BusUnavailableError, TopologyError
from cml_workers.bus.rabbit.reaching import missing
from cml_workers.bus.rabbit.replaced import replace_earlier
from cml_workers.bus.topology import DEAD_LETTER_EXCHANGE, Queue, counts_as
from cml_workers.bus.usage import EVERYTHING, Usage, retry_queues

log = structlog.get_logger(__name__)

ANSWER_TIMEOUT = 10.0
"""Seconds for one exchange or queue; RabbitMQ itself gives up on a queue whose node is down after a minute."""
ASKS = 6
"""How often one is asked for before the role ends."""
CONFIGURE_NEEDED = ("4.2.6", "4.3.0")
"""Versions of RabbitMQ that want the right to configure from whoever asks whether something is there
(https://github.com/rabbitmq/rabbitmq-server/issues/16085)."""


class _NoAnswerError(Exception):
    """The broker has it, and does not answer for it."""


class _Asking:
    """One channel; each error names what was asked for."""

    def __init__(self, channel: AbstractChannel, user: str, version: str, *, passive: bool) -> None:
        self._channel = channel
        self._user = user
        self._version = version
        self._passive = passive

    async def exchange(self, exchange: Exchange) -> None:
        async with self._asked(f"exchange {exchange.name!r}"):
            try:
                await self._channel.declare_exchange(
                    exchange.name, exchange.kind, durable=not self._passive, passive=self._passive
                )
            except ChannelPreconditionFailed:
                if exchange != DEAD_LETTER_EXCHANGE:
                    raise
                # An earlier version's fanout, which is as good where roles may declare anything.
                await self._channel.reopen()

    async def queue(self, name: str, arguments: Mapping[str, Any] | None = None) -> AbstractQueue:
        async with self._asked(f"queue {name!r}", is_own=counts_as(name) not in (name, None)):
            return await self._channel.declare_queue(
                name, durable=not self._passive, passive=self._passive, arguments=dict(arguments or {})
            )

    async def declared(self, queue: Queue) -> AbstractQueue:
        """With its bindings."""
        declared = await self.queue(queue.name, queue.arguments)
        for binding in queue.bindings:
            await self.bind(declared, binding.exchange, binding.routing_key)
        return declared

    async def bind(self, queue: AbstractQueue, exchange: Exchange, routing_key: str) -> None:
        async with self._asked(f"queue {queue.name!r}"):
            await queue.bind(exchange.name, routing_key)

    async def unbind(self, queue: AbstractQueue, exchange: Exchange, routing_key: str) -> None:
        async with self._asked(f"queue {queue.name!r}"):
            await queue.unbind(exchange.name, routing_key)

    @asynccontextmanager
    async def _asked(self, subject: str, *, is_own: bool = False) -> AsyncIterator[None]:
        """``is_own``: it is a queue of one sender."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                yield
        except TimeoutError as error:
            raise _NoAnswerError(subject) from error
        except ChannelNotFoundEntity as error:
            if not missing(error):
                raise _NoAnswerError(f"{subject} ({error})") from error
            what = (
                "what `cml-workers broker-user definitions` prints into RabbitMQ, or take that sender out of CML_SENDERS"
                if is_own
                else "what `python -m cml_tools.definitions --without-users` prints into RabbitMQ"
            )
            raise TopologyError(
                f"{subject} is missing: import {what}, or let the roles "
                "declare what is missing with CML_DECLARE_TOPOLOGY=true and a user that may configure it"
            ) from error
        except ChannelAccessRefused as error:
            raise TopologyError(self._refused(subject, str(error))) from error
        except ChannelPreconditionFailed as error:
            raise TopologyError(
                f"{subject} exists with other arguments ({error}). Arguments cannot be changed: drain it, "
                f"delete it (rabbitmqctl delete_queue, or the management page) and start again."
            ) from error

    def _refused(self, subject: str, error: str) -> str:
        if not self._passive:
            return (
                f"user {self._user!r} may not declare {subject} ({error}): give it the right to configure, or import "
                "deploy/rabbitmq/definitions.json into RabbitMQ and set CML_DECLARE_TOPOLOGY=false"
            )
        if self._version in CONFIGURE_NEEDED:
            return (
                f"user {self._user!r} may not ask for {subject} ({error}): RabbitMQ {self._version} wants the right to "
                "configure it for that, which no role has; use a later version"
            )
        return no_right(self._user, subject, error)


def no_right(user: str, subject: str, error: str) -> str:
    """What to do about a right that is missing."""
    return (
        f"user {user!r} has no right to {subject} ({error}): RABBITMQ_URL must name the user of this role, with its "
        "rights of deploy/rabbitmq/definitions.json"
    )


async def declare_topology(where: Nodes | str, uses: Usage = EVERYTHING) -> None:
    """Declare the exchanges, queues and bindings that are used; what exists already stays as it is, but for former bindings.

    Raises:
        TopologyError: something exists with other arguments, or may not be declared.
        BusUnavailableError: the broker does not answer for one of them.
        AMQPError, OSError: the broker cannot be reached.
    """
    nodes = Nodes.of(where)

    async def declare(asking: _Asking) -> None:
        bound = (binding.exchange for queue in uses.declares for binding in queue.bindings)
        for exchange in dict.fromkeys((*uses.exchanges, *bound)):
            await asking.exchange(exchange)
        for queue in uses.declares:
            declared = await asking.declared(queue)
            for binding in queue.former:
                if binding.exchange in uses.publishes:
                    await asking.unbind(declared, binding.exchange, binding.routing_key)
            for name, arguments in retry_queues(queue).items():
                await asking.queue(name, arguments)

    await _until_answered(nodes, declare, passive=False)
    await replace_earlier(nodes, uses.consumes)


async def verify_topology(where: Nodes | str, uses: Usage) -> None:
    """Check that the exchanges and queues that are used exist; this needs no right to configure anything.

    Raises:
        TopologyError: something is missing, or the user has no right to it.
        BusUnavailableError: the broker does not answer for one of them.
        AMQPError, OSError: the broker cannot be reached.
    """
    nodes = Nodes.of(where)

    async def verify(asking: _Asking) -> None:
        for exchange in uses.exchanges:
            await asking.exchange(exchange)
        for name in uses.queues:
            await asking.queue(name)

    await _until_answered(nodes, verify, passive=True)


async def _until_answered(nodes: Nodes, ask: Callable[[_Asking], Awaitable[None]], *, passive: bool) -> None:
    """Ask on a new connection each time, at the next node: a channel that waits for an answer answers nothing else."""
    for attempt in range(1, ASKS + 1):
        try:
            async with await connect(nodes) as connection:
                channel = await connection.channel()
                await ask(_Asking(channel, nodes.user, _version(connection), passive=passive))
                return
        except _NoAnswerError as error:
            if attempt == ASKS:
                raise _unanswered(error) from error
            log.warning(
                "RabbitMQ does not answer for what the role needs; it is asked again", what=str(error)
            )


async def usable(
    connection: AbstractConnection, channel: AbstractChannel, queue: Queue, *, user: str, declare: bool
) -> AbstractQueue:
    """The queue, which may be made where it is missing. What it needs for that is asked once, on this channel.

    Raises:
        TopologyError: it is missing, has other arguments, or the user has no right to it.
        BusUnavailableError: the broker does not answer for it.
        AMQPError, OSError: the connection is lost.
    """
    asking = _Asking(channel, user, _version(connection), passive=not declare)
    try:
        if not declare:
            return await asking.queue(queue.name)
        for binding in queue.bindings:
            await asking.exchange(binding.exchange)
        return await asking.declared(queue)
    except _NoAnswerError as error:
        raise _unanswered(error) from error


def _unanswered(error: _NoAnswerError) -> BusUnavailableError:
    return BusUnavailableError(f"RabbitMQ does not answer for {error}: the node that has it may be down")


def _version(connection: AbstractConnection) -> str:
    transport: Any = connection.transport
    return str(transport.connection.server_properties.get("version")) if transport else ""
