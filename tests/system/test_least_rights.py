"""A RabbitMQ with the definitions that are shipped: every role has what it needs and no more, and strangers nothing."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.exceptions import AMQPError

from cml_contracts.client import NotSentError, WorkerClient
from cml_contracts.commands import CreateCMLWorker, TerminateCMLWorker
from cml_contracts.deadletters import RedriveDeadLetter
from cml_contracts.tokens import sign
from cml_contracts.topology import Exchange
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from cml_tools.definitions import PERMISSIONS, definitions
from cml_workers.bus.port import Message, TopologyError, Verdict
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.bus.usage import Usage
from cml_workers.process.registry import ROLES, USERS
from support.deadletters import dead_letters
from support.plain_amqp import PlainAmqp
from support.rabbitmq import NoRabbitMQError, SpawnedRabbitMQ, private_rabbitmq
from support.roles import Roles

KEY = "k" * 32
REDRIVE_KEYS = {"lifecycle": "l" * 32, "ec2-adapter": "e" * 32, "projector": "p" * 32}
CREATE = CreateCMLWorker(
    name="lab", aws_region="us-east-1", ami_id=DEMO_IMAGES["us-east-1"], created_by="cml-client"
)


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpawnedRabbitMQ]:
    """Every user's password is its name."""
    users = json.dumps(definitions({user: user for user in PERMISSIONS}))
    try:
        with private_rabbitmq(tmp_path_factory.mktemp("rights"), users) as server:
            yield server
    except NoRabbitMQError as error:
        pytest.skip(str(error))


def url(rabbitmq: SpawnedRabbitMQ, user: str, password: str | None = None) -> str:
    return f"amqp://{user}:{password or user}@127.0.0.1:{rabbitmq.port}/"


def own_key(role: str) -> dict[str, str]:
    """What a role has to know of the keys, but for the projector, which has all."""
    return {name: key for name, key in REDRIVE_KEYS.items() if name == role}


@pytest.fixture(scope="module")
def roles(rabbitmq: SpawnedRabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    with Ec2Simulator(transition_seconds=0.3) as simulator:
        roles = Roles(
            tmp_path_factory.mktemp("roles"),
            each=lambda role: {
                "RABBITMQ_URL": url(rabbitmq, f"cml-{role}"),
                "CML_REDRIVE_KEYS": json.dumps(REDRIVE_KEYS if role == "projector" else own_key(role)),
            },
            AWS_ENDPOINT_URL=simulator.url,
            CML_DECLARE_TOPOLOGY="false",
            CML_COMMAND_USERS='{"cml-client": ["cml.worker.create.v1", "cml.worker.terminate.v1"]}',
            CML_OPERATOR_USERS='["cml-operator"]',
            CML_DELEGATE_USERS='["cml-client"]',
            CML_ACTOR_TOKEN_KEYS=json.dumps([KEY]),
            CML_REMINDER_SECONDS="3600",
        )
        yield roles
        roles.kill()


async def test_a_worker_lives_with_least_rights_and_its_events_name_who_did_it(
    rabbitmq: SpawnedRabbitMQ, roles: Roles
):
    async with WorkerClient(url(rabbitmq, "cml-client")) as client, client.events("cml.worker.#") as events:
        created = await client.send(CREATE)
        assert created.problem is None
        assert created.worker_id
        first = await anext(events)
        assert (first.worker_id, first.actor) == (created.worker_id, "cml-client")
        terminate = TerminateCMLWorker(worker_id=created.worker_id, terminated_by="ann")
        command_id = str(uuid4())
        token = sign(
            KEY.encode(), actor="ann", command_id=command_id, expires=datetime.now(UTC) + timedelta(minutes=2)
        )
        ended = await client.send(terminate, command_id=command_id, actor_token=token)
        assert ended.data is True
        async with asyncio.timeout(60):
            async for event in events:
                if event.type == "cml.worker.terminated.v1":
                    assert event.actor == "ann"
                    break
        async with asyncio.timeout(60):
            while not ((view := await client.operation(command_id)) and view.result):
                await asyncio.sleep(0.1)


async def test_a_user_who_may_not_have_a_reply_queue_gets_an_error_that_says_so(rabbitmq: SpawnedRabbitMQ):
    with pytest.raises(NotSentError, match="ACCESS_REFUSED"):
        async with WorkerClient(url(rabbitmq, "cml-relay")):
            pass


async def test_strangers_forgers_and_stale_tokens_are_refused(rabbitmq: SpawnedRabbitMQ, roles: Roles):
    async with WorkerClient(url(rabbitmq, "cml-client")) as client:
        soon, late = datetime.now(UTC) + timedelta(minutes=2), datetime.now(UTC) - timedelta(minutes=1)
        for_ann = CREATE.model_copy(update={"created_by": "ann"})
        for token in (
            None,
            "forged",
            sign(KEY.encode(), actor="ann", command_id="c-late", expires=late),
            sign(KEY.encode(), actor="ann", command_id="replayed", expires=soon),
            sign(b"x" * 32, actor="ann", command_id="c-late", expires=soon),
        ):
            result = await client.send(for_ann, command_id="c-late", actor_token=token)
            assert result.problem
            assert result.problem.code == "Unauthorized"
        connection = await aio_pika.connect(url(rabbitmq, "cml-client"))
        async with connection:
            channel = await connection.channel()
            replies = await channel.declare_queue(exclusive=True)
            commands = await channel.get_exchange("cml.commands", ensure=False)
            body = CREATE.model_dump_json(exclude_none=True).encode()
            anonymous = aio_pika.Message(
                body, type=CREATE.TYPE, message_id=str(uuid4()), reply_to=replies.name
            )
            await commands.publish(anonymous, CREATE.TYPE)
            async with asyncio.timeout(60):
                while (reply := await replies.get(fail=False)) is None:
                    await asyncio.sleep(0.05)
            await reply.ack()
            assert json.loads(reply.body)["problem"]["code"] == "Unauthorized"
            forged = aio_pika.Message(
                body, type=CREATE.TYPE, message_id=str(uuid4()), user_id="cml-lifecycle"
            )
            with pytest.raises(AMQPError):
                await commands.publish(forged, CREATE.TYPE)


async def test_an_operator_redrives_in_the_senders_name_and_nobody_else_does(
    rabbitmq: SpawnedRabbitMQ, roles: Roles
):
    async with (
        PlainAmqp(url(rabbitmq, "cml-client"), disturbed=True) as sender,
        WorkerClient(url(rabbitmq, "cml-operator"), deadline=20) as operator,
    ):
        sent = await sender.publish(
            "cml.commands",
            "cml.worker.stop.v1",
            json.dumps({"worker_id": str(uuid4())}).encode(),
            user_id="cml-client",
            headers={"x-cml-user-id": "somebody-else"},
        )
        assert (await sender.replies_to(sent))[0]["problem"]["code"] == "Unauthorized"
        (letter,) = await dead_letters(operator, type="cml.worker.stop.v1")
        assert (letter.user, letter.cause) == ("cml-client", "Unauthorized")
        redrive = RedriveDeadLetter(dead_letter_id=letter.id)
        async with WorkerClient(url(rabbitmq, "cml-client")) as stranger:
            with pytest.raises(NotSentError, match="ACCESS_REFUSED"):
                await stranger.operate(redrive)
        roles.environment["CML_COMMAND_USERS"] = '{"cml-client": ["*"]}'
        roles.kill_and_start("lifecycle")
        assert (await operator.operate(redrive)).problem is None
        assert (await sender.replies_to(sent, 2))[1]["problem"]["code"] == "WorkerNotFound"


@pytest.mark.parametrize(
    ("user", "exchange", "queue"),
    [
        ("cml-client", "cml.internal", "cml.lifecycle.commands"),
        ("cml-client", "cml.events", "cml.dead-letters"),
        ("cml-client", "cml.operator", "cml.projector.operator.v2"),
        ("cml-operator", "cml.commands", "cml.dead-letters"),
        ("cml-relay", "cml.commands", "cml.lifecycle.commands"),
        ("cml-projector", "cml.commands", "cml.ec2.wakes"),
        ("cml-ec2-adapter", "cml.commands", "cml.lifecycle.reports"),
        ("cml-lifecycle", "cml.events", "cml.ec2.wakes"),
    ],
)
async def test_nobody_writes_or_reads_what_is_not_theirs(
    rabbitmq: SpawnedRabbitMQ, user: str, exchange: str, queue: str
):
    async with await aio_pika.connect(url(rabbitmq, user)) as connection:
        writing = await connection.channel()
        target = await writing.get_exchange(exchange, ensure=False)
        with pytest.raises(AMQPError):
            await target.publish(aio_pika.Message(b"{}"), "cml.worker.start.v1")
        reading = await connection.channel()
        source = await reading.get_queue(queue, ensure=False)
        with pytest.raises(AMQPError):
            await source.get()


async def never(_message: Message) -> Verdict:
    raise AssertionError


async def test_a_right_that_is_missing_and_a_queue_that_is_missing_have_each_their_advice(
    rabbitmq: SpawnedRabbitMQ,
):
    relay = url(rabbitmq, "cml-relay")
    commands = Usage(consumes=(LIFECYCLE_COMMANDS,))
    consuming = RabbitBus(relay, name="test", uses=commands, declare=False)
    consuming.consume(LIFECYCLE_COMMANDS, never, prefetch=1)
    with pytest.raises(
        TopologyError, match=r"user 'cml-relay' has no right .*'cml\.\S+'.*must name the user"
    ):
        await consuming.start()
    with pytest.raises(TopologyError, match=r"may not declare .* CML_DECLARE_TOPOLOGY=false"):
        await RabbitBus(relay, name="test", uses=commands).start()
    missing = RabbitBus(
        url(rabbitmq, "cml-client"),
        name="test",
        uses=Usage(publishes=(Exchange("cml.subscribers.none"),)),
        declare=False,
    )
    with pytest.raises(TopologyError, match=r"'cml\.subscribers\.none' is missing: import"):
        await missing.start()


def test_every_role_has_a_user_and_only_roles_are_believed():
    users = {f"cml-{role}" for role in ROLES}
    assert users < set(PERMISSIONS)
    assert users == USERS
