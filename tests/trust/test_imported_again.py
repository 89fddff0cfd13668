"""Definitions of a later version, imported into a broker that works: its users keep their passwords."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aio_pika
import pytest

from cml_workers.bus.rabbit.topology import verify_topology
from cml_workers.bus.topology import DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, LIFECYCLE_COMMANDS, own_queues
from cml_workers.bus.users import BrokerUser, hashed, write_users
from cml_workers.process.registry import ROLES
from support.attempts import lets_in
from support.rabbitmq import SpawnedRabbitMQ
from support.users import broker_with_users, url_of

USERS = {"portal": BrokerUser(may=["*"]), "desk": BrokerUser(operate=True)}
"""``portal`` has its password in the list, ``desk`` was given one at the broker."""


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpawnedRabbitMQ]:
    with broker_with_users(tmp_path_factory.mktemp("broker"), "admin", users=USERS) as server:
        yield server


async def as_earlier(rabbitmq: SpawnedRabbitMQ, *, deleted: bool) -> None:
    """No queues of senders, no rights to them, and the exchange of dead letters a fanout, or deleted for the update."""
    async with await aio_pika.connect(url_of(rabbitmq, "admin")) as connection:
        channel = await connection.channel()
        await channel.exchange_delete(DEAD_LETTER_EXCHANGE.name)
        if not deleted:
            fanout = await channel.declare_exchange(DEAD_LETTER_EXCHANGE.name, "fanout", durable=True)
            queue = await channel.get_queue(DEAD_LETTER_QUEUE.name, ensure=False)
            await queue.bind(fanout)
        for own in (queue for user in USERS for queue in own_queues(user)):
            await channel.queue_delete(own.name)
    earlier = ("^$", "^(amq.default|cml.internal|cml.dead-letters)$", f"^({LIFECYCLE_COMMANDS.name})$")
    rabbitmq.control("rabbitmqctl", "-q", "set_permissions", "cml-lifecycle", *earlier)


@pytest.mark.parametrize("deleted", [False, True])
async def test_an_import_without_users_brings_rights_and_queues_and_keeps_every_password(
    rabbitmq: SpawnedRabbitMQ, tmp_path: Path, *, deleted: bool
):
    await as_earlier(rabbitmq, deleted=deleted)
    users = USERS | {"portal": BrokerUser(may=["*"], password_hash=hashed("portal", b"salt"))}
    (tmp_path / "list").write_text(write_users(users))
    written = ("--users", tmp_path / "list", "--without-users", "--write", tmp_path / "new.json")
    subprocess.run([sys.executable, "-m", "cml_tools.definitions", *written], check=True)
    rabbitmq.control("rabbitmqctl", "-q", "import_definitions", str(tmp_path / "new.json"))
    roles = {role.user: role.uses.with_own(USERS) for role in ROLES.values()}
    for user in (*roles, *USERS, "cml-monitor"):
        assert await lets_in(url_of(rabbitmq, user)), user
    for user, uses in roles.items():
        await verify_topology(url_of(rabbitmq, user), uses)
