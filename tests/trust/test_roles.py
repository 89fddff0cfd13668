"""What a stolen password of each role can do, on a real RabbitMQ with the definitions that are shipped."""

import json
from collections.abc import Iterator

import aio_pika
import pytest
from aiormq.exceptions import ChannelAccessRefused

from cml_contracts.topology import COMMANDS_EXCHANGE, EVENTS_EXCHANGE
from cml_tools.definitions import PERMISSIONS, definitions
from cml_workers.bus.topology import INTERNAL_EXCHANGE, TRIGGERS_EXCHANGE
from cml_workers.domain.messages import (
    InstanceObserved,
    LookupRequested,
    OperationOutstanding,
    OperationSucceeded,
    Reminder,
)
from cml_workers.process.registry import ROLES
from support.rabbitmq import NoRabbitMQError, SpawnedRabbitMQ, private_rabbitmq

LIFECYCLE, RELAY, ADAPTER, PROJECTOR = (
    ROLES[name].user for name in ("lifecycle", "relay", "ec2-adapter", "projector")
)
PUBLISHERS = {
    OperationSucceeded.TYPE: {ADAPTER},
    InstanceObserved.TYPE: {ADAPTER},
    OperationOutstanding.TYPE: {PROJECTOR},
    LookupRequested.TYPE: {LIFECYCLE},
    Reminder.TYPE: {ADAPTER, PROJECTOR},
}
"""Who may publish each kind of message between roles."""


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpawnedRabbitMQ]:
    """Every user's password is its name."""
    users = json.dumps(definitions({user: user for user in PERMISSIONS}))
    try:
        with private_rabbitmq(tmp_path_factory.mktemp("trust"), users) as server:
            yield server
    except NoRabbitMQError as error:
        pytest.skip(str(error))


def url(rabbitmq: SpawnedRabbitMQ, user: str) -> str:
    return f"amqp://{user}:{user}@127.0.0.1:{rabbitmq.port}/"


async def refused(rabbitmq: SpawnedRabbitMQ, user: str, exchange: str, routing_key: str) -> bool:
    """Whether the broker lets the user not publish this."""
    async with await aio_pika.connect(url(rabbitmq, user)) as connection:
        target = await (await connection.channel()).get_exchange(exchange, ensure=False)
        try:
            await target.publish(aio_pika.Message(b"{}", type=routing_key), routing_key)
        except ChannelAccessRefused:
            return True
    return False


@pytest.mark.parametrize("user", [role.user for role in ROLES.values()])
async def test_the_broker_lets_a_role_publish_its_own_kinds_of_messages_and_no_others(
    rabbitmq: SpawnedRabbitMQ, user: str
):
    refusals = {kind: await refused(rabbitmq, user, INTERNAL_EXCHANGE.name, kind) for kind in PUBLISHERS}
    assert refusals == {kind: user not in users for kind, users in PUBLISHERS.items()}
    for exchange in (EVENTS_EXCHANGE, TRIGGERS_EXCHANGE):
        assert await refused(rabbitmq, user, exchange.name, "cml.worker.created.v1") is (user != RELAY)
    assert await refused(rabbitmq, user, COMMANDS_EXCHANGE.name, "cml.worker.terminate.v1")
