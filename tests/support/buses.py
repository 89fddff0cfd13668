"""A bus of one process for handler tests: what was published stays in a list; and a broker's queues, emptied."""

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.exceptions import ChannelNotFoundEntity

from cml_contracts.commands import WorkerCommand
from cml_contracts.model import encoded
from cml_contracts.results import OperationResult
from cml_contracts.tokens import sign
from cml_workers.bus.port import BusUnavailableError, Message, Outgoing
from cml_workers.bus.rabbit import declare_topology
from cml_workers.bus.topology import QUEUES, RETRY_DELAYS

GIVEN = "amq.gen-"
"""What the broker gives begins so."""


@dataclass
class Outbox:
    """Keeps what is published; ``broken``: how many publishes fail before the next succeeds."""

    sent: list[Outgoing] = field(default_factory=list)
    broken: int = 0

    async def __call__(self, message: Outgoing, /) -> None:
        if self.broken:
            self.broken -= 1
            raise BusUnavailableError("planted")
        self.sent.append(message)

    def results(self, address: str = "caller") -> list[OperationResult]:
        """The replies sent to this address."""
        return [
            OperationResult.model_validate_json(message.body)
            for message in self.sent
            if message.exchange is None and message.routing_key == queue_of(address)
        ]

    def on(self, exchange: str) -> list[Outgoing]:
        """What was published to this exchange."""
        return [message for message in self.sent if message.exchange and message.exchange.name == exchange]


def queue_of(caller: str) -> str:
    """The name of a queue as the broker gives it."""
    return f"{GIVEN}{caller}"


def command(
    body: WorkerCommand, command_id: str | None = None, *, reply_to: str | None = "caller", **fields: Any
) -> Message:
    """The command as a message, as a client sends it; ``reply_to``: who awaits the reply."""
    return Message(
        body=encoded(body),
        type=body.TYPE,
        message_id=command_id or str(uuid4()),
        reply_to=reply_to and queue_of(reply_to),
        **fields,
    )


def token_for(
    key: bytes, body: WorkerCommand, command_id: str, *, actor: str, user: str, expires: datetime
) -> str:
    """A token for the command as ``command`` and ``WorkerClient`` send it."""
    bound: dict[str, Any] = {"command_id": command_id, "command_type": body.TYPE, "body": encoded(body)}
    return sign(key, actor=actor, user=user, expires=expires, **bound)


def delivered(message: Outgoing, **fields: Any) -> Message:
    """What was published, as its consumer gets it."""
    return Message(
        body=message.body,
        type=message.type,
        routing_key=message.routing_key,
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        headers=message.headers,
        **fields,
    )


async def left_behind(url: str) -> dict[str, int]:
    """Messages in the queues of the topology that nobody settled: all should be done when nobody consumes any more."""
    found = {}
    async with await aio_pika.connect(url) as connection:
        for queue in QUEUES:
            for name in (queue.name, *(queue.retry_queue(d) for d in RETRY_DELAYS if queue.retries)):
                channel = await connection.channel()
                with suppress(ChannelNotFoundEntity):  # a test deleted it
                    found[name] = (
                        await channel.declare_queue(name, passive=True)
                    ).declaration_result.message_count
    return {name: count for name, count in found.items() if count}


async def emptied(url: str) -> str:
    """The broker with the topology and nothing in its queues."""
    await declare_topology(url)
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in QUEUES:
            for name in (queue.name, *(queue.retry_queue(d) for d in RETRY_DELAYS if queue.retries)):
                await (await channel.get_queue(name, ensure=False)).purge()
    return url
