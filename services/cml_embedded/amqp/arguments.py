"""Queue arguments: which there are, and when they are refused as RabbitMQ refuses them.

Rules and texts as in ``rabbit_amqqueue.erl`` and ``rabbit_quorum_queue.erl`` of RabbitMQ.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pamqp import common

from cml_embedded.amqp.errors import inequivalent, precondition_failed, resource, unsupported

QueueKind = Literal["classic", "quorum"]

DEFAULT_DELIVERY_LIMIT: Final = 20
"""Of quorum queues since RabbitMQ 4.0; before, there was none."""

_BOTH: Final = frozenset(
    (
        "x-queue-type",
        "x-message-ttl",
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-max-length",
        "x-overflow",
        "x-single-active-consumer",
    )
)
_KNOWN: Final[Mapping[QueueKind, frozenset[str]]] = {
    "classic": _BOTH,
    "quorum": _BOTH | {"x-dead-letter-strategy", "x-delivery-limit"},
}
_NOT_HERE: Final = frozenset(("x-expires", "x-max-length-bytes", "x-max-priority"))
"""What RabbitMQ has and the embedded broker has not."""


def _not_negative(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return '{unacceptable_type,"expected integer"}'
    return None if value >= 0 else f"{{value_negative,{value}}}"


def _text(value: object) -> str | None:
    return None if isinstance(value, str) else '{unacceptable_type,"expected a string"}'


def _boolean(value: object) -> str | None:
    return None if isinstance(value, bool) else '{unacceptable_type,"expected boolean"}'


def _one_of(fault: str, *allowed: str) -> Callable[[object], str | None]:
    return lambda value: None if value in allowed else fault


_CHECKS: Final[Mapping[str, Callable[[object], str | None]]] = {
    "x-message-ttl": _not_negative,
    "x-dead-letter-exchange": _text,
    "x-dead-letter-routing-key": _text,
    "x-dead-letter-strategy": _one_of("invalid_dlx_strategy", "at-most-once", "at-least-once"),
    "x-delivery-limit": _not_negative,
    "x-max-length": _not_negative,
    "x-overflow": _one_of("invalid_overflow", "drop-head", "reject-publish", "reject-publish-dlx"),
    "x-single-active-consumer": _boolean,
}


def _fault(name: str, value: object) -> str | None:
    check = _CHECKS.get(name)
    return check(value) if check else None


@dataclass(frozen=True, slots=True)
class QueueRules:
    """How a queue behaves. Times in milliseconds; None: without limit."""

    kind: QueueKind = "classic"
    ttl: int | None = None
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    at_least_once: bool = False
    delivery_limit: int | None = None
    max_length: int | None = None
    """The queue then rejects what is published."""
    single_active: bool = False


def rules(queue: str, arguments: common.FieldTable) -> QueueRules:
    """What the arguments mean.

    Raises:
        AmqpError: 406 for an argument that RabbitMQ refuses; 540 for one that only this broker does not support.
    """
    kind = arguments.get("x-queue-type", "classic")
    if kind == "stream":
        raise unsupported("streams")
    if missing := _NOT_HERE & arguments.keys():
        raise unsupported(", ".join(sorted(missing)))
    if kind not in _KNOWN:
        raise precondition_failed(
            f"invalid arg 'x-queue-type' for {resource('queue', queue)}: unsupported queue type {kind!r}"
        )
    known: QueueKind = "quorum" if kind == "quorum" else "classic"
    for name, value in arguments.items():
        if name in _KNOWN[known] and (fault := _fault(name, value)):
            raise precondition_failed(f"invalid arg '{name}' for {resource('queue', queue)}: {fault}")
    if "x-dead-letter-routing-key" in arguments and "x-dead-letter-exchange" not in arguments:
        raise precondition_failed(
            f"invalid arg 'x-dead-letter-routing-key' for {resource('queue', queue)}: routing_key_but_no_dlx_defined"
        )
    for name in arguments:
        if name not in _KNOWN[known] and any(name in names for names in _KNOWN.values()):
            raise precondition_failed(
                f"invalid arg '{name}' for {resource('queue', queue)} of queue type rabbit_{known}_queue"
            )

    def number(name: str) -> int | None:
        value = arguments.get(name)
        return value if isinstance(value, int) else None

    def text(name: str) -> str | None:
        value = arguments.get(name)
        return value if isinstance(value, str) else None

    rejects = text("x-overflow") == "reject-publish"
    if "x-max-length" in arguments and not rejects:
        raise unsupported("x-max-length without x-overflow=reject-publish")
    limit = number("x-delivery-limit")
    return QueueRules(
        kind=known,
        ttl=number("x-message-ttl"),
        dead_letter_exchange=text("x-dead-letter-exchange"),
        dead_letter_routing_key=text("x-dead-letter-routing-key"),
        # RabbitMQ falls back to at-most-once where its conditions are not met.
        at_least_once=text("x-dead-letter-strategy") == "at-least-once" and rejects,
        delivery_limit=(DEFAULT_DELIVERY_LIMIT if limit is None else limit) if known == "quorum" else None,
        max_length=number("x-max-length"),
        single_active=arguments.get("x-single-active-consumer") is True,
    )


def require_same(queue: str, current: common.FieldTable, received: common.FieldTable) -> None:
    """A queue declared again must have the arguments it has.

    Raises:
        AmqpError: 406, naming the queue, the argument and both values.
    """
    for name in sorted(_BOTH | set(_CHECKS)):
        old, new = current.get(name), received.get(name)
        if name == "x-queue-type":
            old, new = old or "classic", new or "classic"
        if old != new:
            raise inequivalent("queue", queue, name, _shown(new), _shown(old))


def _shown(value: common.FieldValue) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return f"the value '{str(value).lower()}' of type 'bool'"
        case int():
            # Clients send the smallest type that fits.
            bits = value.bit_length() + 1
            kind = "byte" if bits <= 8 else "short" if bits <= 16 else "signedint" if bits <= 32 else "long"
            return f"the value '{value}' of type '{kind}'"
        case _:
            return f"the value {value!r} of type 'longstr'"
