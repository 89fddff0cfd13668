"""The broker's state: exchanges, queues, bindings, and how a message gets from one to the other."""

import secrets
from dataclasses import dataclass
from typing import Final, Protocol

from pamqp import common

from cml_embedded.amqp.arguments import require_same
from cml_embedded.amqp.errors import AmqpError, Code, inequivalent, missing, precondition_failed
from cml_embedded.amqp.exchanges import DEFAULT, KINDS, Binding, Exchange
from cml_embedded.amqp.journal import Journal
from cml_embedded.amqp.message import Death, Message, Reason, dead_letter, in_cycle
from cml_embedded.amqp.queue import Queue

REPLY_TO: Final = "amq.rabbitmq.reply-to"


class ReplyTaker(Protocol):
    """A channel that consumes from ``amq.rabbitmq.reply-to``."""

    def deliver_reply(self, message: Message) -> None: ...


@dataclass(frozen=True, slots=True)
class Published:
    """``accepted``: no queue was full. ``persisted``: confirm only after the journal's commit."""

    routed: bool
    accepted: bool = True
    persisted: bool = False


class Broker:
    """One virtual host. Whatever it does not allow raises ``AmqpError``."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.stopping = False
        self.exchanges = {DEFAULT: Exchange(DEFAULT, "direct")}
        self.queues: dict[str, Queue] = {}
        self._repliers: dict[str, ReplyTaker] = {}
        self._last_id = 0
        self._restore()

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _restore(self) -> None:
        stored = self.journal.load()
        self.exchanges |= {exchange.name: exchange for exchange in stored.exchanges}
        for queue in stored.queues:
            self.queues[queue.name] = Queue(
                self,
                queue.name,
                durable=True,
                auto_delete=queue.auto_delete,
                owner=None,
                arguments=queue.arguments,
            )
        for binding in stored.bindings:
            self.exchanges[binding.exchange].bindings[binding] = None
        for name, queued in stored.messages:
            self._last_id = max(self._last_id, queued.id)
            self.queues[name].restore(queued)
        for restored in list(self.queues.values()):
            restored.restored()

    # ---- exchanges

    def exchange(self, name: str) -> Exchange:
        try:
            return self.exchanges[name]
        except KeyError:
            raise missing("exchange", name) from None

    def declare_exchange(self, name: str, kind: str, *, durable: bool) -> None:
        _not_default(name)
        if kind not in KINDS:
            raise AmqpError(Code.COMMAND_INVALID, f"unknown exchange type '{kind}'")
        if (old := self.exchanges.get(name)) is None:
            _not_reserved("exchange", name)
            new = self.exchanges[name] = Exchange(name, kind, durable)
            if durable:
                self.journal.exchange_declared(new)
            return
        for what, current, received in (
            ("type", old.kind, kind),
            ("durable", _shown(old.durable), _shown(durable)),
        ):
            if current != received:
                raise inequivalent("exchange", name, what, f"'{received}'", f"'{current}'")

    def delete_exchange(self, name: str) -> None:
        _not_default(name)
        exchange = self.exchanges.pop(name, None)
        if exchange is None:
            return
        if exchange.durable:
            self.journal.exchange_deleted(name)
        for binding in exchange.bindings:
            self.journal.unbound(binding)

    def bind(self, queue: str, exchange_name: str, key: str, owner: object) -> None:
        persistent = self.queue(queue, owner).persistent
        exchange = self._bindable(exchange_name)
        binding = Binding(exchange_name, queue, key)
        if binding not in exchange.bindings:
            exchange.bindings[binding] = None
            if persistent and exchange.durable:
                self.journal.bound(binding)

    def unbind(self, queue: str, exchange_name: str, key: str, owner: object) -> None:
        self.queue(queue, owner)
        self._unbound(self._bindable(exchange_name), Binding(exchange_name, queue, key))

    def _bindable(self, name: str) -> Exchange:
        _not_default(name)
        return self.exchange(name)

    def _unbound(self, exchange: Exchange, binding: Binding) -> None:
        if binding in exchange.bindings:
            del exchange.bindings[binding]
            self.journal.unbound(binding)

    # ---- queues

    def queue(self, name: str, owner: object) -> Queue:
        """The queue, if ``owner`` (a connection) may use it: 404, 405 otherwise."""
        queue = self.queues.get(name)
        if queue is None:
            raise missing("queue", name)
        if queue.owner is not None and queue.owner is not owner:
            raise _locked(queue)
        return queue

    def declare_queue(
        self,
        name: str,
        *,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: common.FieldTable,
        owner: object,
    ) -> Queue:
        durable = durable and not exclusive
        if (old := self.queues.get(name)) is not None:
            if old.owner is not (owner if exclusive else None):
                raise _locked(old)
            for what, current, received in (
                ("durable", old.durable, durable),
                ("auto_delete", old.auto_delete, auto_delete),
            ):
                if current != received:
                    raise inequivalent("queue", name, what, f"'{_shown(received)}'", f"'{_shown(current)}'")
            require_same(name, old.arguments, arguments)
            return old
        if name:
            _not_reserved("queue", name)
        elif arguments.get("x-queue-type") == "quorum":
            raise precondition_failed("Cannot declare a server-named queue for type rabbit_quorum_queue")
        name = name or f"amq.gen-{secrets.token_urlsafe(16)}"
        queue = Queue(
            self,
            name,
            durable=durable,
            auto_delete=auto_delete,
            owner=owner if exclusive else None,
            arguments=arguments,
        )
        self.queues[name] = queue
        if queue.persistent:
            self.journal.queue_declared(name, arguments, auto_delete=auto_delete)
        return queue

    def delete_queue(self, queue: Queue) -> None:
        if queue.deleted:
            return
        del self.queues[queue.name]
        if queue.persistent:
            self.journal.queue_deleted(queue.name)
        queue.close()
        for exchange in self.exchanges.values():
            for binding in [each for each in exchange.bindings if each.queue == queue.name]:
                self._unbound(exchange, binding)

    def delete_queues_of(self, owner: object) -> None:
        """The connection is gone, and its exclusive queues with it."""
        for queue in [queue for queue in self.queues.values() if queue.owner is owner]:
            self.delete_queue(queue)

    # ---- messages

    def publish(self, message: Message) -> Published:
        exchange = self.exchange(message.exchange)
        if not message.exchange and message.routing_key.startswith(REPLY_TO + "."):
            taker = self._repliers.get(message.routing_key)
            if taker:
                taker.deliver_reply(message)
            # Not a queue: a mandatory message comes back although it was delivered
            # (https://www.rabbitmq.com/docs/direct-reply-to#limitations).
            return Published(routed=False)
        queues = self._route(exchange, message.routing_key)
        accepted = [queue.put(message) for queue in queues]
        persisted = any(
            queue.persistent and (queue.quorum or message.properties.persistent) for queue in queues
        )
        return Published(routed=bool(queues), accepted=all(accepted), persisted=persisted)

    def dead_letter(self, queue: Queue, message: Message, reason: Reason) -> bool:
        rules = queue.rules
        if rules.dead_letter_exchange is None:
            return False
        exchange = self.exchanges.get(rules.dead_letter_exchange)
        if exchange is None:
            return False
        letter = dead_letter(
            message, Death(reason, queue.name, exchange.name, routing_key=rules.dead_letter_routing_key)
        )
        targets = [
            target
            for target in self._route(exchange, letter.routing_key)
            if reason == "rejected" or not in_cycle(letter, target.name)
        ]
        taken = [target.put(letter) for target in targets]
        return bool(taken) and all(taken)

    def _route(self, exchange: Exchange, key: str) -> list[Queue]:
        """Each queue that a message of this routing key reaches, once."""
        if not exchange.name:
            queue = self.queues.get(key)
            return [queue] if queue is not None else []
        names = dict.fromkeys(binding.queue for binding in exchange.matching(key))
        return [self.queues[name] for name in names]

    # ---- direct reply-to

    def open_reply_address(self, taker: ReplyTaker) -> str:
        address = f"{REPLY_TO}.{secrets.token_urlsafe(24)}"
        self._repliers[address] = taker
        return address

    def close_reply_address(self, address: str) -> None:
        self._repliers.pop(address, None)

    def has_reply_address(self, address: str) -> bool:
        return address == REPLY_TO or address in self._repliers


def _locked(queue: Queue) -> AmqpError:
    return AmqpError(
        Code.RESOURCE_LOCKED,
        f"cannot obtain exclusive access to locked {queue}. It could be originally declared on another "
        "connection or the exclusive property value does not match that of the original declaration.",
    )


def _not_default(exchange: str) -> None:
    if not exchange:
        raise AmqpError(Code.ACCESS_REFUSED, "operation not permitted on the default exchange")


def _not_reserved(kind: str, name: str) -> None:
    if name.startswith("amq."):
        raise AmqpError(Code.ACCESS_REFUSED, f"{kind} name '{name}' contains reserved prefix 'amq.*'")


def _shown(value: bool) -> str:
    return str(value).lower()
