"""Direct reply addresses, which callers send us and RabbitMQ does not check.

The address is ``amq.rabbitmq.reply-to.<process>.<key>``. Publishing to a process that RabbitMQ cannot make out, be it
made up or of a node that has left the cluster, ends its channel with an internal error and our connection with it
(3.10, ``rabbit_channel:deliver_reply_v1``); and as the reply is tried again, the connection after that. So we publish
only to nodes that a connection made for nothing else has shown to be known.
"""

import asyncio
import base64
import re
import time

import aio_pika
from aio_pika.exceptions import AMQPError
from aiormq.exceptions import ConnectionInternalError

from cml_workers.bus.port import BusUnavailableError

PREFIX = "amq.rabbitmq.reply-to."
REMEMBERED = 1000
"""Nodes that are known or not known; then they are asked for anew."""
UNKNOWN_FOR = 60.0
"""Seconds that a node counts as unknown: it may join."""
TIMEOUT = 10.0

_ERLANG_PROCESS = re.compile(rb"\x83X(?:[vd]..|w.)(?P<node>[!-~]+@[!-~]+).{12}", re.DOTALL)
"""External term format: https://www.erlang.org/doc/apps/erts/erl_ext_dist#new_pid_ext"""


class DirectReplies:
    """What this broker can deliver a direct reply to."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._known: set[bytes] = set()
        self._unknown_until: dict[bytes, float] = {}
        self._asking = asyncio.Lock()

    async def reach(self, address: str) -> bool:
        """Whether a reply may be published there; True for what is no direct reply address.

        Raises:
            BusUnavailableError: the broker does not answer; try again.
        """
        parts = [part for part in address.removeprefix(PREFIX).split(".") if part]
        if not address.startswith(PREFIX) or len(parts) != 2:
            return True  # any other number of parts is dropped by the broker, and so harmless
        node = _node(parts[0])
        if node is None:
            return False
        async with self._asking:
            if self._unknown_until.get(node, 0.0) > time.monotonic():
                return False
            if node not in self._known:
                await self._ask(node, parts[0])
            return node in self._known

    def forget(self) -> None:
        """The connection ended while a direct reply was under way: a node may have left."""
        self._known.clear()

    async def _ask(self, node: bytes, process: str) -> None:
        """Publish to the process, under a key that no consumer of it has."""
        if len(self._known) + len(self._unknown_until) >= REMEMBERED:
            self._known.clear()
            self._unknown_until.clear()
        try:
            async with asyncio.timeout(TIMEOUT), await aio_pika.connect(self._url) as connection:
                channel = await connection.channel()
                await channel.default_exchange.publish(
                    aio_pika.Message(b""), f"{PREFIX}{process}.nobody", mandatory=False
                )
        except ConnectionInternalError:
            self._unknown_until[node] = time.monotonic() + UNKNOWN_FOR
        except (AMQPError, OSError, TimeoutError, RuntimeError) as error:
            raise BusUnavailableError(
                f"direct reply not tried: {str(error) or type(error).__name__}"
            ) from error
        else:
            self._known.add(node)


def _node(process: str) -> bytes | None:
    """The node of an encoded Erlang process; None if it is not one."""
    try:
        raw = base64.b64decode(process, validate=True)
    except ValueError:
        return None
    found = _ERLANG_PROCESS.fullmatch(raw)
    if found is None:
        return None
    node = found["node"]
    length = raw[3:4] if raw[2:3] == b"w" else raw[3:5]
    return node if int.from_bytes(length, "big") == len(node) else None
