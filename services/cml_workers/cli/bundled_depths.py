"""How many messages wait in our queues, and how many consume them: what RabbitMQ says to whoever may use the queue."""

import asyncio
from collections.abc import Iterable, Mapping

from cml_contracts.amqp import outage
from cml_contracts.broker import Nodes, connect
from cml_workers.bus.port import BusUnavailableError

SECONDS = 5.0
"""For what RabbitMQ says of one queue."""


async def depths(url: str, queues: Iterable[str]) -> Mapping[str, Mapping[str, int] | str]:
    """Of each queue ``messages`` that are ready and ``consumers``; or why it is not known. Raises BusUnavailableError."""
    found: dict[str, Mapping[str, int] | str] = {}
    try:
        async with await connect(Nodes(url, "RABBITMQ_URL")) as connection:
            for name in queues:
                try:
                    async with asyncio.timeout(SECONDS), connection.channel() as channel:
                        said = (await channel.declare_queue(name, passive=True)).declaration_result
                    found[name] = {
                        "messages": said.message_count or 0,
                        "consumers": said.consumer_count or 0,
                    }
                except BaseException as error:
                    if (cause := outage(error)) is None:
                        raise
                    found[name] = cause
    except BaseException as error:
        if (cause := outage(error)) is None:
            raise
        raise BusUnavailableError(f"RabbitMQ: {cause}") from error
    return found
