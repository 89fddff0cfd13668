"""What client and broker agree on before the first channel is opened."""

from collections.abc import Callable
from hmac import compare_digest
from typing import Final

from pamqp import base
from pamqp.commands import Connection

from cml_embedded.amqp.errors import AmqpError, Code
from cml_embedded.amqp.output import FRAME_MAX

CHANNEL_MAX: Final = 2047
HEARTBEAT: Final = 60
"""Seconds proposed to the client, as RabbitMQ does."""

_CAPABILITIES: Final = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "direct_reply_to": True,
    "per_consumer_qos": True,
    "publisher_confirms": True,
}


class Handshake:
    """Start, tune, open; anything else raises ``AmqpError``. ``password``: of every user; None: any."""

    def __init__(self, password: str | None = None) -> None:
        self._password = password
        self.user = ""
        self.cancels_consumers = False
        self.frame_max = FRAME_MAX
        self.channel_max = CHANNEL_MAX
        self._step: Callable[[base.Frame], base.Frame | None] = self._on_start_ok

    def greeting(self) -> base.Frame:
        return Connection.Start(
            server_properties={
                "product": "embedded broker",
                "platform": "Python",
                "capabilities": dict(_CAPABILITIES),
            },
            mechanisms="PLAIN",
            locales="en_US",
        )

    def answer(self, method: base.Frame) -> base.Frame | None:
        """The next step, if the client took the one before."""
        return self._step(method)

    def _on_start_ok(self, method: base.Frame) -> base.Frame:
        if not isinstance(method, Connection.StartOk):
            raise AmqpError(Code.COMMAND_INVALID, "expected connection.start-ok")
        _, user, password = _plain(method)
        if not user:
            raise AmqpError(Code.ACCESS_REFUSED, "Login was refused: PLAIN with any user is needed")
        if self._password is not None and not compare_digest(password.encode(), self._password.encode()):
            raise AmqpError(Code.ACCESS_REFUSED, "Login was refused using authentication mechanism PLAIN")
        self.user = user
        capabilities = (method.client_properties or {}).get("capabilities")
        self.cancels_consumers = (
            isinstance(capabilities, dict) and capabilities.get("consumer_cancel_notify") is True
        )
        self._step = self._on_tune_ok
        return Connection.Tune(channel_max=CHANNEL_MAX, frame_max=FRAME_MAX, heartbeat=HEARTBEAT)

    def _on_tune_ok(self, method: base.Frame) -> None:
        if not isinstance(method, Connection.TuneOk):
            raise AmqpError(Code.COMMAND_INVALID, "expected connection.tune-ok")
        self.frame_max = min(method.frame_max or FRAME_MAX, FRAME_MAX)
        self.channel_max = min(method.channel_max or CHANNEL_MAX, CHANNEL_MAX)
        self._step = self._on_open

    def _on_open(self, method: base.Frame) -> base.Frame:
        if not isinstance(method, Connection.Open):
            raise AmqpError(Code.COMMAND_INVALID, "expected connection.open")
        if method.virtual_host != "/":
            raise AmqpError(Code.NOT_ALLOWED, f"vhost {method.virtual_host} not found")
        self._step = self._on_nothing_more
        return Connection.OpenOk()

    def _on_nothing_more(self, method: base.Frame) -> None:
        raise AmqpError(Code.COMMAND_INVALID, f"unexpected {method.name}")


def _plain(method: Connection.StartOk) -> tuple[str, str, str]:
    """Authorization identity, user and password (RFC 4616); all empty if it is something else."""
    parts = (method.response or "").split("\0")
    if method.mechanism != "PLAIN" or len(parts) != 3:
        return "", "", ""
    return parts[0], parts[1], parts[2]
