"""Publishing: each message is persistent and confirmed, or an error says that it may not have arrived."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from aiormq.exceptions import DeliveryError, PublishError
from faststream.rabbit import RabbitBroker, RabbitExchange

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
from cml_workers.bus.topology import TRIGGERS_EXCHANGE

CONFIRM_TIMEOUT = 15.0
"""Seconds to wait for a publisher confirm before it counts as missing."""

NOWHERE = "cml.nowhere"
"""A routing key that no queue is bound by: a broker that works confirms what has it at once."""

_DEFAULT_EXCHANGE = RabbitExchange()


class Publisher:
    """Publishes through the publishing channel of one connection."""

    def __init__(
        self, broker: RabbitBroker, exchanges: Iterable[Exchange], direct_replies: DirectReplies
    ) -> None:
        self._broker = broker
        self._direct_replies = direct_replies
        self._exchanges = {
            exchange.name: RabbitExchange(exchange.name, declare=False) for exchange in exchanges
        }

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
            channel = await self._channel()
            if message.message_id not in channel.message_id_delivery_tag:
                return False
            await channel.basic_publish(
                b"", exchange=TRIGGERS_EXCHANGE.name, routing_key=NOWHERE, timeout=CONFIRM_TIMEOUT
            )
            return True

    async def _channel(self) -> Any:
        """The one that is published on now; waits until there is one."""
        exchange = await self._broker.declare_exchange(self._exchanges[TRIGGERS_EXCHANGE.name])
        return await exchange.channel.get_underlay_channel()

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
        exchange = self._exchanges[message.exchange.name] if message.exchange else _DEFAULT_EXCHANGE
        # From here to the library's lock on this very channel nothing waits.
        if message.behind and message.behind not in (await self._channel()).message_id_delivery_tag:
            raise BusUnavailableError(f"{message.behind} may be lost with its connection, and comes first")
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
        if confirmation is not None and type(confirmation).__name__ != "Ack":
            raise BusUnavailableError(f"not confirmed: {type(confirmation).__name__}")
