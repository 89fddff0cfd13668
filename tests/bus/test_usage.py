"""A connection asks the broker for what its role uses, and uses nothing else."""

from collections.abc import AsyncIterator

import aio_pika
import pytest

from cml_contracts.topology import COMMANDS_EXCHANGE, EVENTS_EXCHANGE
from cml_embedded.amqp_broker import AmqpBroker
from cml_workers.bus.port import Message, Outgoing, TopologyError, Verdict
from cml_workers.bus.rabbit import RabbitBus, declare_topology, verify_topology
from cml_workers.bus.topology import EC2_TRIGGERS, LIFECYCLE_COMMANDS, QUEUES, TRIGGERS_EXCHANGE
from cml_workers.bus.usage import Usage, retry_queues
from cml_workers.process.registry import ROLES


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with AmqpBroker() as broker:
        yield broker.url


async def exists(url: str, queue: str) -> bool:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        try:
            await channel.declare_queue(queue, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
        return True


async def never(_message: Message) -> Verdict:
    raise AssertionError


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_that_declares_needs_nobody_else_to_start(url: str, role: str):
    await declare_topology(url, ROLES[role].uses)
    await verify_topology(url, ROLES[role].uses)


async def test_what_is_published_before_its_consumer_first_ran_is_not_lost(url: str):
    publishes_triggers = Usage(publishes=(TRIGGERS_EXCHANGE,))
    await declare_topology(url, publishes_triggers)
    for name in (EC2_TRIGGERS.name, *retry_queues(EC2_TRIGGERS)):
        assert await exists(url, name)
    assert not await exists(url, LIFECYCLE_COMMANDS.name)


async def test_what_a_role_does_not_use_it_does_not_ask_for(url: str):
    publishes_events, consumes_commands = Usage(publishes=(EVENTS_EXCHANGE,)), Usage((LIFECYCLE_COMMANDS,))
    await declare_topology(url, publishes_events)
    await verify_topology(url, publishes_events)
    with pytest.raises(TopologyError, match=r"'cml\.dead-letters' is missing"):
        await verify_topology(url, consumes_commands)
    await declare_topology(url, consumes_commands)
    async with await aio_pika.connect(url) as connection:
        await (await connection.channel()).queue_delete(LIFECYCLE_COMMANDS.retry_queue(1))
    with pytest.raises(TopologyError, match=r"'cml\.lifecycle\.commands\.retry\.1s' is missing"):
        await verify_topology(url, consumes_commands)


async def test_a_connection_uses_nothing_that_is_not_declared(url: str):
    async with RabbitBus(url, name="test", uses=Usage(publishes=(EVENTS_EXCHANGE,))) as bus:
        with pytest.raises(ValueError, match="not among the queues"):
            bus.consume(LIFECYCLE_COMMANDS, never, prefetch=1)
        command = Outgoing(COMMANDS_EXCHANGE, "cml.worker.stop.v1", b"{}", "cml.worker.stop.v1", "1")
        with pytest.raises(KeyError):
            await bus.publish(command)


def test_every_queue_has_one_role_that_consumes_it():
    consumed = [queue for role in ROLES.values() for queue in role.uses.consumes]
    assert sorted(queue.name for queue in consumed) == sorted(queue.name for queue in QUEUES)
