"""The workers that are measured over the wire, and each call that is: its message, and the outcome that it must have."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from bench.reference import ECHO, LEAST, QUORUM_ECHO
from bench.rpc import Rpc

REGION, IMAGE = "us-east-1", "ami-11111111"
CREATE, START, TAGS = "cml.worker.create.v1", "cml.worker.start.v1", "cml.worker.update_tags.v1"
STATUS, GET, LIST = "cml.worker.update_status.v1", "cml.worker.get.v1", "cml.worker.list.v1"


@dataclass(frozen=True)
class Size:
    """How much is measured; ``seconds``: for each measure in each round."""

    seconds: float = 2.0
    rounds: int = 5
    in_flight: int = 50
    burst: int = 200
    bursts: int = 3
    long: int = 2_000
    short: int = 20
    repetitions: int = 20


@dataclass
class Fleet:
    """The workers: one for each caller, and others for single measures."""

    rpc: Rpc
    workers: list[UUID] = field(default_factory=list)
    long: UUID = field(default_factory=uuid4)
    short: UUID = field(default_factory=uuid4)
    for_bursts: list[UUID] = field(default_factory=list)
    tagged: int = 0

    async def create(self, size: Size) -> None:
        """All of them, running."""
        self.for_bursts = [uuid4() for _ in range(size.bursts)]
        await self._running([self.long, self.short, *self.for_bursts])
        await self.renew(size)

    async def renew(self, size: Size) -> None:
        """Other workers: a measure must not be slower for what was measured before, which made streams longer."""
        self.workers = [uuid4() for _ in range(size.in_flight)]
        await self._running(self.workers)

    async def _running(self, everyone: Sequence[UUID]) -> None:
        for outcome in await asyncio.gather(*(self.send(CREATE, each, **NEW_WORKER) for each in everyone)):
            expect(outcome, "succeeded")
        async with asyncio.timeout(120):
            for each in everyone:
                while await self._status(each) != "RUNNING":
                    await asyncio.sleep(0.2)

    async def _status(self, worker_id: UUID) -> str | None:
        """As the read model has it, which may not know the worker yet."""
        found = json.loads(await self.query(GET, worker_id=str(worker_id)))["data"]
        return found["status"] if found else None

    async def send(self, kind: str, worker_id: UUID, **fields: Any) -> bytes:
        """A command, to its reply."""
        body = json.dumps({"worker_id": str(worker_id), **fields}).encode()
        return await self.rpc.call("cml.commands", kind, body)

    async def query(self, kind: str, **fields: Any) -> bytes:
        return await self.rpc.call("cml.queries", kind, json.dumps(fields).encode())

    async def update_tags(self, worker_id: UUID) -> bytes:
        """To a value that the tag never had."""
        self.tagged += 1
        return await self.send(TAGS, worker_id, tags={"course": f"ccna-{self.tagged}"})

    def calls(self) -> Mapping[str, tuple[Callable[[UUID], Awaitable[bytes]], str]]:
        """Each measure: its call for one worker, and the outcome that it must have."""
        rpc = self.rpc

        def reference(queue: str) -> Callable[[UUID], Awaitable[bytes]]:
            async def call(worker_id: UUID) -> bytes:
                body = {"worker_id": str(worker_id), "tags": {"course": "ccna"}}
                return await rpc.call("", queue, json.dumps(body).encode())

            return call

        return {
            "echo": (reference(ECHO), ""),
            "quorum echo": (reference(QUORUM_ECHO), ""),
            "least role": (reference(LEAST), "succeeded"),
            "no-op": (lambda worker: self.send(START, worker), "succeeded"),
            "rejected": (lambda worker: self.send(CREATE, worker, **NEW_WORKER), "rejected"),
            "tag update": (self.update_tags, "succeeded"),
            "status": (lambda worker: self.send(STATUS, worker), "succeeded"),
            "get": (lambda worker: self.query(GET, worker_id=str(worker)), "succeeded"),
            "list": (lambda _: self.query(LIST), "succeeded"),
        }


NEW_WORKER = {
    "name": "lab",
    "aws_region": REGION,
    "instance_type": "m5.large",
    "ami_id": IMAGE,
    "created_by": "ann",
}


def expect(reply: bytes, outcome: str) -> None:
    """Fail on a reply that is not what is measured."""
    if outcome and json.loads(reply)["outcome"] != outcome:
        raise RuntimeError(f"not {outcome}: {reply.decode()}")
