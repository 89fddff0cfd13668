"""A cluster of KurrentDB stand-ins that have one log: a leader freezes, and some seconds later another node leads.

As with EventStoreDB 23.10: until the election all nodes name the frozen leader; it keeps its connections, lets new ones in,
and answers nothing. After that the others name the new leader, and the old one as dead. What it was sent while it was frozen it
does not commit: when it goes on, another one leads.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from support.kurrentdb_log import Log
from support.kurrentdb_standin import FOLLOWER, LEADER, KurrentDbStandIn, Member
from support.tcp_proxy import TcpProxy


@dataclass(eq=False)
class Node:
    """One node, and the network before it."""

    server: KurrentDbStandIn
    network: TcpProxy
    is_frozen: bool = False


class KurrentDbCluster:
    """Three nodes; the first one leads."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.elected_at = 0.0
        """When the last leader was elected, by the loop's clock."""
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        log = Log()
        for _ in range(3):
            server = KurrentDbStandIn()
            server.log, server.members = log, self._members
            await server.start()
            self._resources.push_async_callback(server.stop)
            network = await self._resources.enter_async_context(TcpProxy(server.port))
            self.nodes.append(Node(server, network))
        self._lead(self.nodes[0])
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._resources.__aexit__(kind, error, traceback)

    @property
    def uri(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.network.port}" for node in self.nodes)
        return f"esdb://{hosts}?tls=false"

    async def freeze_leader(self, seconds: float) -> None:
        """Freeze it; return when another one has been elected, after so many seconds."""
        frozen = self.leader
        frozen.is_frozen = True
        frozen.network.pause()
        await asyncio.sleep(seconds)
        self._lead(next(node for node in self.nodes if not node.is_frozen))

    def thaw(self) -> None:
        """Whoever was frozen goes on."""
        for node in self.nodes:
            node.is_frozen = False
            node.network.heal()

    def _lead(self, leader: Node) -> None:
        self.leader = leader
        self.elected_at = asyncio.get_running_loop().time()
        for node in self.nodes:
            node.server.faults.leader = None if node is leader else ("127.0.0.1", leader.network.port)

    def _members(self) -> list[Member]:
        """A leader that is dead is still named as one: who looks for the leader must look at both."""
        return [
            Member(
                node.network.port,
                state=LEADER if node is self.leader or node.is_frozen else FOLLOWER,
                is_alive=node is self.leader or not node.is_frozen,
            )
            for node in self.nodes
        ]
