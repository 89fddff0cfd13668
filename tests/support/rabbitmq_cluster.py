"""Three nodes of RabbitMQ on loopback that are one cluster, as docs/deployment.md says to run it."""

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from support.erlang_network import ErlangNetwork
from support.ports import free_port
from support.rabbitmq import NoRabbitMQError, SpawnedRabbitMQ, installed

SIZE = 3
DEPLOY = Path(__file__).parents[2] / "deploy" / "rabbitmq"


class RabbitMQCluster:
    """Its nodes may be killed, stopped, started and frozen, and separated from each other."""

    def __init__(
        self, nodes: Sequence[SpawnedRabbitMQ], network: ErlangNetwork, management_ports: Sequence[int]
    ) -> None:
        self.nodes = nodes
        self._management_ports = management_ports
        self._network = network
        self._hands = ThreadPoolExecutor(1)
        """One thread: a server ends with the thread that started it."""

    def url(self, user: str, *numbers: int) -> str:
        """With these hosts, or all; the user's password is its name."""
        nodes = [self.nodes[number] for number in numbers] or self.nodes
        return f"amqp://{user}:{user}@{','.join(f'127.0.0.1:{node.port}' for node in nodes)}/"

    def management_url(self, user: str, number: int = 0) -> str:
        """As ``RABBITMQ_MANAGEMENT_URL``."""
        return f"http://{user}:{user}@127.0.0.1:{self._management_ports[number]}"

    async def start(self, *numbers: int) -> None:
        """Start these nodes, and wait until they speak AMQP."""
        for number in numbers:
            await self._by_hand(self.nodes[number].launch)
        for number in numbers:
            await self._by_hand(self.nodes[number].wait)

    async def enable(self, flag: str) -> None:
        """A feature that all nodes have; they keep it."""
        await self.control("rabbitmqctl", "enable_feature_flag", "--opt-in", flag)

    async def control(self, program: str, *arguments: str, asked: int = 0) -> str:
        """What one of RabbitMQ's own commands prints of a node. Raises CalledProcessError."""
        return str(await self._by_hand(lambda: self.nodes[asked].control(program, *arguments)))

    async def kill(self, *numbers: int) -> None:
        """A crash, all at once."""
        for number in numbers:
            await self._by_hand(self.nodes[number].kill)

    async def restart(self, number: int, seconds: float = 120.0) -> None:
        """As docs/deployment.md says: when no queue loses its majority by it, stop it cleanly and start it."""
        async with asyncio.timeout(seconds):
            while not await self._by_hand(lambda: self._dispensable(number)):
                await asyncio.sleep(1)
        await self._by_hand(self.nodes[number].restart)

    def _dispensable(self, number: int) -> bool:
        try:
            self.nodes[number].control("rabbitmq-queues", "-q", "check_if_node_is_quorum_critical")
        except subprocess.CalledProcessError:
            return False
        return True

    async def separate(self, number: int, seconds: float) -> None:
        """Keep it from the other nodes for a while; its clients reach it."""
        await self._network.separate(_short(self.nodes[number]), seconds)

    async def queues(self, asked: int = 0) -> dict[str, dict[str, Any]]:
        """What node ``asked`` says of each quorum queue: leader, members, and which of these are online."""
        columns = ("name", "type", "leader", "members", "online")
        listed = await self.control(
            "rabbitmqctl", "-q", "list_queues", *columns, "--formatter=json", asked=asked
        )
        return {each["name"]: each for each in json.loads(listed) if each["type"] == "quorum"}

    async def leader_of(self, queue: str) -> int:
        """The node that leads a queue."""
        leader = (await self.queues())[queue]["leader"]
        return [node.node for node in self.nodes].index(leader)

    async def consumer_of(self, queue: str) -> int:
        """The node that the one consumer of a queue is connected to."""
        listed = await self.control("rabbitmqctl", "-q", "list_consumers", "queue_name", "channel_pid")
        (line,) = (line for line in listed.splitlines() if line.split()[0] == queue)
        return next(number for number, node in enumerate(self.nodes) if node.node in line)

    async def busiest(self) -> int:
        """The node with the most connections."""
        listed = await self.control("rabbitmqctl", "-q", "list_connections", "pid")
        return max(range(len(self.nodes)), key=lambda number: listed.count(self.nodes[number].node))

    async def until_complete(self, seconds: float) -> list[str]:
        """Wait until every quorum queue has a leader, and a member online on each node; those that have not."""
        end = time.monotonic() + seconds
        while incomplete := await self._incomplete():
            if time.monotonic() > end:
                break
            await asyncio.sleep(1)
        return incomplete

    async def _incomplete(self) -> list[str]:
        try:
            queues = await self.queues()
        except subprocess.CalledProcessError:  # it starts again after a separation, before RabbitMQ 4.2
            return [f"all that {self.nodes[0].node} has"]
        return [
            name
            for name, queue in queues.items()
            if not queue["leader"] or len(queue["online"]) < len(self.nodes)
        ]

    def close(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.close()
        self._hands.shutdown()

    async def _by_hand(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._hands, work)


@asynccontextmanager
async def rabbitmq_cluster(folder: Path, definitions: str) -> AsyncIterator[RabbitMQCluster]:
    """A cluster of our own, running, whose nodes import these definitions. Raises NoRabbitMQError."""
    script = installed()
    if script is None:
        raise NoRabbitMQError("no RabbitMQ to spawn")
    folder.mkdir(parents=True, exist_ok=True)
    cookie = folder / ".erlang.cookie"
    cookie.write_text("ofthetests")
    cookie.chmod(0o400)
    plugins = ("rabbitmq_management",)
    nodes = [
        SpawnedRabbitMQ(script, folder / str(number), definitions, home=folder, plugins=plugins)
        for number in range(SIZE)
    ]
    ports = [free_port() for _ in nodes]
    members = [
        f"cluster_formation.classic_config.nodes.{number} = {node.node}"
        for number, node in enumerate(nodes, 1)
    ]
    version = server_version(script)
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(
            ErlangNetwork({_short(node): node.dist_port for node in nodes})
        )
        for node, port in zip(nodes, ports, strict=True):
            node.epmd_port = network.epmd_ports[_short(node)]
            node.configure(
                "cluster_formation.peer_discovery_backend = classic_config",
                *members,
                *_settings(version),
                f"management.tcp.port = {port}",
                "management.tcp.ip = 127.0.0.1",
            )
        cluster = RabbitMQCluster(nodes, network, ports)
        stack.callback(cluster.close)
        await cluster.start(*range(SIZE))
        if version < (4, 2):
            await cluster.enable("khepri_db")
        yield cluster


def server_version(script: Path) -> tuple[int, ...]:
    """Major and minor."""
    said = subprocess.run(
        [script.parent / "rabbitmqctl", "version"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    return tuple(int(part) for part in said.strip().rpartition(" ")[2].split(".")[:2])


def _settings(version: tuple[int, ...]) -> list[str]:
    """Those that are shipped for it."""
    files = ("cluster.conf", "cluster-4.3.conf") if version >= (4, 3) else ("cluster.conf",)
    return [(DEPLOY / name).read_text() for name in files]


def _short(node: SpawnedRabbitMQ) -> str:
    return node.node.partition("@")[0]
