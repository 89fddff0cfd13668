"""A cluster of KurrentDB stand-ins that have one log: its leader is lost, and some seconds later another node leads.

As with EventStoreDB 23.10: until the election all nodes name the lost leader. One that is frozen keeps its connections, lets new ones
in, and answers nothing; what it was sent meanwhile it does not commit, as another one leads when it goes on. After the election the
others name the new leader, and the old one as dead until it is back. What was acknowledged is never lost.

As a process of its own, until SIGTERM; with each SIGUSR1 another node leads, of which a line is printed:
``PYTHONPATH=tests python -m support.kurrentdb_cluster --ports N N N``
"""

import argparse
import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from support.kurrentdb_log import Log
from support.kurrentdb_standin import FOLLOWER, LEADER, KurrentDbStandIn, Member
from support.tcp_proxy import TcpProxy

Loss = Literal["killed", "frozen", "resigned"]
LOSSES: tuple[Loss, ...] = ("killed", "frozen", "resigned")
ELECTION_SECONDS = {"killed": 2.0, "frozen": 8.5, "resigned": 0.2}
"""From the loss of a leader to the election of another one; of a frozen one as long as EventStoreDB 23.10 took."""
BACK_SECONDS = 3.0
"""From the election to the return of the old leader as a follower."""


@dataclass(eq=False)
class Node:
    """One node, and the network before it. A leader that is ``lost`` is named as one, and does not answer."""

    server: KurrentDbStandIn
    network: TcpProxy
    lost: bool = False


class KurrentDbCluster:
    """Three nodes; the first one leads. ``ports``: theirs; ``file`` keeps what they have committed."""

    def __init__(self, ports: Sequence[int] = (0, 0, 0), file: Path | None = None) -> None:
        self.nodes: list[Node] = []
        self.elected_at = 0.0
        """When the last leader was elected, by the loop's clock."""
        self._ports = ports
        self._log = Log()
        if file is not None:
            self._log.keep_in(file)
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for port in self._ports:
            server = KurrentDbStandIn()
            if self.nodes:
                server.share(self.nodes[0].server)
            else:
                server.log = self._log
            server.members = self._members
            await server.start()
            self._resources.push_async_callback(server.stop)
            network = await self._resources.enter_async_context(TcpProxy(server.port, port=port))
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
        return uri_of([node.network.port for node in self.nodes])

    async def lose_leader(self, how: Loss, seconds: float) -> None:
        """Return when another one has been elected, after so many seconds; nobody leads meanwhile."""
        old = self.leader
        if how == "frozen":
            old.network.pause()
        if how == "killed":
            old.network.closed = True
            old.network.cut()
        if how == "resigned":
            old.server.faults.leader = old.network.port  # it says so of itself, until it knows of another one
        else:
            old.lost = True
        await asyncio.sleep(seconds)
        following = self.nodes[self.nodes.index(old) + 1 :] + self.nodes
        self._lead(next(node for node in following if node is not old and not node.lost))

    async def freeze_leader(self, seconds: float) -> None:
        """Freeze it; return when another one has been elected, after so many seconds."""
        await self.lose_leader("frozen", seconds)

    def thaw(self) -> None:
        """Whoever was lost is back."""
        for node in self.nodes:
            node.lost = False
            node.network.heal()

    def _lead(self, leader: Node) -> None:
        self.leader = leader
        self.elected_at = asyncio.get_running_loop().time()
        for node in self.nodes:
            node.server.faults.leader = None if node is leader else leader.network.port

    def _members(self) -> list[Member]:
        """A leader that is dead is still named as one: who looks for the leader must look at both."""
        return [
            Member(
                node.network.port,
                state=LEADER if node is self.leader or node.lost else FOLLOWER,
                is_alive=node is self.leader or not node.lost,
            )
            for node in self.nodes
        ]


def uri_of(ports: Sequence[int]) -> str:
    """It names all nodes, as in production."""
    return f"esdb://{','.join(f'127.0.0.1:{port}' for port in ports)}?tls=false"


async def serve(ports: Sequence[int], file: Path) -> None:
    """The leader is lost in another way each time."""
    done, asked = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    loop.add_signal_handler(signal.SIGUSR1, asked.set)

    async def fail_over(cluster: KurrentDbCluster) -> None:
        for how in cycle(LOSSES):
            await asked.wait()
            asked.clear()
            await cluster.lose_leader(how, ELECTION_SECONDS[how])
            print(f"{cluster.nodes.index(cluster.leader)} leads, as the one before was {how}", flush=True)
            await asyncio.sleep(BACK_SECONDS)
            cluster.thaw()

    async with KurrentDbCluster(ports, file) as cluster:
        failing_over = asyncio.create_task(fail_over(cluster))
        print("ready", flush=True)
        await done.wait()
        failing_over.cancel()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--ports", nargs=3, type=int, required=True)
    arguments.add_argument(
        "--file", type=Path, required=True, help="keeps what is stored when the process is killed"
    )
    given = arguments.parse_args()
    asyncio.run(serve(given.ports, given.file))
