"""One day: everybody at once, a role killed twice, the quiet, the judgement."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]  # stubs are installed for the asynchronous one only
from rich.table import Table

from cml_contracts.envelope import EventEnvelope
from cml_contracts.instance import CONSENT_TAG
from cml_embedded.ec2_simulator import DEMO_IMAGES
from cml_workers.bus.users import settings_of
from cml_workers.eventstore.port import StreamNotFoundError
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.lifecycle.denials import DENIALS_STREAM
from support.ec2 import SimulatorAdmin
from support.invariants import violations
from support.observed import Observed, simulated_instances, worker_events
from support.roles import Roles
from support.users import broker_with_users, roles_with_users
from trust.day.honest import REGION, Importer, Team, lives
from trust.day.hostile import Hostile
from trust.day.ledger import Expected, Ledger, Trail, judged
from trust.day.operator import Operator
from trust.day.people import USERS, Town, settings

PATIENCE = 120.0
"""Seconds in which everything is to be seen once nobody sends any more."""
KILLED = ("lifecycle", "projector", "ec2-adapter", "relay")
HANDLING = ("lifecycle", "projector")
"""Which of them handle what is denied: killed, they may handle it twice."""


@dataclass
class Outcome:
    """``counts``: of each thing that was done; ``attacks``: those that were to be tried."""

    seed: int
    killed: str
    seconds: float
    counts: Counter[str]
    attacks: list[str]
    ledger: Ledger
    trail: Trail
    violations: list[str]

    def table(self) -> Table:
        table = Table(title=f"seed {self.seed}, {self.seconds:.0f} s, {self.killed} killed twice")
        table.add_column("what")
        table.add_column("times", justify="right")
        for name, count in sorted(self.counts.items()):
            table.add_row(name, str(count))
        table.add_section()
        for expected in Expected:
            table.add_row(expected, str(len(self.ledger.of(expected))))
        events = sum(len(history) for history in self.trail.events.values())
        table.add_row("events", str(events))
        table.add_row("dead letters", str(len(self.trail.letters)))
        table.add_row("not true", str(len(self.violations)))
        return table


class Day:
    def __init__(self, town: Town, roles: Roles, admin: SimulatorAdmin, *, seed: int, seconds: float) -> None:
        self._town = town
        self._roles = roles
        self._admin = admin
        self._seed = seed
        self._seconds = seconds
        self._killed = KILLED[seed % len(KILLED)]
        self._counts: Counter[str] = Counter()
        self._operator = Operator(town)
        self._foreign: dict[str, Mapping[str, str] | None] = {}

    async def run(self) -> Outcome:
        """Everything; bounded in time."""
        began = time.monotonic()
        consented = await asyncio.to_thread(self._launch, 6, {CONSENT_TAG: "default"})
        others = await asyncio.to_thread(self._launch, 1, {CONSENT_TAG: "elsewhere"})
        others += await asyncio.to_thread(self._launch, 1, {"secret": "s3cret"})
        for each in await asyncio.to_thread(self._admin.instances):
            instance_id = each["instance_id"]
            self._foreign[instance_id] = each["tags"] if instance_id in others else None
        people, hostile = self._town.people, Hostile(self._town)
        end = time.monotonic() + self._seconds
        async with asyncio.TaskGroup() as group:
            for name in ("ann", "ben", "ops", "portal", "mallory"):
                for life in lives(people[name]):
                    group.create_task(self._lane(life.once, end, f"{name}: "))
            group.create_task(self._lane(Team(people["cleo"], people["ben"]).once, end, "cleo: "))
            group.create_task(self._lane(Importer(people["scout"], consented, others).once, end, "scout: "))
            group.create_task(self._lane(self._operator.once, end, "desk: "))
            for attacks in (hostile.senders, hostile.delegate, hostile.passwords):
                group.create_task(self._lane(self._each_in_turn(attacks), end, "hostile: "))
            group.create_task(self._kill(end))
        trail, broken = await self._judge()
        return Outcome(
            self._seed,
            self._killed,
            time.monotonic() - began,
            self._counts,
            [*hostile.senders, *hostile.delegate, *hostile.passwords],
            self._town.ledger,
            trail,
            broken,
        )

    async def _lane(self, once: Callable[[], Awaitable[str]], end: float, who: str) -> None:
        chance = random.Random(self._town.chance.random())
        while time.monotonic() < end:
            self._counts[who + await once()] += 1
            await asyncio.sleep(chance.uniform(0, 0.4))

    def _each_in_turn(self, attacks: Mapping[str, Callable[[], Awaitable[object]]]) -> Callable[[], Any]:
        """Each is tried before any is tried again."""
        left: list[str] = []

        async def once() -> str:
            if not left:
                left.extend(self._town.chance.sample([*attacks], len(attacks)))
            name = left.pop()
            await attacks[name]()
            return name

        return once

    async def _kill(self, end: float) -> None:
        """kill -9, and another process; twice."""
        for share in (0.6, 0.2):
            await asyncio.sleep(max(0, end - time.monotonic() - self._seconds * share))
            async with self._operator.busy:
                if self._killed in HANDLING:
                    self._town.ledger.disturb()
                await asyncio.to_thread(self._roles.kill_and_start, self._killed)
            self._counts[f"{self._killed} killed"] += 1

    def _launch(self, count: int, tags: Mapping[str, str]) -> list[str]:
        """Instances of somebody else in the account."""
        client = boto3.client(
            "ec2",
            region_name=REGION,
            endpoint_url=self._admin.url,
            aws_access_key_id="somebody",
            aws_secret_access_key="somebody",
        )
        listed = [{"Key": key, "Value": value} for key, value in tags.items()]
        launched = [
            client.run_instances(
                ImageId=DEMO_IMAGES[REGION],
                InstanceType="m5.large",
                MinCount=1,
                MaxCount=1,
                TagSpecifications=[{"ResourceType": "instance", "Tags": listed}],
            )["Instances"][0]["InstanceId"]
            for _ in range(count)
        ]
        client.close()
        return launched

    async def _judge(self) -> tuple[Trail, list[str]]:
        """What is not true when everything had its time, or nothing as soon as nothing is."""
        end = time.monotonic() + PATIENCE
        store = SqliteEventStore(Path(self._roles.environment["CML_DATA_DIR"]) / "events.sqlite3")
        while True:
            events = await worker_events(store)
            instances = await asyncio.to_thread(self._admin.instances)
            seen = Observed(events, simulated_instances(instances))
            try:
                denials = [json.loads(each.data) for each in await store.read(DENIALS_STREAM)]
            except StreamNotFoundError:
                denials = []
            trail = Trail(
                events=seen.streams(),
                denials=denials,
                letters=await self._operator.letters(),
                instances=instances,
                published=[
                    EventEnvelope.from_cloudevent(each) for each in self._town.people["watcher"].amqp.events
                ],
                foreign=self._foreign,
            )
            broken = judged(self._town.ledger, trail) + violations(seen)
            if not broken or time.monotonic() > end:
                break
            await asyncio.sleep(1)
        await store.close()
        for person in self._town.people.values():
            broken += [f"{person.name} got {each}" for each in person.amqp.wrong()]
        return trail, broken + self._roles.tracebacks()


async def live(folder: Path, *, seed: int, seconds: float) -> Outcome:
    """One day on a RabbitMQ and an account of its own."""
    async with AsyncExitStack() as stack:
        rabbitmq = stack.enter_context(broker_with_users(folder / "rabbitmq", users=USERS))
        roles = stack.enter_context(
            roles_with_users(
                rabbitmq, folder, **settings_of(USERS), **settings(), CML_VISIBILITY_GRACE_SECONDS="5"
            )
        )
        async with asyncio.timeout(PATIENCE):
            while not all(roles.ready(name) for name in roles.processes):
                await asyncio.sleep(0.2)
        town = await stack.enter_async_context(Town(rabbitmq, Ledger(), seed))
        admin = SimulatorAdmin(roles.environment["AWS_ENDPOINT_URL"])
        return await Day(town, roles, admin, seed=seed, seconds=seconds).run()
