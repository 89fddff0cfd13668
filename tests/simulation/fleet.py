"""Every role of the system as processes on simulated parts, callers who send once, and what must be true after."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import Enum
from functools import partial

from cml_contracts.commands import CreateCMLWorker, TerminateCMLWorker
from cml_contracts.envelope import EventEnvelope
from cml_workers.bus.port import Outgoing
from cml_workers.bus.topology import (
    EC2_LOOKUPS,
    EC2_TRIGGERS,
    LIFECYCLE_COMMANDS,
    LIFECYCLE_REPORTS,
    PROJECTOR_QUERIES,
)
from cml_workers.domain.messages import LookupRequested, Reminder
from cml_workers.domain.policy import Access, Policy
from cml_workers.domain.profiles import DEFAULT, Profile, RegionProfile, default_profile
from cml_workers.ec2_adapter.executor import Executor
from cml_workers.eventstore.following import follow_from
from cml_workers.eventstore.names import WORKER_STREAMS, worker_of
from cml_workers.eventstore.port import StoredEvent
from cml_workers.eventstore.relay_stream import begin_if_new
from cml_workers.foundation.outages import Outages
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.projector.queries import Queries
from cml_workers.readmodels.runner import Runner
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.queries import pending, unsettled
from cml_workers.relay.checkpoint import RelayCheckpoint
from cml_workers.relay.relay import Relay
from cml_workers.reminders.reminders import Reminders
from simulation import nets
from simulation.asked import Call, noted
from simulation.bus import Broker, BusOfProcess
from simulation.callers import TWO_USERS, Callers, name_of
from simulation.coverage import REQUESTED, SETTLED, Coverage, kind_of
from simulation.delivery import HANDLED
from simulation.ec2 import Cloud, Ec2OfProcess
from simulation.scripts import IMAGE, IMAGE_NAME, REGION
from simulation.store import Log, StoreOfProcess
from simulation.tables import DatabaseOfProcess, Tables
from simulation.world import Process, World
from support.invariants import violations
from support.observed import Observed, SeenInstance

GRACE = timedelta(minutes=2)
PREFETCH = 10
SOURCE = "/simulation"
SPREAD = RegionProfile(instance_types=("m5.large", "m5.xlarge"))
"""Two places to launch in, one after the other."""
POLICY = Policy(
    deployment="simulation",
    visibility_grace=GRACE,
    profiles={DEFAULT: default_profile(), "spread": Profile("spread", {REGION: SPREAD})},
)


class Reminded(Enum):
    """Of what there are reminders in a run."""

    NOTHING = "nothing"
    WATCHED = "workers of which nothing is pending, and whose instance is unsettled"
    ALL = "these and pending operations"


class OnlyWatched(Reminders):
    """Of what nobody but an adapter's memory knows to watch: no operation, whose message comes back."""

    async def round(self) -> int:
        now = self._now()
        waiting = {each.view.worker_id for each in await pending(self._database, now + timedelta(days=1))}
        watched = [each for each in await unsettled(self._database) if each not in waiting]
        for worker_id in watched:
            await self._send(Reminder(worker_id=worker_id), f"{worker_id}/{now.isoformat()}")
        return len(watched)


class Fleet:
    """The roles: two lifecycles, relay, projector, and two adapters of which the broker lets one work."""

    def __init__(self, world: World, *, reminders: Callable[[], Reminded], lifecycles: int = 2) -> None:
        self.world = world
        self.adapter_lost = False
        """An adapter has died, or has lost its connection to the broker, and with it what it had in memory."""
        self.coverage = Coverage()
        self.log = Log(world)
        self.broker = Broker(world)
        self.cloud = Cloud(world=world, images={(REGION, IMAGE_NAME): IMAGE})
        self.tables = Tables()
        self.callers = Callers(world, self.broker, self.log, self.coverage)
        self.published: dict[str, None] = {}
        """Ids of the events that reached the exchange."""
        self.asked: dict[str, Call] = {}
        """What EC2 was asked, once in each shape."""
        self._reminders = reminders
        self._envelopes: list[EventEnvelope] = []
        self.broker.on_event = lambda message: self.published.setdefault(message.message_id)
        self.broker.on_lookup = self._on_lookup
        self.log.on_append = self._on_append
        self.cloud.on_call = lambda phase, command_id, operation: self.coverage.called(
            phase, command_id, operation, world.loop.time()
        )
        self.cloud.loses_answer = self.coverage.loses_answer
        self.cloud.has_no_capacity = self.coverage.has_no_capacity
        world.on_fault = lambda fault, what: self.coverage.fault(kind_of(fault, what), world.loop.time())
        world.pairs = lambda: list(self.coverage.pairs(world.loop.time()))
        self._roles: dict[str, Callable[[Process], None]] = {
            **{f"lifecycle-{number}": self._lifecycle for number in range(1, lifecycles + 1)},
            "relay": self._relay,
            "adapter-1": self._adapter,
            "adapter-2": self._adapter,
            "projector": self._projector,
        }
        world.on_loss.append(self._restart)

    # -- processes ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start every role."""
        for name in self._roles:
            self._begin(name)

    def _begin(self, name: str) -> None:
        HANDLED.set(None)  # whoever died had a message in hand; what starts now has none
        self._roles[name](Process(self.world, name))

    def _restart(self, process: Process) -> None:
        self.adapter_lost |= process.name.startswith("adapter")
        if not process.alive:
            self.world.loop.call_later(0.5 + self.world.random.random() * 5, self._begin, process.name)

    def _lifecycle(self, process: Process) -> None:
        store = StoreOfProcess(process, self.log)
        handler = Lifecycle(
            store=store,
            publish=BusOfProcess(process, self.broker),
            policy=POLICY,
            access=TWO_USERS if self.callers.are_two else Access(),
            now=self.world.now,
            new_id=self.world.new_id,
        )

        async def serve() -> None:
            while True:
                try:
                    await begin_if_new(store, self.world.new_id)
                    break
                except ConnectionError:
                    await process.sleep(1.0)  # as it ends, and is started again
            for queue, handle in (
                (LIFECYCLE_COMMANDS, handler.on_command),
                (LIFECYCLE_REPORTS, handler.on_report),
            ):
                self.broker.consume(process, queue, handle, prefetch=PREFETCH, outages=store.outages)

        process.start(serve())

    def _adapter(self, process: Process) -> None:
        store = StoreOfProcess(process, self.log)
        executor = Executor(
            store=store,
            ec2=noted(Ec2OfProcess(process, self.cloud), self.asked),
            publish=BusOfProcess(process, self.broker),
            now=self.world.now,
            sleep=process.sleep,
            random=self.world.random.random,
            visibility_grace=GRACE,
            places=PREFETCH,
            outages=store.outages,
        )
        process.on_loss.append(executor.disconnected)
        process.on_return.append(executor.connected)
        process.start(executor.announce())
        self.broker.consume(
            process, EC2_TRIGGERS, executor.on_trigger, prefetch=PREFETCH, outages=store.outages
        )
        self.broker.consume(process, EC2_LOOKUPS, executor.on_lookup, prefetch=PREFETCH)

    def _relay(self, process: Process) -> None:
        checkpoint = RelayCheckpoint(
            StoreOfProcess(process, self.log), new_id=self.world.new_id, sleep=process.sleep
        )

        async def pause(seconds: float) -> None:
            self.world.nets[nets.PUBLISHED_AGAIN, "relay"] += 1
            await process.sleep(seconds)

        bus = BusOfProcess(process, self.broker)
        relay = Relay(
            store=StoreOfProcess(process, self.log),
            waiting=checkpoint.waiting,
            publish=bus,
            routed=bus.routed,
            load=checkpoint.load,
            save=checkpoint.save,
            end=StoreOfProcess(process, self.log).end,
            source=SOURCE,
            now=self.world.now,
            sleep=pause,
        )
        process.start(relay.keep_saving(process.sleep))
        self._follow(process, relay.begin, relay.handle)
        self._follow(process, relay.triggers.newest, relay.triggers.handle_newest, whole=False)

    def _projector(self, process: Process) -> None:
        store, database = StoreOfProcess(process, self.log), DatabaseOfProcess(process, self.tables)
        publish = BusOfProcess(process, self.broker)
        runner = Runner(
            model=WORKERS_VIEW,
            store=store,
            database=database,
            outages=Outages(store.dependency, database.dependency),
            backoff=self._backoff(process),
            sleep=process.sleep,
        )
        queries = Queries(database=database, unavailable=lambda _: runner.problem(), access=Access())
        reminders = {
            reminded: of(
                database=database,
                publish=publish,
                now=self.world.now,
                after=timedelta(seconds=30),
                deadline=timedelta(minutes=15),
            )
            for reminded, of in ((Reminded.ALL, Reminders), (Reminded.WATCHED, OnlyWatched))
        }

        async def serve() -> None:
            while runner.problem() is not None:
                await process.sleep(0.1)
            self.broker.consume(
                process,
                PROJECTOR_QUERIES,
                partial(queries.on_query, publish=publish),
                prefetch=PREFETCH,
                outages=database.outages,
            )

        async def remind() -> None:
            while True:
                try:
                    reminded = self._reminders()
                    if reminded is not Reminded.NOTHING:
                        await reminders[reminded].round()
                except ConnectionError:
                    self.world.trace(process.name, "reminds later")
                await process.sleep(30)

        process.start(runner.run())
        process.start(serve())
        process.start(remind())

    def _follow(self, process: Process, saved: Callable, handle: Callable, *, whole: bool = True) -> None:  # type: ignore[type-arg]
        store = StoreOfProcess(process, self.log)
        process.start(
            follow_from(
                store,
                saved,
                handle,
                prefix=WORKER_STREAMS,
                whole=whole,
                outages=store.outages,
                backoff=self._backoff(process),
                sleep=process.sleep,
            )
        )

    def _backoff(self, process: Process) -> Callable[[int], float]:
        def backoff(attempt: int) -> float:
            self.world.nets[nets.RECONNECTED, f"{process.name} to the store or its tables"] += 1
            return float(min(0.2 * 2**attempt, 15.0))

        return backoff

    # -- phases -------------------------------------------------------------------------------------------

    def _on_lookup(self, message: Outgoing) -> None:
        if message.message_id in self.callers.rubbish:
            return
        request = LookupRequested.model_validate_json(message.body)
        name = name_of(request.origin.command_id, request.origin.user)
        self.coverage.reached(name, REQUESTED, self.world.loop.time())

    def _on_append(self, stored: StoredEvent) -> None:
        now = self.world.loop.time()
        if stored.stream.startswith(WORKER_STREAMS):
            for entry in self.log.ledgers[worker_of(stored.stream)].entries.values():
                if entry.requested.event_id == stored.event_id and entry.operation:
                    self.coverage.reached(entry.command_id, REQUESTED, now)
                if entry.result is not None:
                    self.coverage.reached(entry.command_id, SETTLED, now)

    # -- what is true -------------------------------------------------------------------------------------

    def observed(self) -> Observed:
        """Everything the promises are about."""
        callers, subscribed = self.callers, self.broker.subscribed
        self._envelopes += [
            EventEnvelope.from_cloudevent(json.loads(each.body))
            for each in subscribed[len(self._envelopes) :]
        ]
        return Observed(
            events=self.events(),
            instances=[
                SeenInstance(
                    each.instance_id, each.state, self.cloud.tokens_of.get(each.instance_id), each.tags
                )
                for each in self.cloud.instances.values()
            ],
            replies=callers.replies,
            confirmed=frozenset(each.command_id for each in callers.awaited.values()),
            awaited={address: each.command_id for address, each in callers.awaited.items()},
            answered={address for address, each in callers.awaited.items() if each.answered_at is not None},
            rows=self.tables.workers,
            operations=self.tables.operations,
            published=self._envelopes,
            status_updates=callers.status_updates.keys(),
        )

    def _never_ran(self) -> Iterator[str]:
        """Creates that are recorded as done, though EC2 ended their instance before it ran, and nobody asked for its end."""
        for worker_id, ledger in self.log.ledgers.items():
            asked = any(entry.command_type == TerminateCMLWorker.TYPE for entry in ledger.entries.values())
            for entry in () if asked else ledger.entries.values():
                data = (
                    entry.result.data if entry.result and entry.command_type == CreateCMLWorker.TYPE else None
                )
                if data and data["aws_instance_id"] in self.cloud.never_ran:
                    yield f"5: {entry.command_id} of worker {worker_id} succeeded, and its instance never ran"

    def events(self) -> list[StoredEvent]:
        """Those of all workers, in the store's order."""
        return [each for each in self.log.events if each.stream.startswith(WORKER_STREAMS)]

    def broken(self) -> list[str]:
        """Every promise that is broken now; what is still under way counts as broken, too."""
        found = [*self.world.broken, *violations(self.observed()), *self.callers.late()]
        if self.published.keys() != {str(each.event_id) for each in self.events()}:
            found.append("4: what was published is not what is stored")
        found += [
            f"3: {command_id} was taken, and never decided"
            for command_id in self.callers.confirmed
            if self.callers.recorded_at(command_id) is None and command_id not in self.callers.status_updates
        ]
        found += self._never_ran()
        reasons = {message.message_id: reason for _, message, reason in self.broker.dead}
        found += [
            f"9: {name} is not in the dead letters with its reason"
            for name in sorted(self.callers.rubbish)
            if not reasons.get(name)
        ]
        if not self.broker.quiet:
            found.append("9: messages are still in the queues")
        return found
