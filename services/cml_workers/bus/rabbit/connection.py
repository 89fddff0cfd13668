"""One connection to RabbitMQ: a channel to publish, a channel for each consumer, and what is wrong with them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, cast

import structlog
from aio_pika.abc import AbstractIncomingMessage
from aiormq.exceptions import ChannelAccessRefused
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.message import RabbitMessage
from faststream.rabbit.subscriber.usecase import RabbitSubscriber

from cml_contracts.amqp import closed, outage
from cml_contracts.broker import Nodes
from cml_workers.bus.port import BusUnavailableError, Handler, Outgoing, TopologyError
from cml_workers.bus.probes import probe_of
from cml_workers.bus.rabbit.consuming import Consumer
from cml_workers.bus.rabbit.depths import keep_measured
from cml_workers.bus.rabbit.direct_replies import DirectReplies
from cml_workers.bus.rabbit.own_queues import OwnQueues, consumes
from cml_workers.bus.rabbit.properties import read_tolerantly
from cml_workers.bus.rabbit.publishing import Publisher
from cml_workers.bus.rabbit.reaching import quiet, unreachable
from cml_workers.bus.rabbit.restored_connection import RestoredConnection, connect
from cml_workers.bus.rabbit.serving import Serving
from cml_workers.bus.rabbit.topology import declare_topology, no_right, verify_topology
from cml_workers.bus.topology import Queue
from cml_workers.bus.trust import Trust
from cml_workers.bus.usage import EVERYTHING, Usage
from cml_workers.foundation.outages import NO_OUTAGES, Outages
from cml_workers.foundation.tasks import ended

log = structlog.get_logger(__name__)

LOOKS_EVERY, DEAD_FOR = 5.0, 15.0
"""Seconds between two looks at the consumers; after how many without one it is not coming back by itself."""
START_TIMEOUT = 30.0
"""Seconds to begin to consume."""


class RabbitBus:
    """A connection of one role.

    ``uses``: the queues and exchanges it uses; it knows no others. ``trust``: what it believes of messages; None: ourselves everything.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        uses: Usage = EVERYTHING,
        declare: bool = True,
        trust: Trust | None = None,
    ) -> None:
        self._url = url
        self._uses = uses
        self._declare = declare
        self._nodes = Nodes(url, "RABBITMQ_URL")
        self.user = self._nodes.user
        """Whom the broker vouches for when we publish."""
        self._trust = trust or Trust(users={name: frozenset({self.user})})
        self._broker = RabbitBroker(
            str(self._nodes.url.update_query(name=name)),
            default_channel=Channel(publisher_confirms=True, on_return_raises=True),
            app_id=name,
            logger=None,
            apply_types=False,
            graceful_timeout=None,
            reconnect_interval=0.5,
        )
        self._direct_replies = DirectReplies(self._nodes)
        self._serving = Serving(self._nodes, self.publish, probe_of(uses))
        self._publisher = Publisher(
            self._broker,
            uses.exchanges,
            self._direct_replies,
            app_id=name,
            user=self.user,
            confirmed=self._serving.sign,
        )
        self._own_queues = OwnQueues(
            lambda: self._connection, user=self.user, declare=declare, delivered=self._serving.sign
        )
        self._consumers: list[Consumer] = []
        self._subscribers: list[RabbitSubscriber] = []
        self._broker_name = name
        self.consuming: asyncio.Task[None]
        """Never ends by itself, or fails because a consumer does not come back; once started."""
        self._measuring: asyncio.Task[None]
        self._lost_at: float | None = None
        self._ending = False
        self._watched: list[tuple[Queue, Callable[[], None], Callable[[], None]]] = []

    @property
    def heartbeat(self) -> timedelta:
        """The broker closes a connection that is silent for two of them, not sooner; ``max``: never."""
        asked = self._nodes.heartbeat
        return timedelta(seconds=asked) if asked else timedelta.max

    def publish(self, message: Outgoing) -> Awaitable[None]:
        """See ``Publish``. Raises NoKeyError as well."""
        return self._publisher(self._trust.signed(message))

    async def routed(self, message: Outgoing) -> bool:
        """See ``Routed``."""
        return await self._publisher.routed(message)

    def consume(
        self,
        queue: Queue,
        handler: Handler,
        *,
        prefetch: int,
        of_sender: int = 1,
        outages: Outages = NO_OUTAGES,
    ) -> None:
        """Have ``handler`` called for the queue's messages, ``prefetch`` at once; before ``start``.

        ``of_sender``: how many at once of each sender's own queue beside this one. ``outages``: of the parts that it needs; it is not
        called while one is known to be unavailable.
        """
        if queue not in self._uses.consumes:
            raise ValueError(f"{queue.name} is not among the queues that this connection uses")
        self._subscribe(queue, self._consumer(queue, handler, outages), prefetch)
        for own in self._uses.consumes:
            if own.shared == queue:
                consumer = self._consumer(queue, handler, outages)
                self._own_queues.add(own, consumer, prefetch=min(of_sender, prefetch))

    def _consumer(self, queue: Queue, handler: Handler, outages: Outages) -> Consumer:
        consumer = Consumer(
            queue,
            handler,
            publish=self.publish,
            own_user=self.user,
            trust=self._trust,
            outages=outages,
        )
        self._consumers.append(consumer)
        return consumer

    def _subscribe(self, queue: Queue, consumer: Consumer, prefetch: int) -> None:
        async def undecoded(received: RabbitMessage) -> AbstractIncomingMessage:
            self._serving.sign()
            return received.raw_message

        subscriber = self._broker.subscriber(
            RabbitQueue(queue.name, declare=False),
            channel=Channel(prefetch_count=prefetch),
            ack_policy=AckPolicy.MANUAL,
            decoder=undecoded,
            no_reply=True,
        )
        subscriber(consumer.on_message)
        self._subscribers.append(subscriber)

    def watch_consumer(self, queue: Queue, *, lost: Callable[[], None], back: Callable[[], None]) -> None:
        """Have ``lost`` called, once or more, when the queue's consumer is lost with its channel, alone or with the connection.

        ``back`` is called once when it is restored. Before ``start``.
        """
        self._watched.append((queue, lost, back))

    async def start(self) -> None:
        """Connect, declare and check the topology, then consume.

        Raises:
            BusUnavailableError: the broker does not answer, or not for a queue.
            BusConfigurationError: it does not let us in, or we do not trust it.
            TopologyError: a queue or exchange exists with other arguments, or does not exist, or we may not use it.
        """
        quiet()
        read_tolerantly()
        try:
            await (declare_topology if self._declare else verify_topology)(self._nodes, self._uses.of_all)
            await connect(self._broker, self._nodes)
            try:
                await self._consume()
            except BaseException:
                await self._disconnect()
                raise
        except ChannelAccessRefused as error:
            raise TopologyError(no_right(self.user, "what it consumes", str(error))) from error
        except BusUnavailableError:
            raise
        except BaseException as error:
            if (cause := outage(error)) is None:
                raise
            raise unreachable(error, cause, self._url) from error
        connection = self._connection
        assert connection is not None  # noqa: S101 - it has started
        self._direct_replies.connected(_server_properties(connection))
        connection.reconnect_callbacks.add(self._restored)
        connection.close_callbacks.add(self._lost)
        for queue, lost, back in self._watched:
            channel = self._channel_of(queue)
            channel.close_callbacks.add(lambda *_, lost=lost: lost())
            channel.reopen_callbacks.add(lambda *_, back=back: back())
        self.consuming = asyncio.create_task(self._consume_on(), name=f"{self._broker_name}, consuming,")
        self._own_queues.start()
        names = {each.queue.name for each in self._subscribers}
        of_all = [each for each in self._uses.consumes if each.name in names]
        self._measuring = asyncio.create_task(
            keep_measured(lambda: self._connection, lambda: [*of_all, *self._own_queues.consumed])
        )

    async def _consume(self) -> None:
        """Raises BusUnavailableError that names what the broker does not answer for."""
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._broker.start()
        except TimeoutError as error:
            waits = [each.queue.name for each in self._subscribers if each._consumer_tag is None]  # noqa: SLF001 - see _dead_consumer
            raise BusUnavailableError(
                f"RabbitMQ does not let {self.user!r} consume {waits[0]!r}: the node that has it may be down"
                if waits
                else "RabbitMQ does not answer"
            ) from error

    async def stop(self, *, grace: float = 2.0) -> None:
        """Stop consuming first, give handlers ``grace`` seconds to end, then disconnect.

        What is not finished by then is redelivered to the next consumer.
        """
        self._ending = True
        await ended(self.consuming)
        for subscriber in self._subscribers:
            await closed(subscriber.stop())
        await self._own_queues.cancel()
        for consumer in self._consumers:
            consumer.end()
        in_flight = [task for consumer in self._consumers for task in consumer.in_flight]
        if in_flight:
            await asyncio.wait(in_flight, timeout=grace)
        await self._own_queues.stop()
        await ended(self._measuring)  # not before: a call that is cancelled may cost the connection
        await self._disconnect()

    async def _disconnect(self) -> None:
        """Whatever else hangs, end the connection: it would be restored without us, and take messages that nobody handles."""
        connection = self._connection
        await closed(self._broker.stop())
        if connection is not None:
            await closed(connection.close())

    def problem(self) -> str | None:
        """What is wrong with the connection or a consumer; None if nothing is.

        An open connection is not enough: after its queue was deleted or its channel closed, a consumer gets nothing.
        """
        connection = self._connection
        if connection is None or not (connection.missing or connection.connected.is_set()):
            return "not connected to RabbitMQ"
        return self._dead_consumer(connection.missing)

    def warning(self) -> str | None:
        """Which senders' own queues are not consumed, and why; None if all are."""
        problems = self._own_queues.problems()
        if not problems:
            return None
        first = next(iter(problems.values()))
        others = ", ".join(list(problems)[1:])
        return f"a sender's own queue is not consumed: {first}" + (f"; nor are {others}" if others else "")

    def counts(self) -> Mapping[str, int]:
        """What it has counted since it started."""
        return {"replies_dropped": sum(consumer.replies_dropped for consumer in self._consumers)}

    def _dead_consumer(self, missing: str | None) -> str | None:
        """``missing``: see ``RestoredConnection``."""
        if missing:
            names = (each.queue.name for each in self._subscribers)
            return next((f"no consumer on {name}" for name in names if f"'{name}'" in missing), missing)
        for subscriber in self._subscribers:
            queue, tag = subscriber._queue_obj, subscriber._consumer_tag  # noqa: SLF001 - FastStream has no other way
            if queue is None or queue.channel.is_closed or not _consumes(queue.channel, tag):
                return f"no consumer on {subscriber.queue.name}"
        return None

    async def _consume_on(self) -> None:
        """Return never. Raises TopologyError when a consumer stays away though the broker is there: its queue was deleted.

        A node that does not serve, while another one does, is left.
        """
        since: float | None = None
        while True:
            await asyncio.sleep(LOOKS_EVERY)
            connection = self._connection
            if connection is None:
                continue
            missing, connected = connection.missing, connection.connected.is_set()
            if connected and not missing and await self._serving.another_serves():
                log.warning("the node confirms and delivers nothing, another one does; connecting there")
                await connection.give_up()
                continue
            dead = self._dead_consumer(missing) if missing or connected else None
            now = asyncio.get_running_loop().time()
            since = (now if since is None else since) if dead else None
            if since is not None and now - since >= DEAD_FOR:
                raise TopologyError(
                    f"{dead}; when this process starts again it declares or checks its queues"
                )

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

    @property
    def _connection(self) -> RestoredConnection | None:
        return cast("RestoredConnection | None", self._broker._connection)  # noqa: SLF001 - FastStream offers no more than `ping`

    def _channel_of(self, queue: Queue) -> Any:
        """The one that the queue is consumed on."""
        return next(
            each._queue_obj.channel  # noqa: SLF001 - see _dead_consumer
            for each in self._subscribers
            if each._queue_obj is not None and each.queue.name == queue.name  # noqa: SLF001
        )

    def _lost(self, _: Any, cause: BaseException | None) -> None:
        if not self._ending and self._lost_at is None:
            self._lost_at = asyncio.get_running_loop().time()
            log.warning("connection to RabbitMQ lost: it will be restored", cause=cause and outage(cause))

    def _restored(self, connection: Any, *_: object) -> None:
        if self._lost_at is not None:
            seconds = round(asyncio.get_running_loop().time() - self._lost_at, 1)
            self._lost_at = None
            log.warning("connection to RabbitMQ restored: work goes on", seconds=seconds)
        # It may be another node, of another version.
        self._serving.sign()
        self._direct_replies.connected(_server_properties(connection))


def _server_properties(connection: Any) -> dict[str, Any]:
    """What the broker says of itself; empty if the connection is already lost again."""
    transport = connection.transport
    return dict(transport.connection.server_properties) if transport else {}


def _consumes(channel: Any, tag: str | None) -> bool:
    underlay = getattr(channel, "_channel", None)
    return underlay is not None and consumes(underlay.channel, tag)
