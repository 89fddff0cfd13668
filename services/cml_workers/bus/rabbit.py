"""The bus on RabbitMQ, through FastStream: topology, consumers with retries and dead letters, publishing.

The verdict of a handler is carried out so that a message is never lost: it is acknowledged only after what
takes its place (the retry, the dead letter) has been confirmed. Whatever goes wrong in between ends in a
redelivery.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, cast
from uuid import uuid4

import aio_pika
import aiormq.exceptions
import structlog
from aio_pika.exceptions import AMQPError
from aiormq.connection import parse_heartbeat
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitQueue
from faststream.rabbit.message import RabbitMessage
from faststream.rabbit.subscriber.usecase import RabbitSubscriber
from yarl import URL

from cml_workers.bus.delivery import settle
from cml_workers.bus.direct_reply import DirectReplies
from cml_workers.bus.port import (
    ATTEMPT_HEADER,
    CAUSE_HEADER,
    DEATH_HEADER,
    DELIVERIES_HEADER,
    FAULT_HEADER,
    OWN_HEADERS,
    QUEUE_HEADER,
    REASON_HEADER,
    USER_HEADER,
    Ack,
    BusConfigurationError,
    BusUnavailableError,
    CallerRefusesError,
    DeadLetter,
    Handler,
    Message,
    Outgoing,
    Retry,
    TopologyError,
    UnroutableError,
    Verdict,
)
from cml_workers.bus.properties import UNREADABLE_HEADER, read_tolerantly
from cml_workers.bus.topology import DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, Queue
from cml_workers.bus.usage import EVERYTHING, Usage, retry_queues
from cml_workers.foundation.failures import ConfigurationError
from cml_workers.foundation.secrets import may_be_secret
from cml_workers.foundation.urls import redacted

log = structlog.get_logger(__name__)

CONFIRM_TIMEOUT = 15.0
"""Seconds to wait for a publisher confirm before it counts as missing."""
UNSETTLED_PAUSE = 1.0
"""Seconds before a message whose verdict could not be carried out goes back: no hot loop."""
MAX_HEADER_NAME = 128
"""Bytes; the library cuts a longer one off (AMQP 0-9-1, 4.2.5.5)."""
MAX_TABLE = 200
"""Characters that are kept of a header that is no plain value."""
MAX_REASON = 1000
"""Characters of a dead letter's reason: it may quote what it complains of, and headers must fit into one frame."""
SUSPECT = 3
"""Deliveries from which a message is suspected to kill the process, as two deaths in a row are no coincidence."""
SUSPENSE = 1.0
"""Seconds, at most, that a suspect waits for the others."""

_DEFAULT_EXCHANGE = RabbitExchange()


class RabbitBus:
    """One connection with a publishing channel and a channel for each consumer.

    ``uses``: the queues and exchanges it asks for; there are no others for it. ``roles``: the users of our roles, who
    are believed when they say for whom they publish a message again.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        uses: Usage = EVERYTHING,
        declare: bool = True,
        roles: Collection[str] = frozenset(),
    ) -> None:
        self._url = url
        self._uses = uses
        self._declare = declare
        self.user = URL(url).user or "guest"
        """Whom the broker vouches for when we publish."""
        self._ours = {self.user, *roles}
        self._broker = RabbitBroker(
            str(URL(url).update_query(name=name)),
            default_channel=Channel(publisher_confirms=True, on_return_raises=True),
            app_id=name,
            logger=None,
            apply_types=False,
            graceful_timeout=None,
            reconnect_interval=0.5,
        )
        self._direct_replies = DirectReplies(url)
        self._subscribers: list[RabbitSubscriber] = []
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._on_loss: list[Callable[[], None]] = []
        self._on_return: list[Callable[[], None]] = []
        self._exchanges = {
            exchange.name: RabbitExchange(exchange.name, declare=False) for exchange in uses.exchanges
        }

    @property
    def heartbeat(self) -> timedelta:
        """The broker gives a connection up that is silent for two of them, not sooner; ``max``: never."""
        asked = parse_heartbeat(URL(self._url).query.get("heartbeat", "60"))
        return timedelta(seconds=asked) if asked else timedelta.max

    def consume(self, queue: Queue, handler: Handler, *, prefetch: int) -> None:
        """Have ``handler`` called for the queue's messages, ``prefetch`` at once; before ``start``."""
        if queue not in self._uses.consumes:
            raise ValueError(f"{queue.name} is not among the queues that this connection uses")
        alone = asyncio.Lock()

        async def on_message(received: RabbitMessage) -> None:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - we are in a coroutine
            self._in_flight.add(task)
            try:
                await self._handle(queue, handler, received, alone)
            finally:
                self._in_flight.discard(task)

        async def undecoded(received: RabbitMessage) -> RabbitMessage:
            return received

        subscriber = self._broker.subscriber(
            RabbitQueue(queue.name, declare=False),
            channel=Channel(prefetch_count=prefetch),
            ack_policy=AckPolicy.MANUAL,
            decoder=undecoded,
            no_reply=True,
        )
        subscriber(on_message)
        self._subscribers.append(subscriber)

    def watch_connection(self, *, lost: Callable[[], None], back: Callable[[], None]) -> None:
        """Have ``lost`` called when the connection is lost, and ``back`` when it is there again; before ``start``."""
        self._on_loss.append(lost)
        self._on_return.append(back)

    async def start(self) -> None:
        """Connect, declare and check the topology, then consume.

        Raises:
            BusUnavailableError: the broker does not answer.
            BusConfigurationError: it does not let us in, or we do not trust it.
            TopologyError: a queue or exchange exists with other arguments, or is not there.
        """
        logging.getLogger("aio_pika").setLevel(logging.ERROR)
        logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # what it tells, it also raises
        read_tolerantly()
        try:
            await (declare_topology if self._declare else verify_topology)(self._url, self._uses)
            await self._broker.start()
            connection = self._broker._connection  # noqa: SLF001 - FastStream hands out no callbacks of its own
            assert connection is not None  # noqa: S101 - it has started
            connection.close_callbacks.add(lambda *_: _tell(self._on_loss))
            connection.reconnect_callbacks.add(lambda *_: _tell(self._on_return))
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise TopologyError(
                f"RabbitMQ does not allow user {self.user!r} what it needs ({error}); see "
                "deploy/rabbitmq/definitions.json for the rights of each role"
            ) from error
        except Exception as error:
            if isinstance(error, AMQPError | OSError | TimeoutError | StopAsyncIteration) or _bare(error):
                raise _unreachable(error, redacted(self._url)) from error
            raise

    async def stop(self, *, grace: float = 2.0) -> None:
        """Stop consuming first, give handlers ``grace`` seconds to end, then disconnect.

        What is not finished by then is redelivered to the next consumer.
        """
        for subscriber in self._subscribers:
            with contextlib.suppress(AMQPError, OSError):
                await subscriber.stop()
        if self._in_flight:
            await asyncio.wait(list(self._in_flight), timeout=grace)
        with contextlib.suppress(AMQPError, OSError):
            await self._broker.stop()

    def problem(self) -> str | None:
        """What is wrong with the connection or a consumer; None if nothing is.

        An open connection is not enough: a queue that was deleted, or a channel that was closed, leaves its
        consumer dead on it.
        """
        connection = self._broker._connection  # noqa: SLF001 - FastStream tells no more than `ping`
        if connection is None or not connection.connected.is_set():
            return "not connected to RabbitMQ"
        for subscriber in self._subscribers:
            queue, tag = subscriber._queue_obj, subscriber._consumer_tag  # noqa: SLF001 - likewise
            if queue is None or queue.channel.is_closed or not _consumes(queue.channel, tag):
                return f"no consumer on {subscriber.queue.name}"
        return None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def publish(self, message: Outgoing) -> None:
        """See ``Publish``. A direct reply that would end the connection is dropped, as nobody can await it."""
        try:
            await self._publish(message)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The library ends what waits for a confirm so when it gives the connection up.
            self._direct_replies.forget()
            raise BusUnavailableError("not confirmed: the connection was closed") from error

    async def _publish(self, message: Outgoing) -> None:
        if message.exchange is None and not await self._direct_replies.reach(message.routing_key):
            if message.mandatory:
                raise UnroutableError(f"nobody is at {message.routing_key}")
            return
        exchange = self._exchanges[message.exchange.name] if message.exchange else _DEFAULT_EXCHANGE
        try:
            confirmation = await self._broker.publish(
                message.body,
                exchange=exchange,
                routing_key=message.routing_key,
                mandatory=message.mandatory,
                persist=True,
                timeout=CONFIRM_TIMEOUT,
                headers=cast("Any", dict(message.headers)),
                content_type=message.content_type,
                message_id=message.message_id,
                message_type=message.type,
                correlation_id=message.correlation_id,
                reply_to=message.reply_to,
                user_id=message.user_id,
            )
        except aiormq.exceptions.PublishError as error:
            raise UnroutableError(f"no queue takes {message.routing_key}") from error
        except aiormq.exceptions.DeliveryError as error:
            if message.exchange is None and not message.mandatory:
                raise CallerRefusesError(f"the caller's queue {message.routing_key!r} refuses it") from error
            raise BusUnavailableError(f"not confirmed: {_told(error)}") from error
        except Exception as error:
            if not (isinstance(error, AMQPError | OSError | TimeoutError | RuntimeError) or _bare(error)):
                raise
            self._direct_replies.forget()
            raise BusUnavailableError(f"not confirmed: {_told(error)}") from error
        if confirmation is not None and type(confirmation).__name__ != "Ack":
            raise BusUnavailableError(f"not confirmed: {type(confirmation).__name__}")

    async def _handle(
        self, queue: Queue, handler: Handler, received: RabbitMessage, alone: asyncio.Lock
    ) -> None:
        message = _message(received, self._ours)
        headers = _carried(message.headers)
        ended: Verdict | Exception
        try:
            async with contextlib.AsyncExitStack() as turn:
                if message.deliveries >= SUSPECT:
                    # One at a time, in another order each time: whichever kills the process, the rest is done
                    # before it reaches its delivery limit, and does not share its fate.
                    await asyncio.sleep(random.uniform(0, SUSPENSE))  # noqa: S311 - shuffles, guards nothing
                    await turn.enter_async_context(alone)
                if UNREADABLE_HEADER in headers and queue is not DEAD_LETTER_QUEUE:
                    ended = _unreadable(headers)
                else:
                    ended = await handler(message)
        except Exception as error:  # noqa: BLE001 - the delivery policy knows what it means
            _tell_why(queue, message, error)
            ended = error
        settlement = settle(queue, ended, attempt=message.attempt, faults=_count(headers.get(FAULT_HEADER)))
        if settlement.faults:
            headers[FAULT_HEADER] = settlement.faults
        try:
            await self._settle(queue, message, headers, settlement.verdict)
            await received.ack()
        except Exception as error:  # noqa: BLE001 - whatever it is, the message comes back
            log.warning("not settled", queue=queue.name, message_id=message.message_id, cause=str(error))
            await asyncio.sleep(UNSETTLED_PAUSE)
            with contextlib.suppress(Exception):
                await received.nack(requeue=True)

    async def _settle(
        self, queue: Queue, message: Message, headers: dict[str, object], verdict: Verdict
    ) -> None:
        match verdict:
            case Ack():
                return
            case Retry(delay):
                assert delay is not None  # noqa: S101 - the delivery policy has chosen one
                headers[ATTEMPT_HEADER] = message.attempt + 1
                await self.publish(_again(message, headers, queue.retry_queue(delay), self.user))
            case DeadLetter(reason, cause):
                log.warning("dead letter", queue=queue.name, message_id=message.message_id, reason=reason)
                headers = {name: value for name, value in headers.items() if not may_be_secret(name)} | {
                    QUEUE_HEADER: queue.name,
                    CAUSE_HEADER: str(cause),
                    REASON_HEADER: _printable(reason[:MAX_REASON]),
                    DELIVERIES_HEADER: message.deliveries,
                    DEATH_HEADER: str(uuid4()),
                }
                await self.publish(_again(message, headers, None, self.user))


def _tell_why(queue: Queue, message: Message, error: Exception) -> None:
    about = {"queue": queue.name, "message_id": message.message_id}
    match error:
        case ConnectionError() | ConfigurationError():
            log.warning("put aside", **about, cause=str(error))
        case CallerRefusesError():
            log.warning("reply refused", **about, cause=str(error))
        case _:
            log.error("handler failed", **about, exc_info=error)


def _carried(headers: Mapping[str, object]) -> dict[str, object]:
    """What travels on when we publish the message again: plain values; tables may not survive, so they become text."""
    return {
        name: value if isinstance(value, str | int | float) else repr(value)[:MAX_TABLE]
        for name, value in headers.items()
        if len(name.encode()) <= MAX_HEADER_NAME and name != "x-death"
    }


def _unreadable(headers: Mapping[str, object]) -> DeadLetter:
    return DeadLetter(f"the AMQP properties cannot be read ({headers[UNREADABLE_HEADER]})", "Unreadable")


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _again(
    message: Message, headers: Mapping[str, object], retry_queue: str | None, own_user: str
) -> Outgoing:
    """The same message for a waiting queue, or (None) for the dead letters.

    The sender's ``user_id`` goes into a header, as the property must name the publisher: us. That is how we
    know our own headers from those that a sender made up.
    """
    return Outgoing(
        exchange=None if retry_queue else DEAD_LETTER_EXCHANGE,
        routing_key=retry_queue or message.routing_key,
        body=message.body,
        type=message.type,
        message_id=message.message_id or "",
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        content_type=message.content_type,
        headers={**headers, USER_HEADER: message.user_id or ""},
        user_id=own_user,
    )


def _message(received: RabbitMessage, ours: Collection[str]) -> Message:
    raw = received.raw_message
    headers: dict[str, object] = dict(raw.headers or {})
    redeliveries = _count(headers.pop("x-delivery-count", 0))
    user: object = raw.user_id or None
    if user in ours and USER_HEADER in headers:
        user = headers.pop(USER_HEADER) or None
    else:
        headers = {name: value for name, value in headers.items() if name not in OWN_HEADERS}
    return Message(
        body=raw.body,
        type=raw.type or raw.routing_key or "",
        routing_key=raw.routing_key or "",
        message_id=raw.message_id or None,
        correlation_id=raw.correlation_id or None,
        reply_to=raw.reply_to or None,
        headers=headers,
        content_type=raw.content_type or None,
        user_id=user if isinstance(user, str) else None,
        redelivered=bool(raw.redelivered),
        deliveries=1 + redeliveries,
        attempt=_count(headers.get(ATTEMPT_HEADER)),
    )


def _count(header: object) -> int:
    return header if isinstance(header, int) and 0 <= header < 2**31 else 0


async def declare_topology(url: str, uses: Usage = EVERYTHING) -> None:
    """Declare the exchanges, queues and bindings that are used; what is there as it should be is left alone.

    Raises:
        TopologyError: something exists with other arguments.
        AMQPError, OSError: the broker cannot be reached.
    """
    connection = await aio_pika.connect(url, timeout=10)
    async with connection:
        channel = await connection.channel()
        subject = ""
        try:
            bound = (binding.exchange for queue in uses.declares for binding in queue.bindings)
            for exchange in dict.fromkeys((*uses.exchanges, *bound)):
                subject = f"exchange {exchange.name!r}"
                await channel.declare_exchange(exchange.name, exchange.kind, durable=True)
            for queue in uses.declares:
                subject = f"queue {queue.name!r}"
                declared = await channel.declare_queue(
                    queue.name, durable=True, arguments=dict(queue.arguments)
                )
                for binding in queue.bindings:
                    await declared.bind(binding.exchange.name, binding.routing_key)
                for name, arguments in retry_queues(queue).items():
                    subject = f"queue {name!r}"
                    await channel.declare_queue(name, durable=True, arguments=dict(arguments))
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            raise TopologyError(
                f"{subject} exists with other arguments ({error}). Arguments cannot be changed: drain it, "
                f"delete it (rabbitmqctl delete_queue, or the management page) and start again."
            ) from error


async def verify_topology(url: str, uses: Usage) -> None:
    """See that the exchanges and queues that are used are there; that needs no right to configure anything.

    Raises:
        TopologyError: something is missing.
        AMQPError, OSError: the broker cannot be reached.
    """
    connection = await aio_pika.connect(url, timeout=10)
    async with connection:
        channel = await connection.channel()
        subject = ""
        try:
            for exchange in uses.exchanges:
                subject = f"exchange {exchange.name!r}"
                await channel.declare_exchange(exchange.name, exchange.kind, passive=True)
            for name in uses.queues:
                subject = f"queue {name!r}"
                await channel.declare_queue(name, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            raise TopologyError(
                f"{subject} is missing: import deploy/rabbitmq/definitions.json into RabbitMQ, or let the roles "
                "declare what is missing with CML_DECLARE_TOPOLOGY=true and a user that may configure it"
            ) from error


def _consumes(channel: Any, tag: str | None) -> bool:
    """Whether the broker still delivers to this consumer: aiormq forgets one that the broker cancelled."""
    underlay = getattr(channel, "_channel", None)
    return underlay is not None and tag in underlay.channel.consumers


def _unreachable(error: BaseException, url: str) -> Exception:
    told = _told(error)
    if isinstance(
        error, aiormq.exceptions.AuthenticationError | aiormq.exceptions.ProbableAuthenticationError
    ):
        return BusConfigurationError(f"{url} refuses user and password; mend RABBITMQ_URL ({told})")
    if isinstance(error, FileNotFoundError) or "CERTIFICATE_VERIFY_FAILED" in told:
        return BusConfigurationError(
            f"no trusted connection to {url}: cafile in RABBITMQ_URL must name the certificate authority of its "
            f"server ({told})"
        )
    return BusUnavailableError(f"no RabbitMQ at {url}: {told}")


def _bare(error: Exception) -> bool:
    """The library raises a plain ``Exception`` from a call under way when it closes the connection."""
    return type(error) is Exception


def _tell(those: Sequence[Callable[[], None]]) -> None:
    for told in those:
        told()


def _told(error: BaseException) -> str:
    if isinstance(error, StopAsyncIteration):  # aiormq's, where the connection ends between two frames
        return "the connection was closed while it was opened"
    return str(error) or type(error).__name__
