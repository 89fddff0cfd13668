"""Must show 5: a RabbitMQ with what ``deploy/`` mounts into that of the secured stack, and every right that nobody should have, tried."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from threading import Thread
from urllib.parse import quote
from uuid import UUID

import pytest

from cml_contracts.client import NotSentError, WorkerClient
from cml_contracts.commands import COMMANDS, CreateCMLWorker, StopCMLWorker, TerminateCMLWorker
from cml_contracts.topology import (
    EVENTS_EXCHANGE,
    OPERATOR_EXCHANGE,
    Exchange,
    reply_queue,
    subscriber_queue,
)
from cml_embedded.ec2_simulator import Ec2Simulator
from cml_tools.definitions import OURS, SHIPPED
from cml_workers.bus.port import BusConfigurationError
from cml_workers.bus.rabbit.management import ManagementError, cluster
from cml_workers.bus.rabbit.reaching import reach
from cml_workers.bus.topology import (
    DEAD_LETTER_EXCHANGE,
    DEAD_LETTER_QUEUE,
    EXCHANGES,
    INTERNAL_EXCHANGE,
    QUEUES,
    own_queues,
)
from cml_workers.bus.usage import Usage, retry_queues
from cml_workers.bus.users import BrokerUser, read_users
from cml_workers.domain.policy import EVERY_COMMAND
from cml_workers.process.registry import ROLES
from cml_workers.runtime.replicas import described
from support.attempts import DEFAULT, RESERVED, Attempt, Rights, Trying, attempts, lets_in
from support.certificates import Certificates
from support.children import module
from support.missing import missing
from support.ports import free_port
from support.postgresql import private_postgresql
from support.rabbitmq import NoRabbitMQError, speaks_amqp
from support.roles import Roles
from support.secured import OTHER_VHOST, UNSET, SecuredBroker, secured_broker

OF_OTHERS = ("portal", "portal-events", "billing", "billing-events", "agent", "desk", "dashboard")
"""Who is added by the command."""
USERS = (*OURS, *SHIPPED, *OF_OTHERS)
SENDERS = [user for user in (*SHIPPED, *OF_OTHERS) if not user.endswith("-events")]
KEYS = sorted(
    {
        *COMMANDS,
        *(kind for role in ROLES.values() for kind in role.uses.internal),
        "cml.worker.created.v1",
        "any",
    }
)
"""With which messages are published: each that some user has a right to, and others."""
pytestmark = pytest.mark.timeout(600)


def of_role(uses: Usage) -> Rights:
    """It reads what it consumes, also of each sender, and where its retries wait, and publishes what it says, to queues by name if it answers or retries."""
    by_name = {DEFAULT} if uses.consumes else set()
    return Rights(
        writes=frozenset({exchange.name for exchange in uses.exchanges} | by_name),
        reads=frozenset(uses.with_own(SENDERS).queues),
        keys={INTERNAL_EXCHANGE.name: frozenset(uses.internal)},
        unbound=frozenset({DEAD_LETTER_EXCHANGE.name}),
    )


def of_user(name: str, user: BrokerUser) -> Rights:
    """It sends, through exchanges of its own, and reads its own replies; or gets events."""
    if user.subscribe:
        own = (reply_queue(name, ""), subscriber_queue(name, ""), "amq.gen-")
        return Rights(own=own, reads=frozenset({EVENTS_EXCHANGE.name}), writes_own=True)
    queries = {f"cml.queries.{name}", *(["cml.queries"] if user.shared else [])}
    commands = (
        {f"cml.commands.{name}", *(["cml.commands"] if user.shared else [])} if user.may else set[str]()
    )
    writes = queries | commands | ({OPERATOR_EXCHANGE.name} if user.operate else set())
    keys = {} if EVERY_COMMAND in user.may else dict.fromkeys(commands, frozenset(user.may))
    return Rights(own=(reply_queue(name, ""), "amq.gen-"), writes=frozenset(writes), keys=keys)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    try:
        with secured_broker(tmp_path_factory.mktemp("secured")) as broker:
            yield broker
    except NoRabbitMQError as error:
        missing(error)


@pytest.fixture(scope="module")
def rights(broker: SecuredBroker) -> Mapping[str, Rights]:
    """Of each user of the broker's."""
    users = read_users(broker.secured.list.read_bytes())
    return {
        **{role.user: of_role(role.uses) for role in ROLES.values()},
        "cml-monitor": Rights(),
        **{name: of_user(name, user) for name, user in users.items()},
    }


def own(user: str) -> str:
    """The name of a queue that would be this user's."""
    return subscriber_queue(user, "own") if user.endswith("-events") else reply_queue(user, "own")


@dataclass(frozen=True)
class There:
    """What the broker has: the topology, and a queue of each user of other services."""

    exchanges: list[str]
    queues: list[str]
    bindings: list[tuple[str, str]]


@pytest.fixture(scope="module")
def there(broker: SecuredBroker) -> There:
    async def declare() -> None:
        for user in (*SHIPPED, *OF_OTHERS):
            async with Trying(broker.url(user)) as trying:
                assert not await trying.refused(Attempt("declare queue", f"{own(user)}-kept"))

    asyncio.run(declare())
    queues = [each["name"] for each in broker.seen("queues/%2F")]
    names = [each["name"] for each in broker.seen("exchanges/%2F") if each["name"] != DEFAULT]
    exchanges = [name for name in names if not name.startswith("amq.")]
    bindings = [
        (each["destination"], each["source"]) for each in broker.seen("bindings/%2F") if each["source"]
    ]
    assert set(queues) > {name for queue in QUEUES for name in (queue.name, *retry_queues(queue))}
    of_senders = [queue for user in SENDERS for queue in own_queues(user)]
    assert set(queues) > {queue.name for queue in of_senders}
    bound = [binding for queue in (*QUEUES, *of_senders) for binding in queue.bindings]
    assert set(exchanges) == {exchange.name for exchange in EXCHANGES} | {
        each.exchange.name for each in bound
    }
    assert set(names) == {*exchanges, *RESERVED}
    # RabbitMQ's rights are for names: whoever reads this queue could bind from the exchange, too, if topic permissions did not forbid it.
    assert {*exchanges} & {*queues} == {DEAD_LETTER_QUEUE.name}
    assert len(bindings) == len(bound)
    return There(exchanges, queues, list(dict.fromkeys(bindings)))


@pytest.mark.parametrize("user", USERS)
async def test_a_user_can_do_what_it_is_for_and_nothing_else(
    broker: SecuredBroker, rights: Mapping[str, Rights], there: There, user: str
):
    of_others = [name for name in there.queues if not rights[user].owns(name)]
    tried = attempts(there.exchanges, of_others, there.bindings, own(user), KEYS)
    async with Trying(broker.url(user)) as trying:
        refused = {attempt: await trying.refused(attempt) for attempt in tried}
    wrong = [
        f"{attempt} is {'refused' if is_refused else 'done'}"
        for attempt, is_refused in refused.items()
        if is_refused is rights[user].allow(attempt)
    ]
    assert wrong == []
    assert sum(refused.values()) > len(tried) / 2


@pytest.mark.parametrize("key", ["", "#", "cml.worker.create.v1"])
@pytest.mark.parametrize("to", [INTERNAL_EXCHANGE, DEAD_LETTER_EXCHANGE])
async def test_who_reads_the_dead_letters_has_them_sent_nowhere_else(
    broker: SecuredBroker, to: Exchange, key: str
):
    async with Trying(broker.url("cml-projector")) as trying:
        attempt = Attempt("bind exchange", to.name, DEAD_LETTER_EXCHANGE.name, key)
        assert await trying.refused(attempt)


@pytest.mark.parametrize("user", USERS)
async def test_who_has_no_right_to_a_queue_learns_of_it_only_where_rabbitmq_does_not_ask_for_one(
    broker: SecuredBroker, rights: Mapping[str, Rights], there: There, user: str
):
    """Before 4.3 it says to everybody whether there is a queue, and how many messages are in it."""
    async with Trying(broker.url(user)) as trying:
        refused = {name: await trying.asked("queue", name) for name in there.queues}
    if broker.version() >= (4, 3):
        may = rights[user]
        assert refused == {name: not (may.may_read(name) or may.may_write(name)) for name in there.queues}
    else:
        assert not any(refused.values())


async def test_nobody_enters_with_another_password_or_without_one(broker: SecuredBroker):
    of_others = broker.secured.secrets()["POSTGRES_PASSWORD"]
    wrong = [(user, password) for user in USERS for password in ("", user, "guest", of_others)]
    wrong += [("guest", "guest"), ("guest", ""), (UNSET, ""), (UNSET, UNSET)]
    entered = await asyncio.gather(*(lets_in(broker.url(user, password)) for user, password in wrong))
    assert [user for user, is_in in zip(wrong, entered, strict=True) if is_in] == []
    assert all(await asyncio.gather(*(lets_in(broker.url(user)) for user in USERS)))


async def test_nobody_enters_another_virtual_host(broker: SecuredBroker):
    entered = await asyncio.gather(*(lets_in(broker.url(user, vhost=OTHER_VHOST)) for user in USERS))
    assert not any(entered)


def test_there_is_no_port_without_tls(broker: SecuredBroker):
    listening = {(each["protocol"], each["port"]) for each in broker.seen("overview")["listeners"]}
    assert listening == {
        ("amqp/ssl", broker.server.tls_port),
        ("https", broker.management_port),
        ("clustering", broker.server.dist_port),  # of nodes, and of their own commands
    }
    assert not speaks_amqp("127.0.0.1", broker.server.tls_port)
    with closing(HTTPConnection("127.0.0.1", broker.management_port, timeout=10)) as plain:
        plain.request("GET", "/api/overview")
        with pytest.raises((OSError, HTTPException)):
            plain.getresponse()


@pytest.mark.parametrize("authority", ["", "other-ca.pem"])
async def test_who_does_not_know_the_authority_says_no_password(
    broker: SecuredBroker, certificates: Certificates, authority: str
):
    cafile = str(certificates.stranger) if authority else ""
    with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        async with WorkerClient(broker.url("portal", cafile=cafile)):
            pass
    with pytest.raises(BusConfigurationError, match="certificate authority"):
        await reach(broker.url("cml-lifecycle", cafile=cafile))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
def test_earlier_versions_of_tls_are_refused(broker: SecuredBroker, version: ssl.TLSVersion):
    """By the server: the same client is let in where one takes them."""
    client = ssl.create_default_context(cafile=str(broker.authority))
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = version
    lenient = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    lenient.set_ciphers("ALL:@SECLEVEL=0")
    lenient.minimum_version = ssl.TLSVersion.TLSv1
    lenient.load_cert_chain(broker.secured.folder / "rabbitmq.pem", broker.secured.folder / "rabbitmq.key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as accepted, lenient.wrap_socket(accepted, server_side=True):
                pass

        thread = Thread(target=serve)
        thread.start()
        assert handshake(client, server.getsockname()[1]) == version
        thread.join()
    for port in (broker.server.tls_port, broker.management_port):
        if version == ssl.TLSVersion.TLSv1_2:
            assert handshake(client, port) == version
        else:
            with pytest.raises(ssl.SSLError):
                handshake(client, port)


def handshake(client: ssl.SSLContext, port: int) -> ssl.TLSVersion:
    """Which version is spoken. Raises SSLError."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as connection,
        client.wrap_socket(connection, server_hostname="localhost") as secured,
    ):
        return ssl.TLSVersion[(secured.version() or "").replace(".", "_")]


CHANGES: tuple[tuple[str, str, object], ...] = (
    ("PUT", "policies/%2F/new", {"pattern": ".*", "definition": {"max-length": 1}}),
    ("DELETE", "policies/%2F/cml-subscribers", None),
    ("PUT", "operator-policies/%2F/new", {"pattern": ".*", "definition": {"max-length": 1}}),
    ("PUT", "vhost-limits/%2F/max-queues", {"value": -1}),
    ("PUT", "user-limits/portal/max-connections", {"value": -1}),
    ("PUT", "global-parameters/new", {"name": "new", "value": {}}),
    ("PUT", "users/new", {"password": "new", "tags": "administrator"}),
    ("PUT", "users/portal", {"password": "new", "tags": "administrator"}),
    ("DELETE", "users/portal", None),
    ("PUT", "permissions/%2F/cml-monitor", {"configure": ".*", "write": ".*", "read": ".*"}),
    ("PUT", "topic-permissions/%2F/portal", {"exchange": "cml.commands", "write": ".*", "read": ".*"}),
    ("DELETE", "topic-permissions/%2F/portal", None),
    ("PUT", "vhosts/new", {}),
    ("DELETE", "vhosts/%2F", None),
    ("POST", "definitions", {"users": []}),
    ("PUT", "queues/%2F/new", {}),
    ("DELETE", "queues/%2F/cml.lifecycle.commands", None),
    ("DELETE", "queues/%2F/cml.lifecycle.commands/contents", None),
    (
        "POST",
        "queues/%2F/cml.lifecycle.commands/get",
        {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"},
    ),
    ("PUT", "exchanges/%2F/new", {"type": "topic"}),
    ("DELETE", "exchanges/%2F/cml.events", None),
    (
        "POST",
        "exchanges/%2F/cml.commands/publish",
        {"properties": {}, "routing_key": "any", "payload": "{}", "payload_encoding": "string"},
    ),
    ("POST", "bindings/%2F/e/cml.events/q/cml.lifecycle.commands", {"routing_key": "#"}),
    ("POST", "bindings/%2F/e/cml.events/e/cml.commands", {"routing_key": "#"}),
)
"""By the management API: what only an administrator may, and what it does in a user's name."""
SECRETS = ("users", "users/portal", "permissions", "topic-permissions", "definitions")
"""What it says to administrators only."""
SEEN = ("overview", "nodes", "queues/%2F", "connections", "whoami")
"""What a monitor is for."""


async def test_by_the_management_api_nobody_changes_anything_and_only_the_monitor_looks(
    broker: SecuredBroker,
):
    async with Trying(broker.url("portal")):
        of_portal = await asyncio.to_thread(connections, broker)
        changes = [*CHANGES, *(("DELETE", f"connections/{quote(name)}", None) for name in of_portal)]
        for user in (*USERS, "guest"):
            for method, path, body in [*changes, *(("GET", path, None) for path in SECRETS)]:
                status, said = broker.asked(user, method, path, body)
                refused = status in (401, 403) or "ACCESS_REFUSED" in str(said)
                assert refused, (user, method, path, status, said)
            for path in SEEN:
                assert broker.asked(user, "GET", path)[0] == (200 if user == "cml-monitor" else 401)
        assert set(of_portal) <= set(connections(broker))


async def test_the_monitor_sees_the_replicas_of_all_queues_and_no_other_user_does(broker: SecuredBroker):
    """By the reader of doctor and readiness; a node that is alone has one of each."""
    names = {name for queue in QUEUES for name in (queue.name, *retry_queues(queue))}
    names |= {queue.name for user in SENDERS for queue in own_queues(user)}
    async with asyncio.timeout(60):
        while not names <= (seen := await cluster(broker.management_url("cml-monitor"), "/")).online.keys():
            await asyncio.sleep(1)  # its figures come every five seconds
    assert seen.nodes == 1
    assert {name: seen.replicas[name] for name in names} == dict.fromkeys(names, 1)
    assert (seen.short(names), seen.idle(names), list(seen.partitioned)) == ({}, {}, [])
    assert described(seen, names) is None
    with pytest.raises(ManagementError, match="has not the tag monitoring"):
        await cluster(broker.management_url("portal"), "/")
    with pytest.raises(ManagementError, match=f"no right in the virtual host '{OTHER_VHOST}'"):
        await cluster(broker.management_url("cml-monitor"), OTHER_VHOST)
    with pytest.raises(ManagementError, match="there is no virtual host 'none'"):
        await cluster(broker.management_url("cml-monitor"), "none")
    with pytest.raises(ManagementError, match="CERTIFICATE_VERIFY_FAILED"):
        await cluster(broker.management_url("cml-monitor").partition("?")[0], "/")


def connections(broker: SecuredBroker) -> list[str]:
    """Their names, as soon as there are any."""
    while not (found := broker.seen("connections")):
        time.sleep(1)  # its figures come every five seconds
    return [each["name"] for each in found]


def test_after_all_that_the_broker_has_the_users_and_rights_of_its_definitions(
    broker: SecuredBroker, rights: Mapping[str, Rights]
):
    exported = json.loads(broker.server.control("rabbitmqctl", "-q", "export_definitions", "-"))
    given = json.loads((broker.secured.folder / "definitions.json").read_text())
    assert {each["name"] for each in exported["users"]} == {*USERS, UNSET} == {*rights, UNSET}
    for kind in ("users", "permissions", "topic_permissions", "policies", "bindings", "vhosts"):
        assert {_key(each) for each in given[kind]} == {_key(each) for each in exported[kind]}, kind


def _key(definition: Mapping[str, object]) -> tuple[str, ...]:
    """What identifies it, and what it gives."""
    fields = ("name", "user", "vhost", "exchange", "source", "destination", "routing_key", "password_hash")
    return tuple(
        str(definition.get(field, "")) for field in (*fields, "configure", "write", "read", "pattern")
    )


@pytest.fixture(scope="module")
def stack(broker: SecuredBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    """The other servers of the stack, prepared as in compose.secured.yml, and the roles with the settings that they have there."""
    secured, folder = broker.secured, tmp_path_factory.mktemp("stack")
    secrets, port = secured.secrets(), free_port()
    of_store = {user: secrets[variable] for user, variable in STORE_USERS.items()}
    users = [part for user, password in of_store.items() for part in ("--user", user, password)]
    tls = "--tls", str(secured.folder / "kurrentdb.key"), str(secured.folder / "kurrentdb.pem")
    certificate = [(secured.folder / f"postgresql.{part}").read_text() for part in ("key", "pem")]
    with (
        module("support.kurrentdb_standin", "--port", str(port), *users, *tls),
        private_postgresql(password=secrets["POSTGRES_PASSWORD"], tls=tuple(certificate)) as postgresql,
        Ec2Simulator(transition_seconds=0.3) as simulator,
    ):
        secured.places |= {
            "kurrentdb:2113": f"127.0.0.1:{port}",
            "postgresql:5432": f"127.0.0.1:{postgresql.port}",
            "http://ec2:5000": simulator.url,
        }
        secured.prepare_database(postgresql.port)
        roles = Roles(folder, each=secured.settings)
        yield roles
        roles.kill()


STORE_USERS = {
    "cml-writer": "CML_WRITER_PASSWORD",
    "cml-reader": "CML_READER_PASSWORD",
    "cml-relay": "CML_RELAY_STORE_PASSWORD",
    "cml-projector": "CML_PROJECTOR_STORE_PASSWORD",
}


async def test_a_worker_lives_in_the_secured_stack_by_users_that_the_command_made(
    broker: SecuredBroker, request: pytest.FixtureRequest
):
    for role in ROLES.values():  # of what was tried before
        async with Trying(broker.url(role.user)) as trying:
            for queue in role.uses.with_own(SENDERS).queues:
                assert not await trying.refused(Attempt("purge", queue))
    stack: Roles = request.getfixturevalue("stack")
    create = CreateCMLWorker(name="lab", aws_region="us-east-1", created_by="billing")
    async with (
        WorkerClient(broker.url("billing"), deadline=90, own_exchanges=True) as billing,
        WorkerClient(broker.url("portal"), deadline=90, own_exchanges=True) as portal,
        WorkerClient(broker.url("dashboard"), deadline=90, own_exchanges=True) as dashboard,
        WorkerClient(broker.url("billing-events")) as subscriber,
        subscriber.events("cml.worker.#", queue="lab") as events,
    ):
        created = await billing.send(create)
        assert created.problem is None
        assert created.worker_id
        terminate = TerminateCMLWorker(worker_id=created.worker_id)
        with pytest.raises(NotSentError, match="ACCESS_REFUSED"):
            await portal.send(terminate)
        await until(dashboard, created.worker_id, "RUNNING")
        assert (await portal.send(StopCMLWorker(worker_id=created.worker_id))).problem is None
        await until(dashboard, created.worker_id, "STOPPED")
        assert (await billing.send(terminate)).problem is None
        await until(dashboard, created.worker_id, "TERMINATED")
        who: dict[str, str | None] = {}
        async with asyncio.timeout(60):
            async for event in events:
                assert event.worker_id == created.worker_id
                who[event.type.split(".")[2]] = event.actor
                if event.type == "cml.worker.terminated.v1":
                    break
    asked_for = ("created", "stop_requested", "termination_requested")
    assert {each: who[each] for each in asked_for} == dict(
        zip(asked_for, ("billing", "portal", "billing"), strict=True)
    )
    assert stack.tracebacks() == []


async def until(client: WorkerClient, worker_id: UUID, status: str) -> None:
    """Until the read model shows it."""
    async with asyncio.timeout(90):
        while (view := await client.worker(worker_id)) is None or view.status != status:
            await asyncio.sleep(0.2)
