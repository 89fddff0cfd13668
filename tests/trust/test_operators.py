"""Who may deal with dead letters can do nothing else, and nothing in another's name.

On RabbitMQ with the users and rights that are shipped, each role a process with its own.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import aio_pika
import pytest

from cml_contracts.client import WorkerClient
from cml_contracts.commands import (
    CreateCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
)
from cml_contracts.deadletters import DeadLetterDetails, EditDeadLetter, RedriveDeadLetter
from cml_contracts.results import ProblemCode
from cml_embedded.ec2_simulator import DEMO_IMAGES
from cml_workers.bus.topology import EC2_LOOKUPS, EC2_TRIGGERS, LIFECYCLE_COMMANDS, LIFECYCLE_REPORTS
from cml_workers.domain.history import EventMetadata
from cml_workers.domain.messages import (
    CommandMessage,
    InstanceLookup,
    InstanceObserved,
    LookupAnswered,
    LookupResult,
)
from cml_workers.eventstore.names import stream_of
from cml_workers.eventstore.sqlite import SqliteEventStore
from support.deadletters import dead_letters
from support.plain_amqp import PlainAmqp
from support.rabbitmq import SpawnedRabbitMQ
from support.roles import Roles
from support.users import broker_with_users, roles_with_users, url_of

pytestmark = pytest.mark.timeout(300)  # processes start slowly on a busy machine

SENDER, OPERATOR, PROJECTOR, STRANGER = "cml-client", "cml-operator", "cml-projector", "stranger"
CREATE = CreateCMLWorker(
    name="lab", aws_region="us-east-1", ami_id=DEMO_IMAGES["us-east-1"], created_by=SENDER
)
RIGHTS = {SENDER: ["*"], OPERATOR: [StopCMLWorker.TYPE]}


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpawnedRabbitMQ]:
    with broker_with_users(tmp_path_factory.mktemp("broker"), STRANGER) as server:
        yield server


@pytest.fixture(scope="module")
def roles(rabbitmq: SpawnedRabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    with roles_with_users(
        rabbitmq,
        tmp_path_factory.mktemp("roles"),
        CML_COMMAND_USERS=json.dumps(RIGHTS),
        CML_OPERATOR_USERS=json.dumps([OPERATOR]),
    ) as roles:
        yield roles


class People:
    """A sender with a worker that runs, an operator, and others who publish where they should not."""

    def __init__(self, rabbitmq: SpawnedRabbitMQ, roles: Roles) -> None:
        self.rabbitmq = rabbitmq
        self.roles = roles
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.sender = await self.stack.enter_async_context(
            WorkerClient(url_of(self.rabbitmq, SENDER), deadline=60)
        )
        self.operator = await self.stack.enter_async_context(
            WorkerClient(url_of(self.rabbitmq, OPERATOR), deadline=60)
        )
        created = await self.sender.send(CREATE)
        assert created.worker_id, created.problem
        self.worker_id = created.worker_id
        async with asyncio.timeout(60):
            while (await self.status()) != "RUNNING":
                await asyncio.sleep(0.1)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stack.aclose()

    async def status(self) -> str:
        view = await self.sender.worker(self.worker_id)
        return str(view.status) if view else "none"

    async def publish(self, user: str, queue: str, kind: str, body: bytes) -> None:
        """As this user, straight into the queue."""
        async with await aio_pika.connect(url_of(self.rabbitmq, user)) as connection:
            message = aio_pika.Message(body, type=kind, message_id=str(uuid4()), user_id=user)
            await (await connection.channel()).default_exchange.publish(message, queue)

    async def letter(self, **conditions: Any) -> DeadLetterDetails:
        (letter,) = await dead_letters(self.operator, state="waiting", **conditions)
        return letter

    async def metadata(self, worker_id: UUID) -> list[EventMetadata]:
        """What is recorded around each event of the worker."""
        store = SqliteEventStore(Path(self.roles.environment["CML_DATA_DIR"]) / "events.sqlite3")
        stored = await store.read(stream_of(worker_id))
        await store.close()
        return [EventMetadata.model_validate_json(each.metadata) for each in stored]

    def by_the_ceo(self) -> LookupAnswered:
        """A lookup result that brings back a command that nobody has sent."""
        terminate = TerminateCMLWorker(worker_id=self.worker_id)
        return LookupAnswered(
            origin=CommandMessage(
                command_id=str(uuid4()),
                command=terminate,
                command_type=terminate.TYPE,
                correlation_id="c",
                actor="ceo",
                user="ceo",
            ),
            lookup=InstanceLookup(aws_region="us-east-1", instance_id="i-11111111111111111", seen_revision=0),
            looked_up=LookupResult(),
        )

    def gone(self) -> InstanceObserved:
        """An observation that its instance is terminated, which it is not."""
        return InstanceObserved(worker_id=self.worker_id, seen_revision=2**40, instance=None)


@pytest.fixture
async def people(rabbitmq: SpawnedRabbitMQ, roles: Roles) -> AsyncIterator[People]:
    async with People(rabbitmq, roles) as people:
        yield people


@pytest.mark.parametrize("forged", ["by_the_ceo", "gone"])
async def test_an_operator_makes_no_message_of_our_roles(people: People, forged: str):
    """A letter of an internal queue, whoever left it there, edited into what only the EC2 adapter says."""
    seed = f"seed of {forged}"
    await people.publish(PROJECTOR, LIFECYCLE_REPORTS.name, seed, b"{}")
    letter = await people.letter(queue=LIFECYCLE_REPORTS.name, type=seed)
    report = getattr(people, forged)()
    edit = EditDeadLetter(dead_letter_id=letter.id, type=report.TYPE, body=report.model_dump_json())
    result = await people.operator.operate(edit)
    assert result.problem
    assert (result.problem.code, "nobody edits" in result.problem.detail) == (ProblemCode.CONFLICT, True)
    await asyncio.sleep(2)
    assert await people.status() == "RUNNING"
    assert {each.actor for each in await people.metadata(people.worker_id)} <= {SENDER, None}
    assert (await people.letter(type=seed)).state == "waiting"


@pytest.mark.parametrize("queue", [EC2_LOOKUPS.name, EC2_TRIGGERS.name])
async def test_nor_a_message_for_the_ec2_adapter(people: People, queue: str):
    seed = f"seed of {queue}"
    await people.publish(PROJECTOR, queue, seed, b"{}")
    letter = await people.letter(queue=queue, type=seed)
    result = await people.operator.operate(EditDeadLetter(dead_letter_id=letter.id, body="[]"))
    assert result.problem
    assert "nobody edits" in result.problem.detail


async def test_a_lookup_result_of_a_command_that_lifecycle_has_not_accepted_is_not_continued(people: People):
    """Whoever publishes it: here somebody with rights that they should not have; and no operator sends it again."""
    forged = people.by_the_ceo()
    await people.publish(STRANGER, LIFECYCLE_REPORTS.name, forged.TYPE, forged.model_dump_json().encode())
    letter = await people.letter(queue=LIFECYCLE_REPORTS.name, type=forged.TYPE)
    assert letter.user == STRANGER
    result = await people.operator.operate(RedriveDeadLetter(dead_letter_id=letter.id))
    assert result.problem
    assert "none of them; it can only be discarded" in result.problem.detail
    assert await people.status() == "RUNNING"
    assert {each.actor for each in await people.metadata(people.worker_id)} <= {SENDER, None}


async def test_an_edited_command_is_its_operators_and_needs_the_operators_right(people: People):
    """Here an operator may stop workers, and not terminate them, as the sender of the letter may."""
    async with PlainAmqp(url_of(people.rabbitmq, SENDER), disturbed=True, listens=False) as sender:
        sent = await sender.publish(
            "cml.commands", TerminateCMLWorker.TYPE, b'{"worker_id": 7}', user_id=SENDER
        )
        letter = await people.letter(queue=LIFECYCLE_COMMANDS.name, type=TerminateCMLWorker.TYPE)
        stop = {"worker_id": str(people.worker_id)}
        for denied in (
            EditDeadLetter(dead_letter_id=letter.id, body=json.dumps(stop)),
            EditDeadLetter(
                dead_letter_id=letter.id,
                type=StopCMLWorker.TYPE,
                body=json.dumps({**stop, "stopped_by": "ceo"}),
            ),
        ):
            result = await people.operator.operate(denied)
            assert result.problem
            assert result.problem.code == ProblemCode.UNAUTHORIZED
        edit = EditDeadLetter(
            dead_letter_id=letter.id, type=StopCMLWorker.TYPE, body=json.dumps(stop), by="ann"
        )
        assert (await people.operator.operate(edit)).problem is None
        assert (await sender.replies_to(sent, 2))[1]["outcome"] == "succeeded"
    events = [each for each in await people.metadata(people.worker_id) if each.command_id]
    edited = [each for each in events if each.redrive]
    assert {(each.user, each.actor) for each in edited} == {(OPERATOR, OPERATOR)}
    assert {each.redrive.model_dump_json() for each in edited} == {
        '{"edited":true,"user":"cml-operator","by":"ann"}'
    }
    assert {(each.user, each.actor) for each in events if not each.redrive} == {(SENDER, SENDER)}


async def test_a_redriven_command_is_its_senders_and_says_who_redrove_it(people: People, roles: Roles):
    """What a sender writes about that themself is not believed."""
    worker_id = uuid4()
    body = json.dumps({"worker_id": str(worker_id)}).encode()
    written = {"x-cml-operator": '{"edited": false, "user": "ceo", "by": "ceo"}', "x-cml-user-id": "ceo"}
    roles.environment["CML_COMMAND_USERS"] = json.dumps({SENDER: [StopCMLWorker.TYPE]})
    roles.kill_and_start("lifecycle")
    async with PlainAmqp(url_of(people.rabbitmq, SENDER), disturbed=True, listens=False) as sender:

        async def send(kind: str) -> str:
            return await sender.publish("cml.commands", kind, body, user_id=SENDER, headers=written)

        await sender.replies_to(await send(StopCMLWorker.TYPE))
        denied = await send(StartCMLWorker.TYPE)
        await sender.replies_to(denied)
        letter = await people.letter(type=StartCMLWorker.TYPE)
        roles.environment["CML_COMMAND_USERS"] = json.dumps(RIGHTS)
        roles.kill_and_start("lifecycle")
        redrive = RedriveDeadLetter(dead_letter_id=letter.id, by="ann")
        assert (await people.operator.operate(redrive)).problem is None
        assert (await sender.replies_to(denied, 2))[1]["problem"]["code"] == "WorkerNotFound"
    first, redriven = await people.metadata(worker_id)
    assert [(each.user, each.actor) for each in (first, redriven)] == [(SENDER, SENDER)] * 2
    assert first.redrive is None
    assert redriven.redrive
    assert redriven.redrive.model_dump() == {"edited": False, "user": OPERATOR, "by": "ann"}
