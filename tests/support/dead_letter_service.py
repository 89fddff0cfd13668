"""Lifecycle and the dead letters on a broker, with a client and an operator."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from cml_contracts.client import WorkerClient
from cml_contracts.commands import StartCMLWorker
from cml_contracts.deadletters import (
    DeadLetterDetails,
    EditDeadLetter,
    GetDeadLetter,
    OperatorRequest,
)
from cml_contracts.results import OperationResult
from cml_workers.bus.port import Message, Verdict
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.topology import DEAD_LETTER_QUEUE, LIFECYCLE_COMMANDS, PROJECTOR_OPERATOR
from cml_workers.deadletters.archive import Archive
from cml_workers.deadletters.handler import DeadLetters
from cml_workers.deadletters.quarantined import Quarantined
from cml_workers.domain.policy import Access, Policy
from cml_workers.eventstore.port import StreamNotFoundError
from cml_workers.eventstore.quarantine import RELAY
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.lifecycle.handler import Lifecycle
from support.deadletters import dead_letters
from support.plain_amqp import PlainAmqp

START = StartCMLWorker.TYPE


CREATE: dict[str, Any] = {
    "name": "lab",
    "aws_region": "us-east-1",
    "ami_id": "ami-11111111",
    "created_by": "guest",
    "worker_id": str(uuid4()),
}


Handle = Callable[[Message], Awaitable[Verdict]]


class Service:
    """Lifecycle and the dead letters on a broker, a client of theirs and an operator."""

    client: PlainAmqp
    operator: WorkerClient

    def __init__(self, url: str, store: SqliteEventStore, archive: Archive) -> None:
        self.url = url
        self.store = store
        self.archive = archive
        self.stack = AsyncExitStack()
        self.bus = RabbitBus(url, name="projector")
        self.quarantined = Quarantined(
            archive, store, (RELAY, "projector-workers"), now=lambda: datetime.now(UTC)
        )
        self.letters = DeadLetters(
            archive=archive,
            quarantined=self.quarantined,
            store=store,
            publish=self.bus.publish,
            own_user=self.bus.user,
            access=Access(),
            now=lambda: datetime.now(UTC),
        )
        self.bus.consume(DEAD_LETTER_QUEUE, self.collect, prefetch=10)
        self.bus.consume(PROJECTOR_OPERATOR, self.on_request, prefetch=10)
        self.seen: list[Message] = []
        self.let(Access())

    async def collect(self, message: Message) -> Verdict:
        return await self.letters.collect(message)

    async def on_request(self, message: Message) -> Verdict:
        return await self.letters.on_request(message)

    def let(self, access: Access) -> None:
        """Lifecycle as it ships, under this access."""
        self.lifecycle = Lifecycle(
            store=self.store,
            publish=self.publish,
            policy=Policy(),
            access=access,
            now=lambda: datetime.now(UTC),
            new_id=uuid4,
        )
        self.handle: Handle = self.lifecycle.on_command

    async def publish(self, message: Any) -> None:
        await self.bus.publish(message)

    def fail(self, *, after: bool) -> None:
        """Lifecycle has a bug: it fails before it records a decision, or when all is done but the message."""

        async def record(*_: object, **__: object) -> Any:
            raise ValueError("a bug")

        real = self.lifecycle.on_command

        async def handle(message: Message) -> Verdict:
            await real(message)
            raise ValueError("a bug")

        if after:
            self.handle = handle
        else:
            self.lifecycle._transactions._record = record  # type: ignore[method-assign]

    async def consume(self) -> None:
        """Lifecycle begins to take commands."""
        bus = RabbitBus(self.url, name="lifecycle")

        async def on_command(message: Message) -> Verdict:
            self.seen.append(message)
            return await self.handle(message)

        bus.consume(LIFECYCLE_COMMANDS, on_command, prefetch=10)
        await self.stack.enter_async_context(bus)

    async def send(self, body: Any = None, message_id: str | None = None, **properties: Any) -> str:
        """Send a command, broken or not; its correlation id."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        properties = {"user_id": "guest", "message_id": message_id or str(uuid4()), **properties}
        kind = properties.pop("kind", START)
        return await self.client.publish("cml.commands", kind, raw, **properties)

    async def reply(self, correlation_id: str, count: int = 1) -> dict[str, Any]:
        return (await self.client.replies_to(correlation_id, count))[count - 1]

    async def the_letter(self, **conditions: Any) -> DeadLetterDetails:
        """The only one, once it is there."""
        (letter,) = await dead_letters(self.operator, **conditions)
        return letter

    async def ask(self, request: OperatorRequest) -> OperationResult:
        return await self.operator.operate(request)

    async def until(self, letter: DeadLetterDetails, **expected: Any) -> DeadLetterDetails:
        """The same one, once it is as expected."""
        async with asyncio.timeout(30):
            while True:
                result = await self.ask(GetDeadLetter(dead_letter_id=letter.id))
                now = DeadLetterDetails.model_validate(result.data)
                if all(getattr(now, name) == value for name, value in expected.items()):
                    return now
                await asyncio.sleep(0.05)


async def types(service: Service, worker_id: str = CREATE["worker_id"]) -> list[str]:
    try:
        stored = await service.store.read(f"cml_worker-{worker_id}")
    except StreamNotFoundError:
        return []
    return [each.type.removeprefix("cml.").removesuffix(".v1") for each in stored]


def into_a_creation(letter: DeadLetterDetails, worker_id: str) -> EditDeadLetter:
    return EditDeadLetter(dead_letter_id=letter.id, body=json.dumps({**CREATE, "worker_id": worker_id}))


async def nothing(*_: Any) -> None:
    """Dies before it is done."""


async def until(get: Callable[[], Awaitable[Any]], expected: Any) -> None:
    async with asyncio.timeout(30):
        while await get() != expected:
            await asyncio.sleep(0.05)
