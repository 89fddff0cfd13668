"""Whether the node that a role is connected to serves it.

A node that is separated from the others lets its clients in and answers their heartbeats, but confirms nothing and delivers nothing
(RabbitMQ 4.3; before, ``pause_minority`` has it disconnect them). Who only waited there would wait until it is back.
"""

import asyncio

import aio_pika

from cml_contracts.amqp import outage
from cml_contracts.broker import Nodes, connect
from cml_workers.bus.port import BusUnavailableError, CallerRefusesError, Outgoing, Publish

SILENT = 5.0
"""Seconds without a confirm and without a delivery, after which a probe is sent; and for which it is waited for, here and elsewhere."""


class Serving:
    """``probe``: None where there is none, then the node is taken to serve."""

    def __init__(self, nodes: Nodes, publish: Publish, probe: Outgoing | None) -> None:
        self._nodes = nodes
        self._publish = publish
        self._probe = probe
        self._last = 0.0

    def sign(self) -> None:
        """The node has confirmed or delivered something, or the connection is a new one."""
        self._last = _now()

    async def another_serves(self) -> bool:
        """Whether this node does not, and another one does; takes a while."""
        probe, began = self._probe, _now()
        if probe is None or began - self._last < SILENT or await self._confirmed(probe):
            return False
        return self._last < began and await self._confirmed_elsewhere(probe)

    async def _confirmed(self, probe: Outgoing) -> bool:
        try:
            async with asyncio.timeout(SILENT):
                await self._publish(probe)
        except (TimeoutError, BusUnavailableError, CallerRefusesError):
            return False
        return True

    async def _confirmed_elsewhere(self, probe: Outgoing) -> bool:
        """Asked on a connection of its own, at the node that would be the next one."""
        try:
            async with asyncio.timeout(SILENT), await connect(self._nodes.beside()) as connection:
                channel = await connection.channel()
                name = probe.exchange.name if probe.exchange else ""
                exchange = await channel.get_exchange(name, ensure=False)
                await exchange.publish(aio_pika.Message(probe.body), probe.routing_key, mandatory=False)
        except BaseException as error:
            if outage(error) is None:
                raise
            return False
        return True


def _now() -> float:
    return asyncio.get_running_loop().time()
