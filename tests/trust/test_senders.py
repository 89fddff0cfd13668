"""A queue for each sender, on RabbitMQ with the rights that follow from the list of users, each role a process with its own."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from uuid import UUID, uuid4

import pytest

from cml_contracts.client import NotSentError, WorkerClient
from cml_contracts.commands import CreateCMLWorker, StopCMLWorker, TerminateCMLWorker, UpdateCMLWorkerTags
from cml_contracts.deadletters import EditDeadLetter, RedriveDeadLetter
from cml_embedded.ec2_simulator import DEMO_IMAGES
from cml_tools.definitions import FROM_OUTSIDE_LIMITS
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.bus.users import BrokerUser, settings_of
from support.deadletters import dead_letters
from support.plain_amqp import PlainAmqp
from support.rabbitmq import SpawnedRabbitMQ
from support.roles import Roles
from support.users import broker_with_users, roles_with_users, url_of

pytestmark = pytest.mark.timeout(300)  # processes start slowly on a busy machine

USERS: Mapping[str, BrokerUser] = {
    "ann": BrokerUser(may=["*"], shared=False),
    "ben": BrokerUser(may=[StopCMLWorker.TYPE], shared=False),
    "earlier": BrokerUser(may=["*"]),
    "desk": BrokerUser(may=["*"], operate=True, shared=False),
}
"""``earlier`` is in the list of an earlier version."""


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpawnedRabbitMQ]:
    with broker_with_users(tmp_path_factory.mktemp("broker"), users=USERS) as server:
        yield server


@pytest.fixture(scope="module")
def roles(rabbitmq: SpawnedRabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    folder = tmp_path_factory.mktemp("roles")
    with roles_with_users(rabbitmq, folder, **settings_of(USERS)) as roles:
        yield roles


def client(rabbitmq: SpawnedRabbitMQ, user: str, *, own: bool = True) -> WorkerClient:
    return WorkerClient(url_of(rabbitmq, user), deadline=60, own_exchanges=own)


def create(user: str) -> CreateCMLWorker:
    return CreateCMLWorker(
        name="lab", aws_region="us-east-1", ami_id=DEMO_IMAGES["us-east-1"], created_by=user
    )


async def test_a_full_queue_refuses_its_own_sender_and_nobody_else(rabbitmq: SpawnedRabbitMQ):
    """Before the roles read any. With the shipped limits, but the number."""
    few = json.dumps({**FROM_OUTSIDE_LIMITS, "max-length": 20})
    where = ("--apply-to", "queues", "--priority", "1", "few", r"^cml\.lifecycle\.commands")
    rabbitmq.control("rabbitmqctl", "-q", "set_policy", *where, few)
    stop, refused = StopCMLWorker(worker_id=uuid4()), 0
    async with client(rabbitmq, "ben") as ben, client(rabbitmq, "ann") as ann:
        for _ in range(60):
            try:
                await ben.post(stop)
            except NotSentError:
                refused += 1
        assert refused > 20
        await ann.post(stop)
        async with client(rabbitmq, "earlier", own=False) as earlier:
            await earlier.post(stop)
    rabbitmq.control("rabbitmqctl", "-q", "clear_policy", "few")


@pytest.mark.usefixtures("roles")
async def test_commands_and_queries_are_answered_by_both_ways_at_once(rabbitmq: SpawnedRabbitMQ):
    async with (
        client(rabbitmq, "ann") as ann,
        client(rabbitmq, "earlier", own=False) as earlier,
        client(rabbitmq, "earlier") as moved,
    ):
        for user, sender in (("ann", ann), ("earlier", earlier), ("earlier", moved)):
            created = await sender.send(create(user))
            assert created.worker_id, created.problem
            tags = UpdateCMLWorkerTags(worker_id=created.worker_id, tags={"a": "b"})
            assert (await sender.send(tags)).outcome == "succeeded"
            async with asyncio.timeout(60):
                while (view := await sender.worker(created.worker_id)) is None or not view.tags:
                    await asyncio.sleep(0.1)


@pytest.mark.usefixtures("roles")
async def test_a_user_without_the_right_to_the_exchanges_of_all_is_refused_there(rabbitmq: SpawnedRabbitMQ):
    async with client(rabbitmq, "ann", own=False) as ann:
        with pytest.raises(NotSentError, match="ACCESS_REFUSED"):
            await ann.send(create("ann"))
        with pytest.raises(NotSentError, match="ACCESS_REFUSED"):
            await ann.worker(uuid4())


@pytest.mark.usefixtures("roles")
async def test_a_command_that_died_is_its_sender_s_and_redriven_and_edited_as_before(
    rabbitmq: SpawnedRabbitMQ,
):
    """The broker lets it pass, as its routing key is of a command that its sender may send."""
    stop, terminate = StopCMLWorker(worker_id=uuid4()), TerminateCMLWorker(worker_id=uuid4())
    async with client(rabbitmq, "desk") as desk:
        async with PlainAmqp(url_of(rabbitmq, "ben"), direct=True, listens=False) as ben:
            body = terminate.model_dump_json().encode()
            sent = await ben.publish("cml.commands.ben", stop.TYPE, body, type=terminate.TYPE, user_id="ben")
            (denied,) = await ben.replies_to(sent)
        assert denied["problem"]["code"] == "Unauthorized"

        async def died(deaths: int) -> UUID:
            async with asyncio.timeout(60):
                while True:
                    (letter,) = await dead_letters(desk, cause="Unauthorized")
                    if letter.deaths == deaths and letter.state == "waiting":
                        break
                    await asyncio.sleep(0.1)
            assert (letter.queue, letter.user) == (LIFECYCLE_COMMANDS.name, "ben")
            return letter.id

        redriven = await desk.operate(RedriveDeadLetter(dead_letter_id=await died(1)))
        assert redriven.outcome == "succeeded", redriven.problem
        edit = EditDeadLetter(
            dead_letter_id=await died(2), type=stop.TYPE, body=stop.model_dump_json(exclude_none=True)
        )
        edited = await desk.operate(edit)
        assert edited.outcome == "succeeded", edited.problem
        (letter,) = await dead_letters(desk, state="edited")
        assert (letter.queue, letter.user) == (LIFECYCLE_COMMANDS.name, "desk")
