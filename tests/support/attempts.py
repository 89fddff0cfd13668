"""Whatever can be tried at RabbitMQ over AMQP, one attempt after the other, each either done or refused."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import aiormq
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPError, ChannelAccessRefused, ChannelLockedResource, ConnectionNotAllowed

from support.raw_amqp import RawAmqp

Kind = Literal["exchange", "queue"]
DEFAULT = ""
"""The name of the default exchange."""
RESERVED = ("amq.direct", "amq.fanout", "amq.headers", "amq.match", "amq.topic", "amq.rabbitmq.trace")
"""Exchanges that every virtual host has."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """``other``: the exchange from which to bind (with which ``key``), or to which to dead-letter, or the routing key."""

    what: str
    name: str
    other: str = ""
    key: str = "#"

    def __str__(self) -> str:
        return " ".join((self.what, repr(self.name), *([repr(self.other)] if self.other else [])))


@dataclass(frozen=True, slots=True)
class Rights:
    """What somebody is to be able to do. ``keys``: of an exchange, the routing keys; of one that is not there, all.

    ``unbound``: exchanges from which it may not bind, though it may read what has their names.
    ``own``: what the names of its queues and exchanges begin with, which it declares, reads, empties and deletes.
    """

    own: tuple[str, ...] = ()
    writes: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    keys: Mapping[str, frozenset[str]] | None = None
    unbound: frozenset[str] = frozenset()
    writes_own: bool = False

    def owns(self, name: str) -> bool:
        return name.startswith(self.own) if self.own else False

    def may_write(self, name: str) -> bool:
        return name in self.writes or (self.writes_own and self.owns(name))

    def may_read(self, name: str) -> bool:
        return name in self.reads or self.owns(name)

    def allow(self, attempt: Attempt) -> bool:
        """As RabbitMQ has it: https://www.rabbitmq.com/docs/access-control#authorisation."""
        name, other = attempt.name, attempt.other
        match attempt.what.split():
            case ["bind" | "unbind", _]:
                may_read = self.may_read(other) and other not in self.unbound
                return self.may_write(name) and may_read and other != DEFAULT
            case ["publish"]:
                keys = (self.keys or {}).get(name)
                return self.may_write(name) and (keys is None or other in keys)
            case ["get" | "consume" | "purge"]:
                return self.may_read(name)
            case ["dead-letter" | "alternate"]:
                return self.owns(name) and self.may_write(other)
            case ["declare" | "delete", _]:
                return self.owns(name)
            case _:
                raise AssertionError(attempt)


def attempts(
    exchanges: Sequence[str],
    queues: Sequence[str],
    bindings: Iterable[tuple[str, str]],
    own: str,
    keys: Iterable[str],
) -> list[Attempt]:
    """All of them, in an order in which what somebody owns is there when it is used. ``own``: a name for a new queue and a new exchange.

    ``exchanges`` and ``queues``: those that are there; ``bindings``: what is bound, and from which exchange.
    """
    found = [Attempt("declare exchange", own), Attempt("declare queue", own)]
    for exchange in (*exchanges, own):
        found.append(Attempt("alternate", f"{own}.alternate", exchange))
        found.append(Attempt("dead-letter", f"{own}.dead-letter", exchange))
        found += [Attempt("publish", exchange, key) for key in keys]
        for each in (*exchanges, own):
            found += [Attempt("bind exchange", each, exchange), Attempt("unbind exchange", each, exchange)]
        found += [Attempt("bind queue", each, exchange) for each in (*queues, own)]
        found.append(Attempt("unbind queue", own, exchange))
    for name, exchange in bindings:
        found.append(Attempt("unbind queue", name, exchange))
    for name in (*queues, own):
        found.append(Attempt("publish", DEFAULT, name))
        found += [Attempt(what, name) for what in ("get", "consume", "purge")]
    for exchange in (DEFAULT, *RESERVED):
        found += [Attempt(what, exchange) for what in ("declare exchange", "delete exchange")]
        found += [Attempt("publish", exchange, "any"), Attempt("bind queue", own, exchange)]
    found += [Attempt("declare exchange", name) for name in exchanges]
    found += [Attempt("declare queue", name) for name in queues]
    found += [Attempt("delete exchange", name) for name in (*exchanges, own)]
    found += [Attempt("delete queue", name) for name in (*queues, own)]
    return found


class Trying(RawAmqp):
    """A connection of one user's; a refusal takes the channel only."""

    async def refused(self, attempt: Attempt) -> bool:
        """Whether the broker refused it. Raises AMQPError: it did not come to that."""
        try:
            await self._do(attempt)
        except ChannelAccessRefused:
            self._channel = await self._connection.channel()
            return True
        except (
            ChannelLockedResource
        ):  # it may, but not in this way, as from a queue with a single active consumer
            self._channel = await self._connection.channel()
        except AMQPError as error:
            raise AMQPError(f"{attempt}: {error!r}") from error
        return False

    async def asked(self, kind: Kind, name: str) -> bool:
        """Whether the broker refuses to say that there is a queue or exchange of this name."""
        try:
            if kind == "queue":
                await self._channel.queue_declare(name, passive=True)
            else:
                await self._channel.exchange_declare(name, passive=True)
        except ChannelAccessRefused:
            self._channel = await self._connection.channel()
            return True
        return False

    async def _do(self, attempt: Attempt) -> None:
        channel, name, other = self._channel, attempt.name, attempt.other
        arguments: dict[str, Any]
        match attempt.what:
            case "declare exchange":
                await channel.exchange_declare(name, exchange_type="topic", durable=True)
            case "declare queue":
                await channel.queue_declare(name, durable=True)
            case "alternate":
                arguments = {"alternate-exchange": other}
                await channel.exchange_declare(
                    name, exchange_type="fanout", auto_delete=True, arguments=arguments
                )
                await channel.exchange_delete(name)
            case "dead-letter":
                arguments = {"x-dead-letter-exchange": other}
                await channel.queue_declare(name, exclusive=True, arguments=arguments)
                await channel.queue_delete(name)
            case "delete exchange":
                await channel.exchange_delete(name)
            case "delete queue":
                await channel.queue_delete(name)
            case "bind exchange":
                await channel.exchange_bind(destination=name, source=other, routing_key=attempt.key)
            case "unbind exchange":
                await channel.exchange_unbind(destination=name, source=other, routing_key=attempt.key)
            case "bind queue":
                await channel.queue_bind(name, other, attempt.key)
            case "unbind queue":
                await channel.queue_unbind(name, other, attempt.key)
            case "publish":
                await channel.basic_publish(b"{}", exchange=name, routing_key=other)
            case "get":
                await channel.basic_get(name, no_ack=True)
            case "consume":
                started = await channel.basic_consume(name, _ignored, no_ack=True)
                await channel.basic_cancel(started.consumer_tag or "")
            case "purge":
                await channel.queue_purge(name)
            case _:
                raise AssertionError(attempt)


async def _ignored(_message: DeliveredMessage) -> None:
    """Whatever comes."""


async def lets_in(url: str) -> bool:
    """Whether the broker lets a user in, who gave a right address and a certificate that can be trusted."""
    try:
        connection = await aiormq.connect(url)
    except (ConnectionNotAllowed, AMQPError):
        return False
    await connection.close()
    return True
