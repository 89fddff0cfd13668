"""AMQP exceptions: the reply codes, and which of them end the whole connection.

Names and severity: https://www.rabbitmq.com/amqp-0-9-1-reference#constants
"""

from enum import IntEnum


class Code(IntEnum):
    """AMQP reply codes."""

    NO_ROUTE = 312
    CONNECTION_FORCED = 320
    ACCESS_REFUSED = 403
    NOT_FOUND = 404
    RESOURCE_LOCKED = 405
    PRECONDITION_FAILED = 406
    FRAME_ERROR = 501
    SYNTAX_ERROR = 502
    COMMAND_INVALID = 503
    CHANNEL_ERROR = 504
    UNEXPECTED_FRAME = 505
    NOT_ALLOWED = 530
    NOT_IMPLEMENTED = 540
    INTERNAL_ERROR = 541


class AmqpError(Exception):
    """The peer broke a rule: its channel, or for a hard error its connection, is closed with code and text."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(f"{code.name} - {text}")
        self.code = code

    @property
    def hard(self) -> bool:
        """Whether the connection goes, not just the channel."""
        return self.code == Code.CONNECTION_FORCED or self.code >= Code.FRAME_ERROR


def resource(kind: str, name: str) -> str:
    """How RabbitMQ names a queue or exchange in its messages."""
    return f"{kind} '{name}' in vhost '/'"


def missing(kind: str, name: str) -> AmqpError:
    return AmqpError(Code.NOT_FOUND, f"no {resource(kind, name)}")


def precondition_failed(text: str) -> AmqpError:
    """A failed precondition."""
    return AmqpError(Code.PRECONDITION_FAILED, text)


def inequivalent(kind: str, name: str, argument: str, received: str, current: str) -> AmqpError:
    """Declared again, but not as it is."""
    return precondition_failed(
        f"inequivalent arg '{argument}' for {resource(kind, name)}: received {received} but current is {current}"
    )


def unsupported(what: str) -> AmqpError:
    """RabbitMQ has it, the embedded broker has not, as nothing here uses it."""
    return AmqpError(Code.NOT_IMPLEMENTED, f"the embedded broker does not support {what}")
