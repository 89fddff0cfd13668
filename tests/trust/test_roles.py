"""What a stolen password of each role can do, on a real RabbitMQ with the definitions that are shipped."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Self
from uuid import uuid4

import aio_pika
import pytest
from aiormq.exceptions import ChannelAccessRefused

from cml_contracts.topology import COMMANDS_EXCHANGE, EVENTS_EXCHANGE, OPERATOR_EXCHANGE
from cml_tools.definitions import PERMISSIONS, definitions
from cml_workers.bus.headers import (
    CAUSE_HEADER,
    QUEUE_HEADER,
    REASON_HEADER,
    REDRIVE_HEADER,
    SIGNATURE_HEADER,
    USER_HEADER,
)
from cml_workers.bus.port import Ack, DeadLetter, Message, NoKeyError, Outgoing, Retry, Verdict
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.topology import (
    DEAD_LETTER_EXCHANGE,
    DEAD_LETTER_QUEUE,
    EC2_LOOKUPS,
    EC2_TRIGGERS,
    HANDLED,
    INTERNAL_EXCHANGE,
    LIFECYCLE_COMMANDS,
    LIFECYCLE_REPORTS,
    PROJECTOR_OPERATOR,
    TRIGGERS_EXCHANGE,
    Queue,
    own_queues,
)
from cml_workers.deadletters.letter import Letter, again, letter_of
from cml_workers.domain.history import Redrive
from cml_workers.domain.messages import (
    InstanceObserved,
    LookupAnswered,
    LookupRequested,
    OperationOutstanding,
    OperationSucceeded,
    Reminder,
)
from cml_workers.process.registry import ROLES, trust
from cml_workers.runtime.settings import Settings, SettingsError
from support.rabbitmq import NoRabbitMQError, SpawnedRabbitMQ, private_rabbitmq

KEYS = {"lifecycle": "l" * 32, "ec2-adapter": "e" * 32, "projector": "p" * 32}
TERMINATE = "cml.worker.terminate.v1"
LIFECYCLE, RELAY, ADAPTER, PROJECTOR = (
    ROLES[name].user for name in ("lifecycle", "relay", "ec2-adapter", "projector")
)
SENDER = "cml-client"
"""Of the shipped list, with queues of its own."""
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


class Bystanders:
    """The queues' consumers, as the roles have them, each as its own user: what they believed, and what they refused."""

    def __init__(self, rabbitmq: SpawnedRabbitMQ, keys: Mapping[str, str] = KEYS) -> None:
        self.handled: dict[str, list[Message]] = {}
        self.answers: dict[str, Verdict] = {}
        """By the queue's name, once each."""
        self.buses = {name: self._bus(rabbitmq, name, keys) for name in ROLES if name != "relay"}

    def _bus(self, rabbitmq: SpawnedRabbitMQ, name: str, keys: Mapping[str, str]) -> RabbitBus:
        role = ROLES[name]
        own = set(keys) if name == "projector" else {name} & set(keys)
        settings = Settings.model_validate(
            {
                "rabbitmq_url": url(rabbitmq, role.user),
                "redrive_keys": {each: keys[each] for each in own},
            }
        )
        bus = RabbitBus(
            url(rabbitmq, role.user),
            name=role.user,
            uses=role.uses.with_own([SENDER]),
            declare=False,
            trust=trust(settings, [role], role.user),
        )
        for queue in role.uses.consumes:
            bus.consume(queue, partial(self._handle, queue.name), prefetch=10)
        return bus

    async def _handle(self, queue: str, message: Message) -> Verdict:
        self.handled.setdefault(queue, []).append(message)
        return self.answers.pop(queue, Ack())

    async def arrived(self, queue: Queue, message_id: str) -> Message:
        """The message, once the consumer has it."""
        async with asyncio.timeout(60):
            while True:
                for message in self.handled.get(queue.name, []):
                    if message.message_id == message_id:
                        return message
                await asyncio.sleep(0.05)

    def died(self, message_id: str) -> list[Message]:
        """The message, as often as it came to the dead letters."""
        dead = self.handled.get(DEAD_LETTER_QUEUE.name, [])
        return [each for each in dead if each.message_id == message_id]

    async def refusal(self, queue: Queue, message_id: str) -> Message:
        """The dead letter of a message that no handler has had."""
        letter = await self.arrived(DEAD_LETTER_QUEUE, message_id)
        assert letter.headers[QUEUE_HEADER] == queue.name
        assert letter.headers[CAUSE_HEADER] == "Unauthorized"
        assert message_id not in {each.message_id for each in self.handled.get(queue.name, [])}
        return letter

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        for bus in self.buses.values():
            await self._stack.enter_async_context(bus)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


@pytest.fixture
async def bystanders(rabbitmq: SpawnedRabbitMQ) -> AsyncIterator[Bystanders]:
    async with Bystanders(rabbitmq) as bystanders:
        yield bystanders


async def publish(
    rabbitmq: SpawnedRabbitMQ,
    user: str,
    routing_key: str,
    kind: str,
    headers: Mapping[str, str] | None = None,
    *,
    exchange: str = "",
    body: bytes = b"{}",
    message_id: str | None = None,
    named: bool = True,
) -> str:
    """Publish with a stolen password; the message's id. ``named``: with the property ``user_id``."""
    message_id = message_id or str(uuid4())
    message = aio_pika.Message(
        body,
        type=kind,
        message_id=message_id,
        headers=dict(headers or {}),
        user_id=user if named else None,
    )
    async with await aio_pika.connect(url(rabbitmq, user)) as connection:
        channel = await connection.channel()
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        await target.publish(message, routing_key)
    return message_id


@pytest.mark.parametrize("user", [ADAPTER, PROJECTOR])
@pytest.mark.parametrize(
    "through", [LIFECYCLE_COMMANDS.name, LIFECYCLE_COMMANDS.retry_queue(1), own_queues(SENDER)[0].name]
)
async def test_no_role_but_lifecycle_commands_as_somebody_else(
    rabbitmq: SpawnedRabbitMQ, bystanders: Bystanders, user: str, through: str
):
    for made_up in ({}, {SIGNATURE_HEADER: "0" * 64}, {REDRIVE_HEADER: f"{uuid4()}/1"}):
        sent = await publish(rabbitmq, user, through, TERMINATE, {USER_HEADER: "cml-client", **made_up})
        letter = await bystanders.refusal(LIFECYCLE_COMMANDS, sent)
        assert letter.user_id == user
    sent = await publish(rabbitmq, user, through, TERMINATE)
    assert (await bystanders.arrived(LIFECYCLE_COMMANDS, sent)).user_id == user  # who may send no command


async def test_the_relay_reaches_no_queue_by_its_name(rabbitmq: SpawnedRabbitMQ):
    for queue in HANDLED:
        with pytest.raises(ChannelAccessRefused):
            await publish(rabbitmq, RELAY, queue.name, TERMINATE, {USER_HEADER: "cml-client"})


async def test_lifecycle_may_do_in_its_own_queues_what_it_decides_anyway(
    rabbitmq: SpawnedRabbitMQ, bystanders: Bystanders
):
    sent = await publish(rabbitmq, LIFECYCLE, LIFECYCLE_COMMANDS.name, TERMINATE, {USER_HEADER: "cml-client"})
    assert (await bystanders.arrived(LIFECYCLE_COMMANDS, sent)).user_id == "cml-client"


FORGED = [
    (LIFECYCLE, LIFECYCLE_REPORTS, OperationSucceeded.TYPE),
    (PROJECTOR, LIFECYCLE_REPORTS, OperationSucceeded.TYPE),
    (PROJECTOR, LIFECYCLE_REPORTS, LookupAnswered.TYPE),
    (PROJECTOR, LIFECYCLE_REPORTS, InstanceObserved.TYPE),
    (ADAPTER, LIFECYCLE_REPORTS, OperationOutstanding.TYPE),
    (ADAPTER, LIFECYCLE_REPORTS, "cml.report.made_up.v1"),
    (ADAPTER, EC2_LOOKUPS, LookupRequested.TYPE),
    (PROJECTOR, EC2_LOOKUPS, LookupRequested.TYPE),
    (LIFECYCLE, EC2_TRIGGERS, Reminder.TYPE),
    (LIFECYCLE, EC2_TRIGGERS, "cml.worker.start_requested.v1"),
    (PROJECTOR, EC2_TRIGGERS, "cml.worker.start_requested.v1"),
    (PROJECTOR, EC2_TRIGGERS, "anything"),
]


@pytest.mark.parametrize(("user", "queue", "kind"), FORGED)
async def test_no_role_speaks_for_another_one(
    rabbitmq: SpawnedRabbitMQ, bystanders: Bystanders, user: str, queue: Queue, kind: str
):
    for named in (True, False):
        sent = await publish(rabbitmq, user, queue.name, kind, named=named)
        assert (await bystanders.refusal(queue, sent)).user_id == (user if named else None)
    if user not in (role.user for role in ROLES.values() if queue in role.uses.consumes):
        sent = await publish(rabbitmq, user, queue.name, kind, {USER_HEADER: ADAPTER})
        await bystanders.refusal(queue, sent)


async def test_each_role_is_believed_what_is_its_own(rabbitmq: SpawnedRabbitMQ, bystanders: Bystanders):
    for kind, users in PUBLISHERS.items():
        [queue] = (each for each in (EC2_LOOKUPS, EC2_TRIGGERS, LIFECYCLE_REPORTS) if _takes(each, kind))
        for user in users:
            for named in (True, False):  # earlier versions did not name themselves
                sent = await publish(rabbitmq, user, kind, kind, exchange=INTERNAL_EXCHANGE.name, named=named)
                assert (await bystanders.arrived(queue, sent)).user_id == (user if named else None)
    event = "cml.worker.start_requested.v1"
    sent = await publish(rabbitmq, RELAY, event, event, exchange=TRIGGERS_EXCHANGE.name)
    await bystanders.arrived(EC2_TRIGGERS, sent)


def _takes(queue: Queue, kind: str) -> bool:
    return any(kind.startswith(binding.routing_key.removesuffix("#")) for binding in queue.bindings)


async def test_a_retry_is_still_its_senders(rabbitmq: SpawnedRabbitMQ, bystanders: Bystanders):
    own = own_queues(SENDER)[0].bindings[0].exchange
    for queue, kind, user, exchange in (
        (LIFECYCLE_REPORTS, OperationSucceeded.TYPE, ADAPTER, INTERNAL_EXCHANGE),
        (EC2_TRIGGERS, Reminder.TYPE, ADAPTER, INTERNAL_EXCHANGE),
        (LIFECYCLE_COMMANDS, TERMINATE, SENDER, COMMANDS_EXCHANGE),
        (LIFECYCLE_COMMANDS, TERMINATE, SENDER, own),
    ):
        for named in (True, False):
            bystanders.answers[queue.name] = Retry(1)
            sent = await publish(rabbitmq, user, kind, kind, exchange=exchange.name, named=named)
            async with asyncio.timeout(60):
                while (
                    len(seen := [m for m in bystanders.handled.get(queue.name, []) if m.message_id == sent])
                    < 2
                ):
                    await asyncio.sleep(0.05)
            assert [(each.user_id, each.attempt) for each in seen] == [
                (user if named else None, 0),
                (user if named else None, 1),
            ]


def redriven(queue: Queue, user: str, body: bytes = b"{}") -> Outgoing:
    letter = Letter(
        id=uuid4(),
        death="",
        queue=queue.name,
        cause="Unauthorized",
        reason="",
        type=TERMINATE,
        body=body,
        message_id=str(uuid4()),
        correlation_id=None,
        reply_to=None,
        content_type=None,
        user=user,
        headers={"mark": "x"},
        deliveries=1,
        attempts=0,
        faults=0,
    )
    return again(letter, 1, PROJECTOR, Redrive(edited=False, user="cml-operator"))


async def test_a_redrive_of_the_projector_is_its_senders(bystanders: Bystanders):
    message = redriven(LIFECYCLE_COMMANDS, "cml-client")
    await bystanders.buses["projector"].publish(message)
    seen = await bystanders.arrived(LIFECYCLE_COMMANDS, message.message_id)
    assert (seen.user_id, seen.headers["mark"], seen.body) == ("cml-client", "x", b"{}")
    assert SIGNATURE_HEADER not in seen.headers


@pytest.mark.parametrize("user", [LIFECYCLE, PROJECTOR, ""])
async def test_what_was_forged_is_refused_again_when_an_operator_redrives_it(
    bystanders: Bystanders, user: str
):
    """As one who redrives all of the cause Unauthorized."""
    message = replace(redriven(LIFECYCLE_REPORTS, user), type=OperationSucceeded.TYPE)
    await bystanders.buses["projector"].publish(message)
    assert ((await bystanders.refusal(LIFECYCLE_REPORTS, message.message_id)).user_id or "") == user


@pytest.mark.parametrize("changed", ["queue", "body", "user", "id", "reply_to", "redrive", "key"])
async def test_a_redrive_is_signed_over_all_that_is_believed(
    rabbitmq: SpawnedRabbitMQ, bystanders: Bystanders, changed: str
):
    """With the projector's password and what it has signed before, but without its key."""
    queue = EC2_LOOKUPS if changed == "queue" else LIFECYCLE_COMMANDS
    keys = {**KEYS, "lifecycle": "z" * 32} if changed == "key" else KEYS
    settings = Settings.model_validate({"rabbitmq_url": url(rabbitmq, PROJECTOR), "redrive_keys": keys})
    made = trust(settings, [ROLES["projector"]], PROJECTOR).signed(redriven(queue, "cml-operator"))
    headers = {name: str(value) for name, value in made.headers.items()}
    forged = aio_pika.Message(
        b'{"worker_id": "another"}' if changed == "body" else made.body,
        type=made.type,
        message_id=str(uuid4()) if changed == "id" else made.message_id,
        reply_to="elsewhere" if changed == "reply_to" else None,
        headers={
            **headers,
            **({USER_HEADER: "cml-client"} if changed == "user" else {}),
            **({REDRIVE_HEADER: f"{uuid4()}/1"} if changed == "redrive" else {}),
        },
        user_id=PROJECTOR,
    )
    async with await aio_pika.connect(url(rabbitmq, PROJECTOR)) as connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(forged, LIFECYCLE_COMMANDS.name)
    letter = await bystanders.refusal(LIFECYCLE_COMMANDS, str(forged.message_id))
    assert letter.user_id == PROJECTOR
    assert "redrive it again" in str(letter.headers[REASON_HEADER])


async def test_nobody_makes_up_an_operator_or_what_died(rabbitmq: SpawnedRabbitMQ, bystanders: Bystanders):
    """With the projector's password: otherwise it could have the projector sign what it likes."""
    operator = {USER_HEADER: "cml-operator"}
    request = "cml.dead_letter.redrive.v1"
    for user in (LIFECYCLE, ADAPTER, PROJECTOR):
        sent = await publish(rabbitmq, user, PROJECTOR_OPERATOR.name, request, operator)
        await bystanders.refusal(PROJECTOR_OPERATOR, sent)
        sent = await publish(rabbitmq, user, PROJECTOR_OPERATOR.name, request)
        assert (await bystanders.arrived(PROJECTOR_OPERATOR, sent)).user_id == user
    for user, queue in (
        (ADAPTER, LIFECYCLE_COMMANDS),
        (PROJECTOR, LIFECYCLE_COMMANDS),
        (LIFECYCLE, PROJECTOR_OPERATOR),
        (PROJECTOR, PROJECTOR_OPERATOR),
    ):
        died = {**operator, QUEUE_HEADER: queue.name, CAUSE_HEADER: "Unauthorized"}
        for exchange, key in ((DEAD_LETTER_EXCHANGE.name, ""), ("", DEAD_LETTER_QUEUE.name)):
            sent = await publish(rabbitmq, user, key, TERMINATE, died, exchange=exchange)
            letter = letter_of(await bystanders.arrived(DEAD_LETTER_QUEUE, sent))
            assert (letter.user, letter.queue) == (user, "")  # it can only be discarded


async def test_a_dead_letter_keeps_its_sender_while_it_is_retried(
    rabbitmq: SpawnedRabbitMQ, bystanders: Bystanders
):
    died = {USER_HEADER: "cml-client", QUEUE_HEADER: LIFECYCLE_COMMANDS.name, CAUSE_HEADER: "Unauthorized"}
    bystanders.answers[DEAD_LETTER_QUEUE.name] = Retry(1)
    sent = await publish(rabbitmq, LIFECYCLE, "", TERMINATE, died, exchange=DEAD_LETTER_EXCHANGE.name)
    async with asyncio.timeout(60):
        while len(seen := bystanders.died(sent)) < 2:
            await asyncio.sleep(0.05)
    letters = [letter_of(each) for each in seen]
    assert [(each.message_id, each.user, each.queue) for each in letters] == [
        (sent, "cml-client", LIFECYCLE_COMMANDS.name)
    ] * 2


async def test_a_dead_letter_of_the_projectors_own_is_its_senders(
    rabbitmq: SpawnedRabbitMQ, bystanders: Bystanders
):
    bystanders.answers[PROJECTOR_OPERATOR.name] = DeadLetter("not yours", "Unauthorized")
    sent = await publish(rabbitmq, "cml-operator", "anything", "anything", exchange=OPERATOR_EXCHANGE.name)
    letter = letter_of(await bystanders.arrived(DEAD_LETTER_QUEUE, sent))
    assert (letter.user, letter.queue, letter.reason) == (
        "cml-operator",
        PROJECTOR_OPERATOR.name,
        "not yours",
    )


async def test_without_a_key_nothing_is_redriven(rabbitmq: SpawnedRabbitMQ):
    async with Bystanders(rabbitmq, keys={}) as bystanders:
        message = redriven(LIFECYCLE_COMMANDS, "cml-client")
        with pytest.raises(NoKeyError, match="CML_REDRIVE_KEYS has no key of lifecycle"):
            await bystanders.buses["projector"].publish(message)
        for queue, exchange in (
            (LIFECYCLE_COMMANDS, COMMANDS_EXCHANGE),
            (PROJECTOR_OPERATOR, OPERATOR_EXCHANGE),
        ):
            bystanders.answers = {
                queue.name: DeadLetter("not yours", "Unauthorized"),
                DEAD_LETTER_QUEUE.name: Retry(1),
            }
            user = "cml-client" if queue is LIFECYCLE_COMMANDS else "cml-operator"
            sent = await publish(rabbitmq, user, TERMINATE, TERMINATE, exchange=exchange.name)
            async with asyncio.timeout(60):
                while len(seen := bystanders.died(sent)) < 2:
                    await asyncio.sleep(0.05)
            assert [(each.user, each.queue) for each in map(letter_of, seen)] == [(user, queue.name)] * 2


async def test_where_no_command_needs_a_right_every_role_is_believed(rabbitmq: SpawnedRabbitMQ):
    settings = Settings.model_validate({"rabbitmq_url": url(rabbitmq, LIFECYCLE), "authorize": False})
    role = ROLES["lifecycle"]
    message = redriven(LIFECYCLE_COMMANDS, "cml-client")
    believes = trust(settings, [role], role.user)
    assert believes.signed(message) is message
    received = Message(b"{}", TERMINATE, headers=message.headers, user_id=PROJECTOR)
    assert believes.judge(received, LIFECYCLE_COMMANDS, "").believed


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"role_users": {"lifecycel": "a"}},
            "CML_ROLE_USERS: 'lifecycel' is no role; did you mean lifecycle",
        ),
        ({"redrive_keys": {"relais": "k" * 32}}, "CML_REDRIVE_KEYS: 'relais' is no role"),
        ({}, "RABBITMQ_URL: 'ann' is not the user of lifecycle, which is cml-lifecycle"),
        ({"role_users": {"lifecycle": "ann"}}, None),
        ({"role_users": ["ann", "bob"]}, None),
        ({"authorize": False}, None),
    ],
)
def test_a_role_does_not_start_as_somebody_whom_the_others_would_not_believe(settings, said):
    loaded = Settings.model_validate({"rabbitmq_url": "amqp://ann@127.0.0.1:1/", **settings})
    if said is None:
        assert "ann" in trust(loaded, [ROLES["lifecycle"]], "ann").users["lifecycle"]
        return
    with pytest.raises(SettingsError, match=said):
        trust(loaded, [ROLES["lifecycle"]], "ann")
