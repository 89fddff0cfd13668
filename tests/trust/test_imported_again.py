"""Definitions of a later version, imported into a broker that works: its users keep their passwords, and earlier queues stay until they are deleted."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.rabbit.topology import verify_topology
from cml_workers.bus.topology import (
    DEAD_LETTER_EXCHANGE,
    DEAD_LETTER_QUEUE,
    LIFECYCLE_COMMANDS,
    PROJECTOR_OPERATOR,
    PROJECTOR_QUERIES,
    own_queues,
)
from cml_workers.bus.users import BrokerUser, hashed, write_users
from cml_workers.process.registry import ROLES
from support.attempts import lets_in
from support.rabbitmq import SpawnedRabbitMQ
from support.recorder import Recorder
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


def import_again(rabbitmq: SpawnedRabbitMQ, folder: Path) -> None:
    """What docs/deployment.md says, *Definitions of a later version*."""
    users = USERS | {"portal": BrokerUser(may=["*"], password_hash=hashed("portal", b"salt"))}
    (folder / "list").write_text(write_users(users))
    written = ("--users", folder / "list", "--without-users", "--write", folder / "new.json")
    subprocess.run([sys.executable, "-m", "cml_tools.definitions", *written], check=True)
    rabbitmq.control("rabbitmqctl", "-q", "import_definitions", str(folder / "new.json"))


@pytest.mark.parametrize("deleted", [False, True])
async def test_an_import_without_users_brings_rights_and_queues_and_keeps_every_password(
    rabbitmq: SpawnedRabbitMQ, tmp_path: Path, *, deleted: bool
):
    await as_earlier(rabbitmq, deleted=deleted)
    import_again(rabbitmq, tmp_path)
    roles = {role.user: role.uses.with_own(USERS) for role in ROLES.values()}
    for user in (*roles, *USERS, "cml-monitor"):
        assert await lets_in(url_of(rabbitmq, user)), user
    for user, uses in roles.items():
        await verify_topology(url_of(rabbitmq, user), uses)


EXPIRES = 3.0
"""Seconds after which earlier queues drop a message here; their version's argument is a minute."""
REPLACED = (PROJECTOR_QUERIES, PROJECTOR_OPERATOR)


async def test_earlier_queues_get_each_message_too_and_drop_it_until_they_are_deleted(
    rabbitmq: SpawnedRabbitMQ, tmp_path: Path
):
    """As their roles may not declare, nobody takes over from them."""
    uses = ROLES["projector"].uses
    recorders = {queue.name: Recorder() for queue in REPLACED}
    async with await aio_pika.connect(url_of(rabbitmq, "admin")) as connection:
        channel = await connection.channel()
        for queue in REPLACED:
            earlier = await channel.declare_queue(
                queue.replaces, durable=True, arguments={"x-message-ttl": int(EXPIRES * 1000)}
            )
            for binding in queue.bindings:
                await earlier.bind(binding.exchange.name, binding.routing_key)
            await channel.queue_delete(queue.name)
        import_again(rabbitmq, tmp_path)
        bus = RabbitBus(url_of(rabbitmq, "cml-projector"), name="projector", uses=uses, declare=False)
        for queue in REPLACED:
            bus.consume(queue, recorders[queue.name], prefetch=5)
        bus.consume(DEAD_LETTER_QUEUE, Recorder(), prefetch=5)
        async with bus:
            await publish(channel, "first")
            for queue in REPLACED:
                await recorders[queue.name].until(1)
                assert await waiting(channel, queue.replaces) == 1
            async with asyncio.timeout(EXPIRES + 30):
                while [await waiting(channel, queue.replaces) for queue in REPLACED] != [0, 0]:
                    await asyncio.sleep(0.2)
            for queue in REPLACED:
                rabbitmq.control("rabbitmqctl", "-q", "delete_queue", str(queue.replaces))
            await publish(channel, "second")
            for recorder in recorders.values():
                seen = await recorder.until(2)
                assert [message.message_id for message in seen] == ["first", "second"]
    listed = rabbitmq.control("rabbitmqctl", "-q", "list_queues", "name").splitlines()
    assert {queue.replaces for queue in REPLACED}.isdisjoint(listed)
    assert {queue.name for queue in REPLACED} <= {*listed}


async def publish(channel: AbstractChannel, message_id: str) -> None:
    """To each of their exchanges."""
    for binding in (binding for queue in REPLACED for binding in queue.bindings):
        exchange = await channel.get_exchange(binding.exchange.name, ensure=False)
        message = aio_pika.Message(b"{}", message_id=message_id, type="any", user_id="admin")
        assert await exchange.publish(message, "any")


async def waiting(channel: AbstractChannel, queue: str | None) -> int:
    """How many messages wait in it."""
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0
