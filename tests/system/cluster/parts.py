"""Everything that runs on the cluster: with the definitions that are shipped, and least rights."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cml_tools.definitions import PERMISSIONS, definitions
from support.children import module
from support.ec2 import SimulatorAdmin
from support.postgresql import make_schema, private_postgresql
from support.rabbitmq_cluster import RabbitMQCluster, rabbitmq_cluster
from support.roles import Roles
from support.secret_parts import everything_to
from support.tcp_proxy import TcpProxy
from system.chaos.outcome import subscribe
from system.chaos.schedule import PROCESSES
from system.judging import Places

CLIENT, SUBSCRIBER = "cml-client", "cml-client-events"
MONITOR = "cml-monitor"
"""Sees the replicas of queues."""
JUDGE = "cml-operator"
"""May do everything here, to see everything."""


@dataclass(frozen=True, slots=True)
class System:
    """The cluster, the roles on it, and where to look."""

    cluster: RabbitMQCluster
    balancer: TcpProxy
    places: Places

    @property
    def url(self) -> str:
        """For clients who choose among all hosts."""
        return self.cluster.url(CLIENT)

    @property
    def balanced_url(self) -> str:
        """For clients who know one address only."""
        return _balanced(CLIENT, self.balancer)

    @property
    def subscribers_urls(self) -> tuple[str, str]:
        """Both, for those who get events."""
        return self.cluster.url(SUBSCRIBER), _balanced(SUBSCRIBER, self.balancer)


@asynccontextmanager
async def system(folder: Path) -> AsyncIterator[System]:
    """All of it, running; none of it is left at the end."""
    async with AsyncExitStack() as stack:
        imported = everything_to(JUDGE, json.dumps(definitions({user: user for user in PERMISSIONS})))
        cluster = await stack.enter_async_context(rabbitmq_cluster(folder / "rabbitmq", imported))
        balancer = await stack.enter_async_context(TcpProxy(*(node.port for node in cluster.nodes)))
        postgresql = stack.enter_context(private_postgresql())
        ec2 = stack.enter_context(module("cml_embedded.ec2_simulator", "--data-dir", str(folder / "ec2")))
        assert ec2.stdout is not None
        ec2_url = ec2.stdout.readline().strip()
        judge_url = _balanced(JUDGE, balancer)
        await subscribe(judge_url)
        await make_schema(postgresql.url)
        roles = Roles(
            folder,
            processes=PROCESSES,
            each=lambda process: {"RABBITMQ_URL": cluster.url(f"cml-{process.partition('.')[0]}")},
            CML_DECLARE_TOPOLOGY="false",
            DATABASE_URL=postgresql.url,
            AWS_ENDPOINT_URL=ec2_url,
            CML_VISIBILITY_GRACE_SECONDS="20",
            CML_AUTHORIZE="false",
        )
        stack.callback(roles.kill)
        store_uri = f"sqlite:///{folder}/data/events.sqlite3"
        places = Places(judge_url, store_uri, postgresql.url, SimulatorAdmin(ec2_url), roles)
        yield System(cluster, balancer, places)


def _balanced(user: str, balancer: TcpProxy) -> str:
    return f"amqp://{user}:{user}@127.0.0.1:{balancer.port}/?heartbeat=10"
