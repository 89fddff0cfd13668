"""A system in which each part asks for a secret that is a canary, and all that is seen of it from outside."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen
from uuid import uuid4

import aio_pika
import sqlalchemy as sa
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from cml_contracts.results import OperationResult
from cml_contracts.tokens import TOKEN_HEADER, sign
from cml_contracts.topology import COMMANDS_EXCHANGE, EVENTS_EXCHANGE
from cml_embedded.ec2_simulator import Ec2Simulator
from cml_tools.definitions import PERMISSIONS, definitions
from cml_workers.bus.codec import RESULT_TYPE
from cml_workers.bus.topology import DEAD_LETTER_EXCHANGE, INTERNAL_EXCHANGE, QUEUES, TRIGGERS_EXCHANGE
from cml_workers.eventstore.opening import open_event_store
from cml_workers.eventstore.port import StoredEvent
from cml_workers.process.registry import ROLES
from cml_workers.sql.database import open_database
from support.canaries import SPECIAL, Canaries
from support.certificates import Certificates
from support.children import module
from support.collector import Collector, collecting
from support.ec2 import SimulatorAdmin
from support.management_api import management_api
from support.observed import stored_events
from support.ports import free_port
from support.postgresql import SpawnedPostgreSQL, private_postgresql
from support.rabbitmq import SpawnedRabbitMQ, private_rabbitmq
from support.roles import Roles
from support.running import COMMAND

SECRET_HEADERS = (TOKEN_HEADER, "Authorization", "Cookie", "X-Api-Key")
"""What senders may put into their messages to show who they are, whether or not we ask for it."""
SPY = "spy"
"""A user of RabbitMQ who may do everything."""
OF_SPY = "cml.replies.cml-client.spy"
"""The name of the queue that gets everything, the replies to cml-client as well."""
BODIES = (("dead_letters", "body"), ("dead_letter_outcomes", "replaced_body"))
"""Columns that hold messages' bodies: an operator has to see what died."""
IN_STORES = "!$&'()*+,;=%\"<>\\^`{|}~"
"""Of the special characters, those that a URI of KurrentDB can have: its client decodes nothing."""
BOUND = 60.0


@dataclass
class SecretParts:
    """``secrets`` must be seen nowhere; ``contents``, of bodies of messages that die, only where bodies are kept."""

    secrets: Canaries
    contents: Canaries
    rabbitmq: SpawnedRabbitMQ
    postgresql: SpawnedPostgreSQL
    store: subprocess.Popen[str]
    """The process of the event store."""
    admin: SimulatorAdmin
    settings: Mapping[str, str]
    health: Mapping[str, int]
    roles: Roles
    collector: Collector
    """Of the roles' spans."""
    arrived: list[AbstractIncomingMessage] = field(default_factory=list)
    """Replies, events, internal messages and dead letters, as the spy got them."""
    probed: dict[str, str] = field(default_factory=dict)
    """What the probes said; of each its last answer while something failed, and the one at the end."""

    async def listen(self) -> aio_pika.abc.AbstractRobustConnection:
        """Have the spy get everything; it comes back when the broker does."""
        connection = await aio_pika.connect_robust(_amqp(self.secrets, self.rabbitmq, SPY))
        queue = await (await connection.channel()).declare_queue(OF_SPY, durable=True)
        for exchange in (EVENTS_EXCHANGE, INTERNAL_EXCHANGE, TRIGGERS_EXCHANGE, DEAD_LETTER_EXCHANGE):
            await queue.bind(exchange.name, "#")
        await queue.consume(self._arrive, no_ack=True)
        return connection

    async def _arrive(self, message: AbstractIncomingMessage) -> None:
        self.arrived.append(message)

    async def sender(self) -> aio_pika.abc.AbstractConnection:
        """A connection of the client's."""
        return await aio_pika.connect(_amqp(self.secrets, self.rabbitmq, "cml-client"))

    async def send(
        self, channel: AbstractChannel, kind: str, body: bytes, *, actor: str | None = None
    ) -> str:
        """A message with secrets in its headers; ``actor``: on whose behalf. Its id."""
        message_id = str(uuid4())
        headers = {name: self.secrets[f"{name} of {message_id}"] for name in SECRET_HEADERS}
        if actor:
            key, soon = self.secrets["the key of tokens"], datetime.now(UTC) + timedelta(minutes=5)
            token = sign(
                key.encode(),
                actor=actor,
                user="cml-client",
                command_id=message_id,
                command_type=kind,
                body=body,
                expires=soon,
            )
            headers[TOKEN_HEADER] = self.secrets.plant(f"the token of {message_id}", token)
        else:
            del headers[TOKEN_HEADER]
        exchange = await channel.get_exchange(COMMANDS_EXCHANGE.name, ensure=False)
        message = aio_pika.Message(
            body,
            type=kind,
            message_id=message_id,
            correlation_id=message_id,
            reply_to=OF_SPY,
            user_id="cml-client",
            headers=dict(headers),
            delivery_mode=2,
        )
        await exchange.publish(message, kind)
        return message_id

    async def reply_to(self, message_id: str) -> OperationResult:
        async with asyncio.timeout(BOUND):
            while True:
                for each in self.arrived:
                    if (each.type, each.correlation_id) == (RESULT_TYPE, message_id):
                        return OperationResult.model_validate_json(each.body)
                await asyncio.sleep(0.1)

    async def probe(self, when: str) -> None:
        for role, port in self.health.items():
            for path in ("livez", "readyz", "metrics", "none"):
                self.probed[f"{path} of {role} {when}"] = await _asked(port, path)

    async def doctor(self, when: str) -> None:
        """Have the doctor look, and keep what it says."""
        process = await asyncio.create_subprocess_exec(
            *(COMMAND, "doctor"),
            env={**self.roles.environment, "RABBITMQ_URL": _amqp(self.secrets, self.rabbitmq, SPY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._show(f"the doctor {when}", process.pid)
        said, _ = await process.communicate()
        self.probed[f"the doctor {when}"] = said.decode()

    def _show(self, process: str, pid: int) -> None:
        self.probed[f"the command line of {process}"] = Path(f"/proc/{pid}/cmdline").read_bytes().decode()

    def wide(self) -> list[str]:
        """Files of the roles that others may read."""
        folder = Path(self.roles.environment["CML_DATA_DIR"])
        return [str(each) for each in folder.rglob("*") if each.is_file() and each.stat().st_mode & 0o077]

    async def until_logged(self, role: str, text: str) -> None:
        async with asyncio.timeout(BOUND):
            while text not in self.roles.logs[role].read_text():
                await asyncio.sleep(0.1)

    async def until_ready(self) -> None:
        async with asyncio.timeout(BOUND):
            while not all(['"ready": true' in await _asked(port, "readyz") for port in self.health.values()]):
                await asyncio.sleep(0.2)

    async def events(self) -> list[StoredEvent]:
        """Of all streams, those of commands too."""
        store = open_event_store(self.settings["KURRENTDB_URI"])
        try:
            return await stored_events(store, "")
        finally:
            await store.close()

    async def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Every table of the database."""
        engine = open_database(self.settings["DATABASE_URL"])
        metadata = sa.MetaData()
        async with engine.connect() as connection:
            await connection.run_sync(metadata.reflect)
            found = {
                table.name: [dict(row) for row in (await connection.execute(sa.select(table))).mappings()]
                for table in metadata.sorted_tables
            }
        await engine.dispose()
        return found

    async def leaks(self) -> list[str]:
        """Which secret is where."""
        for role, process in self.roles.processes.items():
            self._show(role, process.pid)
        rows = await self.rows()
        assert self.collector.spans
        places: dict[str, Any] = {
            **{f"the log of {role}": path.read_bytes() for role, path in self.roles.logs.items()},
            **self.probed,
            "the spans": b"\n".join(self.collector.bodies),
            **{f"{each.type} of {each.stream}": each.data + each.metadata for each in await self.events()},
            **{
                f"{each.type} to {each.routing_key or each.exchange}, its properties": each.info()
                for each in self.arrived
            },
        }
        bodies: dict[str, Any] = {
            f"{table}.{column}": b"\n".join(row.pop(column) or b"" for row in rows[table])
            for table, column in BODIES
        }
        for each in self.arrived:
            dead = each.exchange == DEAD_LETTER_EXCHANGE.name
            (bodies if dead else places)[f"{each.type} to {each.routing_key or each.exchange}"] = each.body
        places |= {f"the table {table}": content for table, content in rows.items()}
        return sorted(
            {*self.secrets.found(places), *self.secrets.found(bodies), *self.contents.found(places)}
        )


def _amqp(secrets: Canaries, rabbitmq: SpawnedRabbitMQ, user: str) -> str:
    return f"amqp://{user}:{quote(secrets[f'the password of {user}'], safe='')}@127.0.0.1:{rabbitmq.port}/"


def _users(secrets: Canaries) -> str:
    """Our definitions, with passwords, and the spy."""
    shipped = definitions({user: secrets[f"the password of {user}"] for user in PERMISSIONS})
    like_spy = definitions({"cml-client": secrets[f"the password of {SPY}"]})["users"]
    [spy] = (each for each in like_spy if each["name"] == "cml-client")
    shipped["users"].append(spy | {"name": SPY})
    return everything_to(SPY, json.dumps(shipped))


def everything_to(user: str, broker_definitions: str) -> str:
    """The definitions, in which the user may do everything."""
    changed = json.loads(broker_definitions)
    others = [each for each in changed["permissions"] if each["user"] != user]
    everything = dict.fromkeys(("configure", "write", "read"), ".*")
    changed["permissions"] = [*others, {"user": user, "vhost": "/", **everything}]
    return json.dumps(changed)


@asynccontextmanager
async def secret_parts(
    folder: Path, certificates: Certificates, plant: str | None = None
) -> AsyncIterator[SecretParts]:
    """All parts, and the roles as processes that log all they can; ``plant``: with that fault, see ``planted_role``."""
    secrets = Canaries(SPECIAL)
    secrets.with_between("the password of the store", IN_STORES)
    secrets.with_between("the id of the AWS key", "")
    health = {role: free_port() for role in ROLES}
    store_port = free_port()
    of_store = "--port", str(store_port), "--user", "me", secrets["the password of the store"]
    tls = "--tls", str(certificates.key), str(certificates.certificate)
    async with AsyncExitStack() as stack:
        rabbitmq = stack.enter_context(private_rabbitmq(folder / "rabbitmq", _users(secrets)))
        postgresql = stack.enter_context(private_postgresql(password=secrets["the password of the database"]))
        simulator = stack.enter_context(Ec2Simulator(transition_seconds=0.3))
        store = stack.enter_context(module("support.kurrentdb_standin", *of_store, *tls))
        management = stack.enter_context(
            management_api({queue.name: 3 for queue in QUEUES}, secrets["the password of cml-monitor"])
        )
        collector = stack.enter_context(collecting())
        password = quote(secrets["the password of the database"], safe="")
        settings = {
            "RABBITMQ_MANAGEMENT_URL": management.url,
            "KURRENTDB_URI": f"esdb://me:{secrets['the password of the store']}@127.0.0.1:{store_port}"
            f"?TlsCaFile={certificates.authority}",
            "DATABASE_URL": f"postgresql://cml:{password}@127.0.0.1:{postgresql.port}/postgres",
            "AWS_ENDPOINT_URL": simulator.url,
            "AWS_ACCESS_KEY_ID": secrets["the id of the AWS key"],
            "AWS_SECRET_ACCESS_KEY": secrets["the AWS key"],
            "AWS_SESSION_TOKEN": secrets["the token of the AWS session"],
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_HEADERS": f"x-team={quote(secrets['the key of the collector'], safe='')}",
            "CML_DECLARE_TOPOLOGY": "false",
            "CML_COMMAND_USERS": '{"cml-client": ["*"]}',
            "CML_DELEGATE_USERS": '["cml-client"]',
            "CML_ACTOR_TOKEN_KEYS": json.dumps([secrets["the key of tokens"]]),
            "CML_LOG_LEVEL": "debug",
            "CML_LIBRARY_LOG_LEVEL": "debug",
        }
        roles = Roles(
            folder,
            each=lambda role: {
                "RABBITMQ_URL": _amqp(secrets, rabbitmq, f"cml-{role}"),
                "CML_HEALTH_PORT": str(health[role]),
                "CML_REDRIVE_KEYS": json.dumps(
                    {
                        each: secrets[f"the key of redrives to {each}"]
                        for each in ROLES
                        if role in (each, "projector")
                    }
                ),
            },
            plant=plant,
            **settings,
        )
        stack.callback(roles.kill)
        parts = SecretParts(
            secrets,
            Canaries(),
            rabbitmq,
            postgresql,
            store,
            SimulatorAdmin(simulator.url),
            settings,
            health,
            roles,
            collector,
        )
        spy = await parts.listen()
        stack.push_async_callback(spy.close)
        supervised = [asyncio.create_task(roles.supervise(role, lambda role, code: None)) for role in ROLES]
        try:
            await parts.until_ready()
            yield parts
        finally:
            for task in supervised:
                task.cancel()


async def _asked(port: int, path: str) -> str:
    def ask() -> str:
        try:
            with urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                return str(answer.read().decode())
        except HTTPError as error:
            with error:
                return error.read().decode()
        except OSError as error:
            return str(error)

    return await asyncio.to_thread(ask)
