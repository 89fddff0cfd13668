"""Direct reply addresses, which callers send us and RabbitMQ does not check.

The address is ``amq.rabbitmq.reply-to.<process>.<key>``. Publishing to a process that RabbitMQ cannot decode ends its
channel with an internal error, and with it our connection; and as the reply is tried again, the next connection, too.
Any version fails so on what is no encoded process. Before 4.0 it also fails on a process of a node that it does not
know, be it made up or of a node that has left the cluster (``rabbit_channel:deliver_reply_v1``). There we publish only
to nodes which a probe, on a connection of its own, has shown to be known.
"""

import asyncio
import base64
import contextlib
import re
import time
from collections.abc import Mapping
from typing import Any

import aio_pika
from aiormq.exceptions import ConnectionInternalError

from cml_contracts.amqp import outage
from cml_contracts.broker import Nodes, connect
from cml_workers.bus.port import BusUnavailableError, CallerRefusesError
from cml_workers.foundation.ids import apart

PREFIX = "amq.rabbitmq.reply-to."
REMEMBERED_NODES = 1000
"""Nodes of which it is remembered whether they are known; beyond that all are probed again."""
UNKNOWN_FOR = 60.0
"""Seconds that a node counts as unknown: it may join."""
PROBE_TIMEOUT = 10.0
"""Seconds for a probe."""
PROBES = 4
"""Probes at once, each with a connection of its own."""
WAITING = 8
"""Replies that wait for the probe of a node that was never known: a sender can make nodes up, and each may take its time."""
FIXED_IN = 4
"""The major version of RabbitMQ which drops a reply to an unknown node."""

_ERLANG_PROCESS = re.compile(rb"\x83X(?:[vd]..|w.)(?P<node>[!-~]+@[!-~]+).{12}", re.DOTALL)
"""External term format: https://www.erlang.org/doc/apps/erts/erl_ext_dist#new_pid_ext"""


class DirectReplies:
    """What this broker can deliver a direct reply to. A reply to a known node never waits for a probe."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._probes_needed = True
        self._known: set[bytes] = set()
        self._once_known: set[bytes] = set()
        self._waiting = 0
        self._unknown_until: dict[bytes, float] = {}
        self._probes: dict[bytes, asyncio.Task[None]] = {}
        self._at_once = asyncio.Semaphore(PROBES)

    def connected(self, server_properties: Mapping[str, Any]) -> None:
        """Learn from what the broker says of itself whether it needs probes."""
        self._probes_needed = probes_needed(server_properties)

    async def reach(self, address: str) -> bool:
        """Whether a reply may be published there; True for what is no direct reply address.

        Raises:
            BusUnavailableError: the broker does not answer; try again.
            CallerRefusesError: too many replies wait for nodes that were never known; try again a few times.
        """
        parts = [part for part in address.removeprefix(PREFIX).split(".") if part]
        if not address.startswith(PREFIX) or len(parts) != 2:
            return True  # the broker drops any other number of parts, so they are harmless
        node = _node(parts[0])
        if node is None or not self._probes_needed:
            return node is not None
        if self._unknown_until.get(node, 0.0) > time.monotonic():
            return False
        if node not in self._known:
            await self._probed_in_turn(node, parts[0])
        return node in self._known

    def forget(self) -> None:
        """The connection ended while a direct reply was under way: a node may have left."""
        self._known.clear()

    async def _probed_in_turn(self, node: bytes, process: str) -> None:
        if node in self._once_known:
            await asyncio.shield(self._probe(node, process))
            return
        if self._waiting >= WAITING:
            raise CallerRefusesError(f"{self._waiting} replies wait to learn whether there are such nodes")
        self._waiting += 1
        try:
            await asyncio.shield(self._probe(node, process))
        finally:
            self._waiting -= 1

    def _probe(self, node: bytes, process: str) -> asyncio.Task[None]:
        """The one probe of the node, which all replies to it wait for."""
        if node not in self._probes:
            self._probes[node] = asyncio.get_running_loop().create_task(
                self._ask(node, process), name=f"probe {node!r}", context=apart()
            )
            self._probes[node].add_done_callback(lambda task: self._probed(node, task))
        return self._probes[node]

    def _probed(self, node: bytes, task: asyncio.Task[None]) -> None:
        del self._probes[node]
        if not task.cancelled():
            task.exception()  # seen, also if nobody waits any more

    async def _ask(self, node: bytes, process: str) -> None:
        """Publish to the process, under a key that no consumer of it has."""
        if len(self._known) + len(self._unknown_until) >= REMEMBERED_NODES:
            self._known.clear()
            self._unknown_until.clear()
        try:
            async with (
                contextlib.nullcontext() if node in self._once_known else self._at_once,
                asyncio.timeout(PROBE_TIMEOUT),
                await connect(self._nodes) as connection,
            ):
                channel = await connection.channel()
                await channel.default_exchange.publish(
                    aio_pika.Message(b""), f"{PREFIX}{process}.nobody", mandatory=False
                )
        except ConnectionInternalError:
            self._unknown_until[node] = time.monotonic() + UNKNOWN_FOR
        except BaseException as error:
            if (cause := outage(error)) is None:
                raise
            raise BusUnavailableError(f"direct reply not tried: {cause}") from error
        else:
            self._known.add(node)
            self._once_known.add(node)  # there are only as many as the cluster has had


def probes_needed(server_properties: Mapping[str, Any]) -> bool:
    """Whether the broker fails on unknown nodes: RabbitMQ before 4.0, and whatever does not say what it is."""
    product, version = (server_properties.get(name) for name in ("product", "version"))
    major = re.match(r"\d+", str(version))
    return product in ("RabbitMQ", None) and (major is None or int(major[0]) < FIXED_IN)


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
