"""What a region that hangs, one that throttles and one that refuses us cost all others, on real parts.

    PYTHONPATH=tests .venv/bin/python -m bench.bench_regions [--workers 100] [--rounds 6]

A RabbitMQ, each role in a process of its own, and the EC2 simulator over HTTP. In each round creates, stops and starts in a healthy region
are measured twice, once while all is well and once while 100 commands wait in each of three other regions: one does not
answer, one throttles every call, one answers AuthFailure. Which comes first alternates. Then the three regions come back, and every
command must be answered. About three minutes; exits with 1 if a ratio of medians is above 1.2, or a command is lost.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

from bench.medians import say, within_goal
from cml_contracts.client import WorkerClient
from cml_contracts.commands import CreateCMLWorker, StartCMLWorker, StopCMLWorker, WorkerCommand
from support.children import module
from support.ec2 import SimulatorAdmin
from support.rabbitmq import any_rabbitmq
from support.roles import Roles

HEALTHY = "us-east-1"
TROUBLES: dict[str, dict[str, Any]] = {
    "us-west-2": {"effect": "delay", "delay_seconds": 3600},
    "eu-west-1": {"code": "RequestLimitExceeded", "status": 503},
    "eu-central-1": {"code": "AuthFailure", "status": 401},
}
BEFORE = 3.0
"""Seconds of trouble before something is measured."""
PATIENCE = 240.0
"""Seconds in which every command is answered once the regions are back."""
CREATES, SWITCHED, AT_ONCE = 20, 16, 2

Seconds = dict[str, list[float]]


class Bench:
    """Commands to one system, and how long their answers took."""

    def __init__(self, client: WorkerClient, admin: SimulatorAdmin) -> None:
        self._client = client
        self._admin = admin
        self._images = {region: admin.add_image(region, "bench") for region in (HEALTHY, *TROUBLES)}
        self._healthy: list[UUID] = []
        self._others: list[UUID] = []
        self._names = 0

    async def prepare(self, workers: int) -> None:
        """Workers that run: some in the healthy region, so many in each of the others."""
        self._healthy = await self._created(HEALTHY, SWITCHED)
        for region in TROUBLES:
            self._others += await self._created(region, workers)
        await self._until("RUNNING", [*self._healthy, *self._others])

    async def measure(self, seconds: Seconds) -> None:
        """Creates, stops and starts in the healthy region."""
        await self._each(seconds["create"], [self._create(HEALTHY) for _ in range(CREATES)])
        await self._each(seconds["stop"], [StopCMLWorker(worker_id=each) for each in self._healthy])
        await self._until("STOPPED", self._healthy)
        await self._each(seconds["start"], [StartCMLWorker(worker_id=each) for each in self._healthy])
        await self._until("RUNNING", self._healthy)

    async def in_trouble(self, seconds: Seconds, *, stop: bool) -> tuple[int, float]:
        """The same while the other regions are in trouble; how many of their commands failed, and how long after the end of that
        the last was answered."""
        for region, trouble in TROUBLES.items():
            self._admin.fault("*", region=region, times=None, **trouble)
        command: type[WorkerCommand] = StopCMLWorker if stop else StartCMLWorker
        sent = [
            asyncio.create_task(self._client.send(command(worker_id=each), deadline=600))  # type: ignore[call-arg]
            for each in self._others
        ]
        await asyncio.sleep(BEFORE)
        await self.measure(seconds)
        early = sum(each.done() for each in sent)
        if early:
            raise AssertionError(f"{early} commands were answered though their region is in trouble")
        self._admin.clear()
        began = time.monotonic()
        await asyncio.wait(sent, timeout=PATIENCE)
        took = time.monotonic() - began
        lost = sum(not each.done() or each.result().outcome != "succeeded" for each in sent)
        for each in sent:
            each.cancel()
        await self._until("STOPPED" if stop else "RUNNING", self._others)
        return lost, took

    def _create(self, region: str) -> CreateCMLWorker:
        self._names += 1
        return CreateCMLWorker(
            name=f"bench-{self._names}",
            aws_region=region,
            ami_id=self._images[region],
            instance_type="t3.micro",
            created_by="bench",
        )

    async def _created(self, region: str, number: int) -> list[UUID]:
        found: list[UUID] = []

        async def lane(commands: list[CreateCMLWorker]) -> None:
            while commands:
                result = await self._client.send(commands.pop())
                assert result.worker_id is not None, result
                found.append(result.worker_id)

        commands = [self._create(region) for _ in range(number)]
        await asyncio.gather(*(lane(commands) for _ in range(8)))
        return found

    async def _each(self, seconds: list[float], commands: Sequence[WorkerCommand]) -> None:
        """Some at once, until all are answered."""
        left = list(commands)

        async def lane() -> None:
            while left:
                began = time.perf_counter()
                result = await self._client.send(left.pop())
                seconds.append(time.perf_counter() - began)
                assert result.outcome == "succeeded", result

        await asyncio.gather(*(lane() for _ in range(AT_ONCE)))

    async def _until(self, status: str, workers: Sequence[UUID]) -> None:
        for worker_id in workers:
            async with asyncio.timeout(PATIENCE):
                while True:
                    worker = await self._client.worker(worker_id)
                    if worker is not None and worker.status == status:
                        break
                    await asyncio.sleep(0.1)


async def run(folder: Path, *, workers: int, rounds: int) -> bool:
    """Whether all is as it should be."""
    with ExitStack() as stack:
        amqp_url, _ = stack.enter_context(any_rabbitmq(folder / "rabbitmq"))
        simulator = stack.enter_context(module("cml_embedded.ec2_simulator", "--transition-seconds", "0.2"))
        assert simulator.stdout is not None
        ec2 = simulator.stdout.readline().strip()
        roles = Roles(
            folder,
            RABBITMQ_URL=amqp_url,
            AWS_ENDPOINT_URL=ec2,
            CML_AUTHORIZE="false",
            CML_AUTHENTICATION_GRACE_SECONDS="3600",
            CML_LOG_LEVEL="error",
        )
        stack.callback(roles.kill)
        while not all(roles.ready(name) for name in roles.processes):
            await asyncio.sleep(0.2)
        async with WorkerClient(amqp_url, deadline=PATIENCE) as client:
            return await _measured(Bench(client, SimulatorAdmin(ec2)), workers, rounds)


async def _measured(bench: Bench, workers: int, rounds: int) -> bool:
    say(f"making {workers} workers in each of {len(TROUBLES)} regions")
    await bench.prepare(workers)
    await bench.measure(defaultdict(list))  # the first of everything is slower
    without: Seconds = defaultdict(list)
    with_trouble: Seconds = defaultdict(list)
    lost = 0
    for number in range(rounds):
        if number % 2:
            await bench.measure(without)
        missing, took = await bench.in_trouble(with_trouble, stop=number % 2 == 0)
        lost += missing
        say(f"round {number + 1}: all answered {took:.1f} s after the regions came back; lost: {missing}")
        if not number % 2:
            await bench.measure(without)
    return report(without, with_trouble) and lost == 0


def report(without: Seconds, with_trouble: Seconds) -> bool:
    """A line for each kind; whether the goal is met."""
    met = [within_goal(kind, quiet, with_trouble[kind]) for kind, quiet in without.items()]
    return all(met)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=100, help="in each of the other regions")
    parser.add_argument("--rounds", type=int, default=6)
    chosen = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "simulator", "AWS_SECRET_ACCESS_KEY": "simulator"}
    with tempfile.TemporaryDirectory(prefix="cml-bench-regions-") as folder:
        sys.exit(not asyncio.run(run(Path(folder), workers=chosen.workers, rounds=chosen.rounds)))


if __name__ == "__main__":
    main()
