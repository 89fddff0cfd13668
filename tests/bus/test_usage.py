"""A connection asks the broker for what its role uses, and uses nothing else."""

import asyncio
from collections.abc import AsyncIterator

import aio_pika
import pytest
from structlog.testing import capture_logs
from yarl import URL

from cml_contracts.topology import COMMANDS_EXCHANGE, EVENTS_EXCHANGE
from cml_embedded.amqp_broker import AmqpBroker
from cml_workers.bus.port import BusUnavailableError, Message, Outgoing, TopologyError, Verdict
from cml_workers.bus.rabbit import RabbitBus, connection, declare_topology, topology, verify_topology
from cml_workers.bus.topology import EC2_TRIGGERS, HANDLED, LIFECYCLE_COMMANDS, TRIGGERS_EXCHANGE
from cml_workers.bus.usage import Usage, retry_queues
from cml_workers.process.registry import ROLES
from support.tcp_proxy import TcpProxy, Trap


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


async def nothing(*_: object) -> None: ...


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
        with pytest.raises(ValueError, match="not among the exchanges"):
            await bus.publish(command)


async def test_what_the_broker_does_not_answer_for_is_named_and_asked_for_again(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(topology, "ANSWER_TIMEOUT", 0.3)
    monkeypatch.setattr(topology, "ASKS", 2)
    await declare_topology(url, ROLES["lifecycle"].uses)
    name = LIFECYCLE_COMMANDS.retry_queue(5)
    async with TcpProxy(URL(url).port or 0) as proxy:
        through = str(URL(url).with_port(proxy.port))
        for silences, answered in ((1, True), (2, False)):
            trap = proxy.arm(Trap(name.encode(), "server", "silence", seconds=60, times=silences))
            with capture_logs() as logs:
                if answered:
                    await verify_topology(through, ROLES["lifecycle"].uses)
                else:
                    with pytest.raises(BusUnavailableError, match=f"does not answer for queue '{name}'"):
                        await verify_topology(through, ROLES["lifecycle"].uses)
            assert trap.left == 0
            assert [log["what"] for log in logs] == [f"queue '{name}'"]


@pytest.mark.parametrize(
    "said",
    [
        "NOT_FOUND - failed to perform operation on queue 'x' in vhost '/' due to timeout",
        "NOT_FOUND - home node 'rabbit@b' of durable queue 'x' in vhost '/' is down or inaccessible",
    ],
)
async def test_what_is_on_a_node_that_is_down_is_not_said_to_be_missing(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch
):
    async def down(*_: object, **__: object) -> None:
        raise aio_pika.exceptions.ChannelNotFoundEntity(said)

    monkeypatch.setattr(topology, "ASKS", 1)
    monkeypatch.setattr(aio_pika.Channel, "declare_queue", down)
    with pytest.raises(BusUnavailableError, match=r"'cml\.lifecycle\.commands' \(.*may be down"):
        await declare_topology(url, Usage((LIFECYCLE_COMMANDS,)))


async def test_a_queue_that_does_not_let_itself_be_consumed_is_named(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection, "START_TIMEOUT", 0.3)
    uses = Usage((LIFECYCLE_COMMANDS,))
    await declare_topology(url, uses)
    async with TcpProxy(URL(url).port or 0) as proxy:
        bus = RabbitBus(str(URL(url).with_port(proxy.port)), name="test", uses=uses, declare=False)
        bus.consume(LIFECYCLE_COMMANDS, never, prefetch=1)
        monkeypatch.setattr(connection, "verify_topology", nothing)
        proxy.arm(Trap(LIFECYCLE_COMMANDS.name.encode(), "server", "silence", seconds=60))
        with pytest.raises(BusUnavailableError, match=f"consume '{LIFECYCLE_COMMANDS.name}'"):
            await bus.start()
        proxy.heal()


async def test_a_queue_that_is_gone_when_the_connection_is_restored_is_named_and_ends_the_role(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    """The library tries to restore the connection without an end: nobody would learn why nothing is handled."""
    monkeypatch.setattr(connection, "LOOKS_EVERY", 0.1)
    monkeypatch.setattr(connection, "DEAD_FOR", 1.0)
    async with TcpProxy(URL(url).port or 0) as proxy:
        bus = RabbitBus(proxy.through(url), name="test", uses=Usage((LIFECYCLE_COMMANDS,)))
        bus.consume(LIFECYCLE_COMMANDS, never, prefetch=1)
        async with bus:
            assert bus.problem() is None
            outage = asyncio.create_task(proxy.outage(2.0))
            async with asyncio.timeout(10):
                while bus.problem() != "not connected to RabbitMQ":
                    await asyncio.sleep(0.05)
            async with await aio_pika.connect(url) as other:
                await (await other.channel()).queue_delete(LIFECYCLE_COMMANDS.name)
            await outage
            with pytest.raises(TopologyError, match=f"no consumer on {LIFECYCLE_COMMANDS.name};"):
                await asyncio.wait_for(bus.consuming, 20)
            assert bus.problem() == f"no consumer on {LIFECYCLE_COMMANDS.name}"


def test_every_queue_has_one_role_that_consumes_it():
    consumed = [queue for role in ROLES.values() for queue in role.uses.consumes]
    assert sorted(queue.name for queue in consumed) == sorted(queue.name for queue in HANDLED)
