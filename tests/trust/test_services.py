"""Services are apart: on a RabbitMQ with users that ``cml-workers broker-user`` made, each attack of one on another, and of each on us."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError
from typer.testing import CliRunner

from cml_contracts.client import NotSentError, WorkerClient
from cml_contracts.commands import CreateCMLWorker, StartCMLWorker, StopCMLWorker
from cml_contracts.queries import ListCMLWorkers
from cml_contracts.topology import (
    COMMANDS_EXCHANGE,
    QUERIES_EXCHANGE,
    own_exchange,
    reply_queue,
    subscriber_queue,
)
from cml_embedded.ec2_simulator import DEMO_IMAGES, Ec2Simulator
from cml_tools.definitions import OURS, definitions
from cml_workers.bus.topology import own_queues
from cml_workers.bus.users import password_variable, read_users, settings_of
from cml_workers.cli.app import app
from support.deadletters import dead_letters
from support.rabbitmq import NoRabbitMQError, SpawnedRabbitMQ, private_rabbitmq
from support.roles import Roles
from support.secured import ADDED

THEIRS = subscriber_queue("billing-events", "invoices")
REPLIES_OF_OTHERS = reply_queue("billing", "answers")
KINDS: dict[str, Any] = {"x-queue-type": "quorum"}


@dataclass
class Broker:
    server: SpawnedRabbitMQ
    folder: Path

    def url(self, user: str, password: str | None = None) -> str:
        lines = (self.folder / "passwords").read_text().splitlines()
        given = dict(line.split("=", 1) for line in lines)
        return f"amqp://{user}:{password or given.get(password_variable(user), user)}@127.0.0.1:{self.server.port}/"

    @asynccontextmanager
    async def channel(self, user: str) -> AsyncIterator[AbstractChannel]:
        async with await aio_pika.connect(self.url(user)) as connection:
            yield await connection.channel()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """With the definitions of a list that the command has made; the password of each user of ours is its name."""
    folder = tmp_path_factory.mktemp("services")
    for arguments in ADDED:
        where = ("--list", str(folder / "list"), "--passwords", str(folder / "passwords"))
        done = CliRunner().invoke(app, ["broker-user", "add", *arguments, *where])
        assert done.exit_code == 0, done.output
    users = read_users((folder / "list").read_bytes())
    imported = json.dumps(definitions({user: user for user in OURS}, users))
    try:
        with private_rabbitmq(folder / "server", imported) as server:
            yield Broker(server, folder)
    except NoRabbitMQError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def roles(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    users = read_users((broker.folder / "list").read_bytes())
    with Ec2Simulator(transition_seconds=0.3) as simulator:
        roles = Roles(
            tmp_path_factory.mktemp("roles"),
            each=lambda role: {"RABBITMQ_URL": broker.url(f"cml-{role}")},
            AWS_ENDPOINT_URL=simulator.url,
            CML_DECLARE_TOPOLOGY="false",
            CML_ACTOR_TOKEN_KEYS=json.dumps(["k" * 32]),
            **settings_of(users),
        )
        yield roles
        roles.kill()


async def declared(broker: Broker) -> None:
    """The durable queues of another service."""
    async with broker.channel("billing-events") as channel:
        queue = await channel.declare_queue(THEIRS, durable=True, arguments=KINDS)
        await queue.bind("cml.events", "#")
    async with broker.channel("billing") as channel:
        await channel.declare_queue(REPLIES_OF_OTHERS, durable=True, arguments=KINDS)


Attack = Callable[[AbstractChannel, str], Awaitable[object]]
"""By a channel, with the name that is the user's own."""


async def ignored(_message: AbstractIncomingMessage) -> None:
    """Whatever comes."""


async def reads(channel: AbstractChannel, _own: str) -> object:
    return await (await channel.get_queue(THEIRS, ensure=False)).get(fail=False)


async def consumes(channel: AbstractChannel, _own: str) -> object:
    return await (await channel.get_queue(REPLIES_OF_OTHERS, ensure=False)).consume(ignored)


async def empties(channel: AbstractChannel, _own: str) -> object:
    return await (await channel.get_queue(THEIRS, ensure=False)).purge()


async def deletes(channel: AbstractChannel, _own: str) -> object:
    return await channel.queue_delete(THEIRS)


async def takes_the_name(channel: AbstractChannel, _own: str) -> object:
    return await channel.declare_queue(subscriber_queue("billing-events", "new"), durable=True)


async def unbinds(channel: AbstractChannel, _own: str) -> object:
    return await (await channel.get_queue(THEIRS, ensure=False)).unbind("cml.events", "#")


async def forges(channel: AbstractChannel, _own: str) -> object:
    return await channel.default_exchange.publish(aio_pika.Message(b"{}"), THEIRS)


async def forges_by_an_exchange_of_its_own(channel: AbstractChannel, own: str) -> object:
    exchange = await channel.declare_exchange(f"{own}forgery", "fanout", auto_delete=True)
    return await (await channel.get_queue(THEIRS, ensure=False)).bind(exchange)


async def forges_by_dead_lettering(channel: AbstractChannel, own: str) -> object:
    there: dict[str, Any] = {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": THEIRS,
        "x-message-ttl": 0,
    }
    return await channel.declare_queue(f"{own}forgery", exclusive=True, arguments=there)


async def forges_an_event(channel: AbstractChannel, _own: str) -> object:
    events = await channel.get_exchange("cml.events", ensure=False)
    return await events.publish(aio_pika.Message(b"{}"), "cml.worker.created.v1")


def commands_of(own: str) -> str:
    """The one exchange for commands that the user with these queues may publish to."""
    return own_exchange(COMMANDS_EXCHANGE, own.split(".")[2]).name


async def makes_events_commands(channel: AbstractChannel, own: str) -> object:
    commands = await channel.get_exchange(commands_of(own), ensure=False)
    return await commands.bind("cml.events", "#")


async def makes_events_queries(channel: AbstractChannel, own: str) -> object:
    queries = own_exchange(QUERIES_EXCHANGE, own.split(".")[2]).name
    return await (await channel.get_exchange(queries, ensure=False)).bind("cml.events", "#")


async def makes_events_requests(channel: AbstractChannel, _own: str) -> object:
    return await (await channel.get_exchange("cml.operator", ensure=False)).bind("cml.events", "#")


async def makes_events_commands_by_an_exchange_of_its_own(channel: AbstractChannel, own: str) -> object:
    exchange = await channel.declare_exchange(f"{own}through", "fanout", auto_delete=True)
    await exchange.bind("cml.events", "#")
    return await (await channel.get_exchange(commands_of(own), ensure=False)).bind(exchange, "#")


async def makes_events_commands_by_dead_lettering(channel: AbstractChannel, own: str) -> object:
    there: dict[str, Any] = {"x-dead-letter-exchange": commands_of(own), "x-message-ttl": 0}
    queue = await channel.declare_queue(f"{own}through", exclusive=True, arguments=there)
    return await queue.bind("cml.events", "#")


async def overhears_commands(channel: AbstractChannel, own: str) -> object:
    queue = await channel.declare_queue(f"{own}ear", exclusive=True)
    return await queue.bind(commands_of(own), "#")


async def overhears_what_is_internal(channel: AbstractChannel, own: str) -> object:
    queue = await channel.declare_queue(f"{own}ear", exclusive=True)
    return await queue.bind("cml.internal", "#")


async def reads_what_is_internal(channel: AbstractChannel, _own: str) -> object:
    return await (await channel.get_queue("cml.lifecycle.commands", ensure=False)).get(fail=False)


async def reads_its_own_commands(channel: AbstractChannel, own: str) -> object:
    queue = f"cml.lifecycle.commands.{own.split('.')[2]}"
    return await (await channel.get_queue(queue, ensure=False)).get(fail=False)


async def commands_by_the_exchange_of_another(channel: AbstractChannel, _own: str) -> object:
    exchange = await channel.get_exchange("cml.commands.billing", ensure=False)
    return await exchange.publish(aio_pika.Message(b"{}"), StartCMLWorker.TYPE)


async def commands_by_the_exchange_of_all(channel: AbstractChannel, _own: str) -> object:
    exchange = await channel.get_exchange("cml.commands", ensure=False)
    return await exchange.publish(aio_pika.Message(b"{}"), StartCMLWorker.TYPE)


async def writes_what_is_internal(channel: AbstractChannel, _own: str) -> object:
    return await channel.default_exchange.publish(aio_pika.Message(b"{}"), "cml.lifecycle.reports")


ATTACKS: tuple[Attack, ...] = (
    *(reads, consumes, empties, deletes, takes_the_name, unbinds, forges, forges_by_an_exchange_of_its_own),
    *(forges_by_dead_lettering, forges_an_event, makes_events_commands, makes_events_queries),
    *(makes_events_requests, makes_events_commands_by_an_exchange_of_its_own),
    *(makes_events_commands_by_dead_lettering, overhears_commands, overhears_what_is_internal),
    *(reads_what_is_internal, writes_what_is_internal, reads_its_own_commands),
    *(commands_by_the_exchange_of_another, commands_by_the_exchange_of_all),
)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("user", ["portal", "portal-events", "desk"])
async def test_no_user_has_a_right_to_what_is_anothers(broker: Broker, user: str, attack: Attack):
    """With one namespace of queues, and one kind of user for both directions, most of these succeeded."""
    await declared(broker)
    own = subscriber_queue(user, "") if user.endswith("-events") else reply_queue(user, "")
    async with broker.channel(user) as channel:
        with pytest.raises(AMQPError, match="ACCESS_REFUSED"):
            await attack(channel, own)
    async with broker.channel("billing-events") as channel:
        await channel.declare_queue(THEIRS, passive=True)  # or it fails, as it is gone


@pytest.mark.parametrize("user", ["portal", "desk", "dashboard"])
async def test_who_sends_gets_no_events(broker: Broker, user: str):
    async with WorkerClient(broker.url(user)) as client:
        with pytest.raises(AMQPError, match="ACCESS_REFUSED"):
            async with client.events():
                pass


async def test_a_user_publishes_the_commands_it_may_send_and_no_others(broker: Broker, roles: Roles):
    """RabbitMQ refuses the routing key, and lifecycle a command under another's."""
    worker_id = uuid4()
    async with WorkerClient(broker.url("portal"), deadline=30, own_exchanges=True) as portal:
        for allowed in (StartCMLWorker(worker_id=worker_id), StopCMLWorker(worker_id=worker_id)):
            result = await portal.send(allowed)
            assert result.problem
            assert result.problem.code == "WorkerNotFound"
        with pytest.raises(NotSentError, match="ACCESS_REFUSED"):
            await portal.send(created("portal"))
    for user in ("dashboard", "portal-events"):
        async with WorkerClient(broker.url(user), deadline=30, own_exchanges=True) as client:
            with pytest.raises(NotSentError, match="ACCESS_REFUSED"):
                await client.send(StartCMLWorker(worker_id=worker_id))
    async with broker.channel("portal") as channel:
        replies = await channel.declare_queue(exclusive=True)
        commands = await channel.get_exchange("cml.commands.portal", ensure=False)
        message = command(created("portal"), "portal", replies.name)
        await commands.publish(message, StartCMLWorker.TYPE)
        async with asyncio.timeout(30):
            while (reply := await replies.get(fail=False)) is None:
                await asyncio.sleep(0.05)
        assert json.loads(reply.body)["problem"]["code"] == "Unauthorized"


async def test_who_may_only_query_queries(broker: Broker, roles: Roles):
    async with WorkerClient(broker.url("dashboard"), deadline=30, own_exchanges=True) as client:
        assert (await client.query(ListCMLWorkers())).problem is None


@pytest.mark.parametrize("address", ["amq.rabbitmq.reply-to", "", reply_queue("portal", "answers")])
async def test_each_allowed_address_gets_its_reply(broker: Broker, roles: Roles, address: str):
    async with broker.channel("portal") as channel:
        if address == "amq.rabbitmq.reply-to":
            replies = await channel.get_queue(address, ensure=False)
        else:
            replies = await channel.declare_queue(address or None, exclusive=True)
        came: asyncio.Queue[bytes] = asyncio.Queue()

        async def on_reply(message: AbstractIncomingMessage) -> None:
            came.put_nowait(message.body)

        await replies.consume(on_reply, no_ack=True)
        commands = await channel.get_exchange("cml.commands.portal", ensure=False)
        await commands.publish(
            command(StartCMLWorker(worker_id=uuid4()), "portal", replies.name), StartCMLWorker.TYPE
        )
        async with asyncio.timeout(30):
            assert json.loads(await came.get())["problem"]["code"] == "WorkerNotFound"


async def test_a_reply_reaches_no_queue_of_others(broker: Broker, roles: Roles):
    """A forged event in another service's queue, and a dead letter of an internal one, to be edited there."""
    await declared(broker)
    refused = [THEIRS, REPLIES_OF_OTHERS, "cml.lifecycle.reports", "cml.lifecycle.commands.retry.1s"]
    async with broker.channel("portal") as channel:
        commands = await channel.get_exchange("cml.commands.portal", ensure=False)
        queries = await channel.get_exchange("cml.queries.portal", ensure=False)
        for address in refused:
            start = StartCMLWorker(worker_id=uuid4())
            await commands.publish(command(start, "portal", address), start.TYPE)
            await queries.publish(command(ListCMLWorkers(), "portal", address), ListCMLWorkers.TYPE)
    async with WorkerClient(broker.url("desk"), deadline=30) as desk:
        letters = await dead_letters(desk, 2 * len(refused), cause="ValidationFailed", reason_part="reply_to")
        assert sorted(letter.reply_to or "" for letter in letters) == sorted(refused * 2)
        assert {letter.user for letter in letters} == {"portal"}
        assert {letter.queue for letter in letters} == {"cml.lifecycle.commands", "cml.projector.queries.v2"}
    async with broker.channel("billing") as channel:
        assert await (await channel.get_queue(REPLIES_OF_OTHERS)).get(fail=False) is None


async def test_a_service_sends_as_one_user_and_gets_events_as_the_other(broker: Broker, roles: Roles):
    """What is not an event, and came by an earlier right into its queue, is stepped over."""
    seen: list[str] = []
    async with broker.channel("billing-events") as channel:
        await channel.declare_queue(subscriber_queue("billing-events", "kept"), durable=True, arguments=KINDS)
        # Nobody else may publish there; the service itself stands for whoever could before.
        exchange = await channel.declare_exchange(subscriber_queue("billing-events", "in"), "fanout")
        queue = await channel.get_queue(subscriber_queue("billing-events", "kept"))
        await queue.bind(exchange)
        for body in (b"{}", b"\xff", b'{"type": "cml.worker.created.v1"}'):
            await exchange.publish(aio_pika.Message(body), "")
        await exchange.delete()
    async with (
        WorkerClient(broker.url("billing"), deadline=30, own_exchanges=True) as sender,
        WorkerClient(
            broker.url("billing-events"), on_unreadable=lambda each: seen.append(each.queue)
        ) as events,
        events.events("cml.worker.#", queue="kept") as following,
        asyncio.timeout(60),
    ):
        result = await sender.send(created("billing"))
        first = await anext(following)
        assert (first.worker_id, first.actor) == (result.worker_id, "billing")
        assert events.unreadable == 3
        assert seen == [subscriber_queue("billing-events", "kept")] * 3


async def test_a_running_broker_takes_in_who_is_added_and_changes_nothing_else(broker: Broker):
    files = ("--list", str(broker.folder / "list"), "--passwords", str(broker.folder / "passwords"))
    assert CliRunner().invoke(app, ["broker-user", "add", "late", "--may", "stop", *files]).exit_code == 0
    printed = CliRunner().invoke(app, ["broker-user", "definitions", *files[:2]])
    (broker.folder / "new.json").write_text(printed.stdout)

    def queues() -> list[str]:
        listed = broker.server.control("rabbitmqctl", "-q", "list_queues", "name", "arguments")
        return sorted(line for line in listed.splitlines() if not re.match(r"cml\.\S+\.late\b", line))

    before = queues()
    broker.server.control("rabbitmqctl", "import_definitions", str(broker.folder / "new.json"))
    async with broker.channel("late") as channel:
        replies = await channel.declare_queue(reply_queue("late", "a"), exclusive=True)
        commands = await channel.get_exchange("cml.commands.late", ensure=False)
        with pytest.raises(AMQPError, match="ACCESS_REFUSED"):
            await commands.publish(command(created("late"), "late", replies.name), CreateCMLWorker.TYPE)
    for user in ("cml-lifecycle", "portal"):
        async with broker.channel(user):
            pass
    assert queues() == before
    async with broker.channel("cml-lifecycle") as channel:  # whose rights were there before
        queue = await channel.get_queue(own_queues("late")[0].name, ensure=False)
        assert await queue.get(fail=False) is None


def created(by: str) -> CreateCMLWorker:
    return CreateCMLWorker(name="lab", aws_region="us-east-1", ami_id=DEMO_IMAGES["us-east-1"], created_by=by)


def command(
    body: StartCMLWorker | CreateCMLWorker | ListCMLWorkers, user: str, reply_to: str
) -> aio_pika.Message:
    text = body.model_dump_json(exclude_none=True).encode()
    return aio_pika.Message(
        text, type=body.TYPE, message_id=str(uuid4()), user_id=user, reply_to=reply_to, correlation_id="c"
    )
