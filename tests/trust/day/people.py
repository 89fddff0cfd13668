"""Those who have a user at the broker, what each may do, and how what they publish gets into the ledger."""

import asyncio
import json
import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Self
from uuid import UUID, uuid4

import aio_pika
from aio_pika.exceptions import AMQPError

from cml_contracts.commands import (
    ImportCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.model import encoded
from cml_workers.bus.users import BrokerUser
from cml_workers.domain.policy import EVERY_COMMAND
from support.plain_amqp import PlainAmqp
from support.rabbitmq import SpawnedRabbitMQ
from support.users import url_of
from trust.day.ledger import Expected, Ledger, Sent

USERS: Mapping[str, BrokerUser] = {
    "ann": BrokerUser(may=[EVERY_COMMAND]),
    "ben": BrokerUser(may=[EVERY_COMMAND]),
    "cleo": BrokerUser(may=[StartCMLWorker.TYPE, StopCMLWorker.TYPE]),
    "ops": BrokerUser(may=[EVERY_COMMAND]),
    "scout": BrokerUser(may=[EVERY_COMMAND, ImportCMLWorker.TYPE]),
    "portal": BrokerUser(may=[EVERY_COMMAND], delegate=True),
    "mallory": BrokerUser(may=[EVERY_COMMAND]),
    "desk": BrokerUser(may=[StopCMLWorker.TYPE, UpdateCMLWorkerTags.TYPE], operate=True),
    "dashboard": BrokerUser(),
    "watcher": BrokerUser(subscribe=True),
}
TEAM = "ccna"
IN_TEAM = frozenset({"cleo", "desk"})
"""Who share the workers of ben, which have the team's tag."""
FLEET = frozenset({"ops"})
ACTORS = ("dora", "emil")
"""For whom portal sends."""
KEY = "k" * 32
PATIENCE = 180.0
"""Seconds until an answer comes, also while a role is started again."""


class Person:
    """A user with a connection; ``workers``: those it has created or imported, by the actor."""

    def __init__(self, name: str, amqp: PlainAmqp, ledger: Ledger, chance: random.Random) -> None:
        self.name = name
        self.amqp = amqp
        self.ledger = ledger
        self.chance = chance
        self.workers: dict[UUID, str] = {}

    async def send(
        self,
        command: WorkerCommand,
        what: str,
        expected: Expected = Expected.DONE,
        *,
        actor: str | None = None,
        named: bool = True,
        **properties: Any,
    ) -> tuple[Sent, dict[str, Any] | None]:
        """A command and its reply; ``properties``: of the message, besides or instead of what an honest one has."""
        message_id = properties.pop("message_id", None) or str(uuid4())
        body = properties.pop("body", None) or encoded(command)
        sent = Sent(
            user=self.name if named else None,
            message_id=message_id,
            kind=properties.get("type", command.TYPE),
            what=what,
            expected=expected,
            reason=command.reason,
            actor=actor or self.name,
            body=body,
        )
        self.ledger.sent.append(sent)
        correlation = await self.amqp.publish(
            "cml.commands",
            properties.pop("routing_key", command.TYPE),
            body,
            message_id=message_id,
            **{"type": command.TYPE, "user_id": self.name if named else None, **properties},
        )
        if "reply_to" in properties:
            await asyncio.sleep(2)  # nobody is answered
            sent.open = False
            return sent, None
        reply = (await self.amqp.replies_to(correlation, seconds=PATIENCE))[-1]
        sent.open = False
        problem = (reply["problem"] or {}).get("code")
        if (problem == "Unauthorized") != (expected is Expected.DENIED):
            self.ledger.wrong.append(f"{what} of {self.name}, {expected}, was answered: {reply}")
        return sent, reply

    def reason(self) -> str:
        """A text that nobody else has."""
        return f"{self.name} {uuid4()}"


class Town:
    """Everybody, each with a connection, and the passwords of the roles."""

    def __init__(self, rabbitmq: SpawnedRabbitMQ, ledger: Ledger, seed: int) -> None:
        self.rabbitmq = rabbitmq
        self.ledger = ledger
        self.chance = random.Random(seed)
        self.people: dict[str, Person] = {}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for name, user in USERS.items():
                plain = PlainAmqp(url_of(self.rabbitmq, name), disturbed=True, listens=user.subscribe)
                amqp = await stack.enter_async_context(plain)
                self.people[name] = Person(name, amqp, self.ledger, random.Random(self.chance.random()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def victims(self, of: str) -> list[UUID]:
        """Workers of others that ``of`` has no right to."""
        return [
            worker_id
            for name, person in self.people.items()
            for worker_id in person.workers
            if name != of and not (name == "ben" and of in IN_TEAM)
        ]

    async def publish(
        self,
        user: str,
        routing_key: str,
        kind: str,
        what: str,
        expected: Expected,
        *,
        exchange: str = "",
        body: bytes = b"{}",
        headers: Mapping[str, Any] | None = None,
        named: str | None = None,
        message_id: str | None = None,
    ) -> Sent:
        """With this user's password, past all that an honest one would publish; ``named``: as whom it says it is."""
        sent = Sent(user, message_id or str(uuid4()), kind, what, expected, body=body)
        self.ledger.sent.append(sent)
        message = aio_pika.Message(
            body, type=kind, message_id=sent.message_id, user_id=named or user, headers=dict(headers or {})
        )
        refused = False
        async with await aio_pika.connect(url_of(self.rabbitmq, user)) as connection:
            channel = await connection.channel()
            target = (
                await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
            )
            try:
                await target.publish(message, routing_key)
            except AMQPError:
                refused = True
        if refused != (expected is Expected.REFUSED):
            self.ledger.wrong.append(f"{what} of {user}, {expected}, was {'refused' if refused else 'taken'}")
        if refused:
            sent.open = False
        return sent


def settings() -> dict[str, str]:
    """Whose workers are whose."""
    return {
        "CML_OWNERSHIP": "true",
        "CML_FLEET_ACTORS": json.dumps([*FLEET]),
        "CML_TEAMS": json.dumps({TEAM: sorted(IN_TEAM)}),
        "CML_ACTOR_TOKEN_KEYS": json.dumps([KEY]),
        "CML_IMPORT_TAGS": "{}",
    }
