"""Publishing: each message is persistent and confirmed, or an error says that it may not have arrived."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from aiormq.abc import ConfirmationFrameType
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
from cml_workers.bus.rabbit.line import CONFIRM_TIMEOUT, Line, no_answer
from cml_workers.bus.topology import BETWEEN_ROLES, TRIGGERS_EXCHANGE

NOWHERE = Outgoing(TRIGGERS_EXCHANGE, "cml.nowhere", b"", "", "", content_type=None, mandatory=False)
"""Under a routing key that no queue is bound by: a broker that works confirms it as soon as it has it."""

_DEFAULT_EXCHANGE = RabbitExchange()


class Publisher:
    """Publishes through one connection. Many at once: none waits for the confirm of another.

    Replies have a channel of their own: what a caller's queue or address does to it is nothing to the system's own messages.
    ``user``: who we are at the broker, which vouches for it to other roles. ``confirmed`` is called whenever the broker has confirmed something.
    """

    def __init__(
        self,
        broker: RabbitBroker,
        exchanges: Iterable[Exchange],
        direct_replies: DirectReplies,
        *,
        app_id: str,
        user: str,
        confirmed: Callable[[], None] = lambda: None,
    ) -> None:
        self._broker = broker
        self._app_id = app_id
        self._user = user
        self._direct_replies = direct_replies
        self._exchanges = {exchange.name for exchange in exchanges}
        self._confirmed = confirmed
        self._replies = Channel(publisher_confirms=True, on_return_raises=True)
        self._opening = asyncio.Lock()
        self._lines: dict[bool, Line] = {}
        """Whether it is that of replies: the line of its channel, of this connection or the one that was lost."""

    def __call__(self, message: Outgoing, /) -> Awaitable[None]:
        """See ``Publish``. A direct reply that would end the connection is dropped: no caller can await it."""
        if message.exchange is not None and message.exchange.name not in self._exchanges:
            raise ValueError(f"{message.exchange.name} is not among the exchanges that this connection uses")
        line = self._lines.get(False)
        if message.exchange is None or message.behind or line is None or not line.is_open or line.is_full:
            return self._publish(message)
        return self._begin(line, message)

    async def routed(self, message: Outgoing) -> bool:
        """See ``Routed``. Asked by a probe, a message that goes to no queue, so that a broker that works confirms it at once.

        A channel's messages are routed in the order in which they were begun; so the probe must take the very channel that
        has the message.
        """
        with self._failures(message):
            line = await self._line_of(await self._channel())
            if not line.has(message.message_id):
                return False
            answer = self._begin(line, NOWHERE)
        await answer
        return True

    async def _publish(self, message: Outgoing) -> None:
        with self._failures(message):
            async with asyncio.timeout(CONFIRM_TIMEOUT):
                if message.exchange is None and not await self._direct_replies.reach(message.routing_key):
                    if message.mandatory:
                        raise UnroutableError(f"no caller is at {message.routing_key}")
                    return
                replies = message.exchange is None and not message.mandatory
                robust = await self._channel(replies=replies)
                if robust.is_closed:
                    raise ChannelInvalidStateError("not connected to RabbitMQ")
                line = await self._line_of(robust, replies=replies)
                if line.is_full:
                    await line.written()
                # From here to the message's place in the line nothing waits.
                if message.behind and not line.has(message.behind):
                    raise BusUnavailableError(
                        f"{message.behind} may be lost with its connection, and comes first"
                    )
                answer = self._begin(line, message)
        await answer

    @contextmanager
    def _failures(self, message: Outgoing) -> Iterator[None]:
        """Raises what an error of the libraries means for the message."""
        try:
            yield
        except BaseException as error:
            if (failure := self._failure(error, message)) is error:
                raise
            raise failure from error

    async def _channel(self, *, replies: bool = False) -> Any:
        """The one that is published on, of this connection and those that take its place."""
        if not replies:
            return (await self._broker.declare_exchange(_DEFAULT_EXCHANGE)).channel
        declarer = self._broker.config.declarer
        async with self._opening:  # once
            return (await declarer.declare_exchange(_DEFAULT_EXCHANGE, channel=self._replies)).channel

    async def _line_of(self, robust: Any, *, replies: bool = False) -> Line:
        channel = await robust.get_underlay_channel()
        line = self._lines.get(replies)
        if line is None or line.channel is not channel:
            line = self._lines[replies] = Line(channel, self._app_id)
        return line

    def _begin(self, line: Line, message: Outgoing) -> asyncio.Future[None]:
        """Done, or failed as ``Publish`` says, when the broker has answered."""
        published: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def answered(answer: asyncio.Future[ConfirmationFrameType]) -> None:
            error = no_answer() if answer.cancelled() else answer.exception()
            if error is None and message is not NOWHERE:
                self._confirmed()
            if published.done():
                return  # whoever published has given up
            if error is None:
                published.set_result(None)
            else:
                published.set_exception(self._failure(error, message))

        user = message.user_id or (self._user if message.exchange in BETWEEN_ROLES else None)
        line.begin(message, answered, user_id=user)
        return published

    def _failure(self, error: BaseException, message: Outgoing) -> BaseException:
        """What an error of the libraries means for the message; the error itself if it means nothing."""
        failure: Exception
        match error:
            case BusUnavailableError() | UnroutableError():
                return error
            case PublishError():
                failure = UnroutableError(f"no queue takes {message.routing_key}")
            case DeliveryError() if message.exchange is None and not message.mandatory:
                failure = CallerRefusesError(f"the caller's queue {message.routing_key!r} does not accept it")
            case DeliveryError():
                failure = NotTakenError(f"a queue does not take {message.routing_key}")
            case _:
                if (cause := outage(error)) is None:
                    return error
                self._direct_replies.forget()
                failure = BusUnavailableError(f"not confirmed: {cause}")
        failure.__cause__ = error
        return failure
