"""What the service is measured beside, in a process of its own: ``-m bench.reference``.

*echo*: a bare FastStream subscriber that replies with what it got. *quorum echo*: the same on a quorum queue, which is
what commands wait in. *least role*: a subscriber that validates a command, appends one event to the same kind of store
at the version it knows, and replies.
"""

import asyncio
import json
import os
from contextlib import suppress
from typing import Annotated, Any
from uuid import UUID, uuid4

import uvloop
from faststream.rabbit import QueueType, RabbitBroker, RabbitQueue
from pydantic import BaseModel, ConfigDict, Field

from bench.adapter import NEW, Store

ECHO, QUORUM_ECHO, LEAST = "bench.echo", "bench.echo.quorum", "bench.least"


class Command(BaseModel):
    model_config = ConfigDict(extra="forbid")
    worker_id: UUID
    tags: Annotated[dict[str, str], Field(min_length=1, max_length=50)]
    reason: Annotated[str, Field(min_length=1, max_length=500)] | None = None


def reference(broker: RabbitBroker, store: Store) -> None:
    """Subscribe the three."""
    versions: dict[UUID, int] = {}
    run = uuid4()

    @broker.subscriber(RabbitQueue(ECHO))
    async def echo(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @broker.subscriber(RabbitQueue(QUORUM_ECHO, queue_type=QueueType.QUORUM, durable=True))
    async def quorum_echo(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @broker.subscriber(RabbitQueue(LEAST))
    async def least(command: Command) -> dict[str, Any]:
        known = versions.get(command.worker_id, NEW)
        data = json.dumps({"operation_id": str(uuid4()), "tags": command.tags}).encode()
        metadata = json.dumps({"correlation_id": str(uuid4()), "reason": command.reason}).encode()
        event = uuid4(), "bench.tags_updated.v1", data, metadata
        name = f"bench-{run}-{command.worker_id}"
        versions[command.worker_id] = await store.append(name, [event], known)
        return {"outcome": "succeeded", "worker_id": str(command.worker_id), "data": command.tags}


async def main() -> None:
    store = Store(os.environ["BENCH_STORE"])
    broker = RabbitBroker(os.environ["RABBITMQ_URL"], logger=None)
    reference(broker, store)
    async with broker:
        await broker.start()
        print("reference is ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
