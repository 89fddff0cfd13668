"""Everything that runs in chaos: servers that were given or are its own, networks, roles."""

import os
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

from cml_workers.bus.rabbit import declare_topology
from cml_workers.eventstore.opening import open_event_store
from support.children import module
from support.ec2 import SimulatorAdmin
from support.kurrentdb import GIVEN as GIVEN_STORE
from support.kurrentdb import relay_may_begin
from support.observed import stored_workers
from support.postgresql import GIVEN as GIVEN_DATABASE
from support.postgresql import database_of_its_own, make_schema
from support.postgresql_pair import PostgreSQLPair, private_pair
from support.rabbitmq import private_rabbitmq
from support.roles import Roles
from support.servers import GivenServer, OwnServer, Server, own_kurrentdb_cluster
from support.tcp_proxy import LOOPBACK, network_to
from system.chaos.messages import Part
from system.chaos.outcome import subscribe
from system.chaos.schedule import PROCESSES, Setup, Store, links
from system.chaos.system import System

HEARTBEAT = 2
"""Seconds, of every connection to RabbitMQ, which gives up a silent one after two to three of them."""
GRACE = 20.0
"""Seconds that EC2 may hide an instance. No fault holds back what is on its way to EC2 for as long: the promise that
nothing is launched behind a recorded failure rests on that (in production they are 300)."""

_SETTINGS: Mapping[Part, str] = {
    "rabbitmq": "RABBITMQ_URL",
    "postgresql": "DATABASE_URL",
    "ec2": "AWS_ENDPOINT_URL",
    "kurrentdb": "KURRENTDB_URI",
}
_NAMES: Mapping[Part, str] = {"postgresql": "DATABASE", "kurrentdb": "KURRENTDB"}
"""What the variables of a given server begin with."""


def setup_of(store: Store) -> Setup:
    """With the servers that were given: the database's, and the store's if it is KurrentDB."""
    given: dict[Part, str] = {"postgresql": GIVEN_DATABASE}
    if store == "kurrentdb":
        given["kurrentdb"] = GIVEN_STORE
    return Setup(
        store,
        {part: GivenServer(_NAMES[part]).harms for part, address in given.items() if os.environ.get(address)},
    )


def _host(who: str, part: Part) -> str:
    """Where its network to a part listens: each process finds the nodes of the store at a host of its own."""
    return f"127.0.2.{1 + PROCESSES.index(who)}" if part == "kurrentdb" else LOOPBACK


@asynccontextmanager
async def system(folder: Path, setup: Setup, kills: int, plant: str | None = None) -> AsyncIterator[System]:
    """All of it, running; none of it is left at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        rabbitmq = stack.enter_context(private_rabbitmq(folder / "rabbitmq"))
        ec2 = stack.enter_context(module("cml_embedded.ec2_simulator", "--data-dir", str(folder / "ec2")))
        assert ec2.stdout is not None
        ec2_url = ec2.stdout.readline().strip()
        urls: dict[Part, str] = {
            "rabbitmq": f"amqp://guest:guest@127.0.0.1:{rabbitmq.port}/?heartbeat={HEARTBEAT}",
            "ec2": ec2_url,
        }
        servers: dict[Part, Server] = {
            "rabbitmq": OwnServer(rabbitmq.signal),
            "ec2": OwnServer(ec2.send_signal),
        }
        pair: PostgreSQLPair | None = None
        if "postgresql" in setup.given:
            urls["postgresql"] = await stack.enter_async_context(
                database_of_its_own(os.environ[GIVEN_DATABASE])
            )
            servers["postgresql"] = GivenServer(_NAMES["postgresql"])
        else:
            servers["postgresql"] = pair = stack.enter_context(private_pair())
            urls["postgresql"] = pair.url
        store_uri = f"sqlite:///{folder}/data/events.sqlite3"
        if "kurrentdb" in setup.given:
            store_uri = urls["kurrentdb"] = os.environ[GIVEN_STORE]
            servers["kurrentdb"] = GivenServer(_NAMES["kurrentdb"])
        elif setup.store == "kurrentdb":
            store_uri, servers["kurrentdb"] = stack.enter_context(own_kurrentdb_cluster(folder / "store"))
            urls["kurrentdb"] = store_uri
        networks = {
            (who, part): await stack.enter_async_context(network_to(urls[part], host=_host(who, part)))
            for who, part in links(setup)
        }
        others: frozenset[UUID] = frozenset()
        if "kurrentdb" in setup.given:
            store = open_event_store(store_uri)
            await relay_may_begin(store)
            others = await stored_workers(store)
            await store.close()
        hands = {part: stack.enter_context(ThreadPoolExecutor(1)) for part in servers}

        def each(name: str) -> dict[str, str]:
            return {
                _SETTINGS[part]: network.through(urls[part])
                for (who, part), network in networks.items()
                if who == name
            }

        await declare_topology(rabbitmq.url)
        await subscribe(rabbitmq.url)
        await make_schema(urls["postgresql"])
        roles = Roles(
            folder,
            processes=PROCESSES,
            each=each,
            plant=plant,
            **{_SETTINGS[part]: urls[part] for part in setup.given},
            CML_VISIBILITY_GRACE_SECONDS=str(GRACE),
            CML_AUTHORIZE="false",
        )
        stack.callback(roles.kill)
        yield System(
            folder,
            rabbitmq,
            urls["rabbitmq"],
            urls["postgresql"],
            SimulatorAdmin(ec2_url),
            store_uri,
            networks,
            roles,
            servers,
            hands,
            others,
            pair,
            wanted=kills,
        )
