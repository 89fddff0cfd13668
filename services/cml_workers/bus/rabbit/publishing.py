"""Publishing: each message is persistent and confirmed, or an error says that it may not have arrived."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

from aiormq import spec
from aiormq.exceptions import ChannelInvalidStateError, DeliveryError, PublishError
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange

from cml_contracts.amqp import outage
from cml_contracts.topology import Exchange
from cml_workers.bus.port import (
    BusUnavailableError,
    CallerRefusesError,
    NotTakenError,
    Outgoing,
    UnroutableError,
)
from cml_workers.bus.rabbit.direct_replies import DirectReplies
from cml_workers.bus.topology import BETWEEN_ROLES, TRIGGERS_EXCHANGE

CONFIRM_TIMEOUT = 15.0
"""Seconds to wait for a publisher confirm before it counts as missing."""

NOWHERE = "cml.nowhere"
"""A routing key that no queue is bound by: a broker that works confirms what has it at once."""

UNDRAINED = 500
"""Messages of the channel that are written and not answered, from which on each next one waits until the connection has taken
those before it: one that takes nothing, as RabbitMQ has too little memory or disk, must not fill ours."""

_DEFAULT_EXCHANGE = RabbitExchange()


class Publisher:
    """Publishes through one connection. Many at once: none waits for the confirm of another.

    Replies have a channel of their own: what a caller's queue or address does to it is nothing to the system's own messages.
    """

    def __init__(
        self,
        broker: RabbitBroker,
        exchanges: Iterable[Exchange],
        direct_replies: DirectReplies,
        *,
        app_id: str,
        user: str,
    ) -> None:
        self._broker = broker
        self._user = user
        self._app_id = app_id
        self._direct_replies = direct_replies
        self._exchanges = {exchange.name for exchange in exchanges}
        self._replies = Channel(publisher_confirms=True, on_return_raises=True)
        self._opening = asyncio.Lock()

    async def __call__(self, message: Outgoing, /) -> None:
        """See ``Publish``. A direct reply that would end the connection is dropped: no caller can await it."""
        with self._outages():
            try:
                await self._publish(message)
            except PublishError as error:
                raise UnroutableError(f"no queue takes {message.routing_key}") from error
            except DeliveryError as error:
                if message.exchange is None and not message.mandatory:
                    raise CallerRefusesError(
                        f"the caller's queue {message.routing_key!r} does not accept it"
                    ) from error
                raise NotTakenError(f"a queue does not take {message.routing_key}") from error

    async def routed(self, message: Outgoing) -> bool:
        """See ``Routed``. Asked by a probe, a message that goes to no queue, so that a broker that works confirms it at once.

        A channel's messages are routed in the order in which they were written, and the library writes them in the order in
        which it notes their ids; so the probe must take the very channel that has noted the message's.
        """
        with self._outages():
            channel = await (await self._robust_channel()).get_underlay_channel()
            if message.message_id not in channel.message_id_delivery_tag:
                return False
            await channel.basic_publish(
                b"", exchange=TRIGGERS_EXCHANGE.name, routing_key=NOWHERE, timeout=CONFIRM_TIMEOUT
            )
            return True

    async def _robust_channel(self, *, of_replies: bool = False) -> Any:
        """The one that is published on, of this connection and those that take its place."""
        if not of_replies:
            return (await self._broker.declare_exchange(_DEFAULT_EXCHANGE)).channel
        declarer = self._broker.config.declarer
        async with self._opening:  # once
            return (await declarer.declare_exchange(_DEFAULT_EXCHANGE, channel=self._replies)).channel

    @contextmanager
    def _outages(self) -> Iterator[None]:
        """Raises BusUnavailableError for what the libraries raise when the connection is lost."""
        try:
            yield
        except (BusUnavailableError, UnroutableError, CallerRefusesError):
            raise
        except BaseException as error:
            if (cause := outage(error)) is None:
                raise
            self._direct_replies.forget()
            raise BusUnavailableError(f"not confirmed: {cause}") from error

    async def _publish(self, message: Outgoing) -> None:
        if message.exchange is None and not await self._direct_replies.reach(message.routing_key):
            if message.mandatory:
                raise UnroutableError(f"no caller is at {message.routing_key}")
            return
        if message.exchange is not None and message.exchange.name not in self._exchanges:
            raise ValueError(f"{message.exchange.name} is not among the exchanges that this connection uses")
        robust = await self._robust_channel(of_replies=message.exchange is None and not message.mandatory)
        if robust.is_closed:
            raise ChannelInvalidStateError("not connected to RabbitMQ")
        channel = await robust.get_underlay_channel()
        # From here to the library's lock on this very channel nothing waits.
        if message.behind and message.behind not in channel.message_id_delivery_tag:
            raise BusUnavailableError(f"{message.behind} may be lost with its connection, and comes first")
        confirmation = await channel.basic_publish(
            message.body,
            exchange=message.exchange.name if message.exchange else "",
            routing_key=message.routing_key,
            properties=self._properties(message),
            mandatory=message.mandatory,
            timeout=CONFIRM_TIMEOUT,
            wait=len(channel.confirmations) >= UNDRAINED,
        )
        if confirmation is not None and type(confirmation).__name__ != "Ack":
            raise BusUnavailableError(f"not confirmed: {type(confirmation).__name__}")

    def _properties(self, message: Outgoing) -> spec.Basic.Properties:
        return spec.Basic.Properties(
            app_id=self._app_id,
            content_type=message.content_type,
            correlation_id=message.correlation_id,
            delivery_mode=2,
            headers=cast("Any", dict(message.headers)),
            message_id=message.message_id,
            message_type=message.type,
            reply_to=message.reply_to,
            timestamp=datetime.now(UTC),
            user_id=message.user_id or (self._user if message.exchange in BETWEEN_ROLES else None),
        )
