"""Every role of the system as processes on simulated parts, callers who do not give up, and what must be true after."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from random import Random
from uuid import UUID

from cml_contracts.commands import (
    CreateCMLWorker,
    ImportCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.envelope import WORKER_STREAMS
from cml_contracts.instance import Ec2Instance, InstanceState
from cml_contracts.reports import LookupRequested, OperationSucceeded
from cml_contracts.results import OperationResult, ProblemCode
from cml_contracts.topology import (
    COMMANDS,
    EC2_LOOKUPS,
    EC2_WAKES,
    INTERNAL,
    LIFECYCLE_COMMANDS,
    LIFECYCLE_REPORTS,
)
from cml_workers.bus.port import BusUnavailableError, Outgoing
from cml_workers.command_stream import ANSWERED, stream_of_command
from cml_workers.ec2_adapter.executor import Executor
from cml_workers.eventstore.following import follow_from
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.policy import Access, Policy
from cml_workers.projector.projector import Projector
from cml_workers.projector.reminders import Reminders
from cml_workers.relay.relay import Relay
from simulation.bus import Broker, BusOfProcess
from simulation.ec2 import Cloud, Ec2OfProcess
from simulation.loop import VirtualLoop
from simulation.store import Log, StoreOfProcess
from simulation.tables import ReadModelOfProcess, Tables
from simulation.world import CALM, MOST_STEPS, Chances, Process, World
from support.invariants import Observed, SeenInstance, violations

REGION = "us-east-1"
IMAGE = "ami-0c31000000000001e"
IMAGE_NAME = "cml"
FOUND = "i-0f00000000000000f"
"""An instance that somebody launched without us; it may be imported."""
GRACE = timedelta(minutes=2)
PATIENCE = 90.0
"""Seconds after which a caller sends its command again."""
TROUBLE = 1200.0
"""Virtual seconds during which things go wrong."""
LONGEST = 3600.0
"""Virtual seconds of calm after which what has no answer is lost."""
PREFETCH = 10
POLICY = Policy(deployment="simulation", visibility_grace=GRACE)
NOT_RECORDED = (ProblemCode.VALIDATION_FAILED, ProblemCode.DUPLICATE_COMMAND, ProblemCode.UNAUTHORIZED)

Script = Sequence[tuple[float, WorkerCommand]]
"""When to send what."""


@dataclass
class Outcome:
    """What a run came to."""

    seed: int
    violations: list[str]
    steps: int
    crashes: int
    seconds: float
    commands: int
    answered: int
    launched: int
    digest: str
    seen: dict[tuple[str, str], int]
    taken: set[str]
    last: list[str] = field(default_factory=list)
    """The last steps, where something is broken."""


class Fleet:
    """The roles: two lifecycles, relay, projector, and two adapters of which the broker lets one work."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.log = Log(world)
        self.broker = Broker(world)
        self.cloud = Cloud(world=world, images={(REGION, IMAGE_NAME): IMAGE})
        self.tables = Tables()
        self.replies: dict[str, list[OperationResult]] = {}
        self.confirmed: set[str] = set()
        self.published: dict[str, None] = {}
        """Ids of the events that reached the exchange, in that order."""
        self._rubbish: set[str] = set()
        self._posted: dict[str, WorkerCommand] = {}
        self._awaited: dict[str, asyncio.Future[None]] = {}
        self._client = Process(world, "client", mortal=False)
        self._addresses = 0
        self.broker.on_reply = self._on_reply
        self.broker.on_event = lambda message: self.published.setdefault(message.message_id)
        self._roles: dict[str, Callable[[Process], None]] = {
            "lifecycle-1": self._lifecycle,
            "lifecycle-2": self._lifecycle,
            "relay": self._relay,
            "adapter-1": self._adapter,
            "adapter-2": self._adapter,
            "projector": self._projector,
        }
        world.on_death.append(self._restart)
        for name in self._roles:
            self._begin(name)

    # -- processes ----------------------------------------------------------------------------------------

    def _begin(self, name: str) -> None:
        self._roles[name](Process(self.world, name))

    def _restart(self, process: Process) -> None:
        if not process.alive:
            self.world.loop.call_later(0.5 + self.world.random.random() * 5, self._begin, process.name)

    def _lifecycle(self, process: Process) -> None:
        handler = Lifecycle(
            store=StoreOfProcess(process, self.log),
            publish=BusOfProcess(process, self.broker),
            policy=POLICY,
            access=Access(),
            now=self.world.now,
            new_id=self.world.new_id,
        )
        self.broker.consume(process, LIFECYCLE_COMMANDS, handler.on_command, prefetch=PREFETCH)
        self.broker.consume(process, LIFECYCLE_REPORTS, handler.on_report, prefetch=PREFETCH)

    def _adapter(self, process: Process) -> None:
        executor = Executor(
            store=StoreOfProcess(process, self.log),
            ec2=Ec2OfProcess(process, self.cloud),
            publish=BusOfProcess(process, self.broker),
            now=self.world.now,
            sleep=process.sleep,
            visibility_grace=GRACE,
        )
        process.on_return += [executor.disconnected, executor.connected]
        process.start(executor.call())
        self.broker.consume(process, EC2_WAKES, executor.on_wake, prefetch=PREFETCH)
        self.broker.consume(process, EC2_LOOKUPS, executor.on_lookup, prefetch=PREFETCH)

    def _relay(self, process: Process) -> None:
        tables = ReadModelOfProcess(process, self.tables)
        relay = Relay(
            publish=BusOfProcess(process, self.broker),
            save=partial(tables.save, "relay"),
            source="/simulation",
            clock=self.world.loop.time,
            sleep=process.sleep,
        )
        self._follow(process, partial(tables.load, "relay"), relay.handle)

    def _projector(self, process: Process) -> None:
        read_model = ReadModelOfProcess(process, self.tables)
        projector = Projector(store=StoreOfProcess(process, self.log), read_model=read_model)
        self._follow(process, projector.resumed, projector.handle)
        reminders = Reminders(
            read_model=read_model,
            publish=BusOfProcess(process, self.broker),
            now=self.world.now,
            after=timedelta(seconds=30),
            deadline=timedelta(minutes=15),
        )

        async def remind() -> None:
            while True:
                try:
                    await reminders.round()
                except ConnectionError:
                    self.world.trace(process.name, "reminds later")
                await process.sleep(30)

        process.start(remind())

    def _follow(self, process: Process, saved: Callable, handle: Callable) -> None:  # type: ignore[type-arg]
        process.start(
            follow_from(
                StoreOfProcess(process, self.log),
                saved,
                handle,
                prefix=WORKER_STREAMS,
                backoff=lambda attempt: min(0.2 * 2**attempt, 15.0),
                sleep=process.sleep,
            )
        )

    # -- callers ------------------------------------------------------------------------------------------

    async def post(self, command_id: str, command: WorkerCommand) -> None:
        """Send a command until the broker has it, and ask no more."""
        publish = BusOfProcess(self._client, self.broker)
        while command_id not in self.confirmed:
            try:
                await publish(_message(command_id, command))
            except BusUnavailableError:
                await asyncio.sleep(1)
            else:
                self.confirmed.add(command_id)
                self._posted[command_id] = command

    async def rubbish(self, name: str) -> None:
        """Send what no handler can read, to one of the queues."""
        exchange, kind = self.world.random.choice(
            (
                (COMMANDS, StartCMLWorker.TYPE),
                (INTERNAL, OperationSucceeded.TYPE),
                (INTERNAL, LookupRequested.TYPE),
            )
        )
        message = Outgoing(exchange=exchange, routing_key=kind, body=b"{", type=kind, message_id=name)
        with contextlib.suppress(BusUnavailableError):
            await BusOfProcess(self._client, self.broker)(message)
            self._rubbish.add(name)

    async def call(self, command_id: str, command: WorkerCommand) -> None:
        """Send a command and send it again until there is an answer."""
        self._addresses += 1
        address = f"client.{self._addresses}"
        message = _message(command_id, command, reply_to=address)
        publish = BusOfProcess(self._client, self.broker)
        answered = self._awaited[address] = self.world.loop.create_future()
        while not answered.done():
            try:
                await publish(message)
            except BusUnavailableError:
                await asyncio.sleep(1)
            else:
                self.confirmed.add(command_id)
                await asyncio.wait([answered], timeout=PATIENCE)

    def _on_reply(self, message: Outgoing) -> None:
        result = OperationResult.model_validate_json(message.body)
        assert result.command_id is not None
        self.replies.setdefault(result.command_id, []).append(result)
        self.world.trace("client", f"{result.command_id} {result.outcome}")
        waiting = self._awaited.get(message.routing_key)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        if result.problem and result.problem.code in NOT_RECORDED:
            return
        if not self._recorded(result.command_id, result.worker_id):
            self.world.broken.append(f"6: {result.command_id} is answered, but not recorded: {result}")

    def _recorded(self, command_id: str, worker_id: UUID | None) -> bool:
        worker = self.log.workers.get(worker_id) if worker_id else None
        operation = worker.operations.get(command_id) if worker else None
        if operation is not None:
            return operation.result is not None
        stream = self.log.streams.get(stream_of_command(command_id), [])
        return any(each.type == ANSWERED for each in stream)

    # -- what is true -------------------------------------------------------------------------------------

    def observed(self) -> Observed:
        """Everything the promises are about."""
        return Observed(
            events=[each for each in self.log.events if each.stream.startswith(WORKER_STREAMS)],
            instances=[
                SeenInstance(
                    each.instance_id, each.state, self.cloud.tokens_of.get(each.instance_id), each.tags
                )
                for each in self.cloud.instances.values()
            ],
            replies=self.replies,
            confirmed=frozenset(self.confirmed - self._posted.keys()),
            rows=list(self.tables.workers.values()),
            operations=list(self.tables.operations.values()),
        )

    def broken(self) -> list[str]:
        """Every promise that is broken now; what is still under way counts as broken, too."""
        found = [*self.world.broken, *violations(self.observed())]
        stored = [str(e.event_id) for e in self.log.events if e.stream.startswith(WORKER_STREAMS)]
        if list(self.published) != stored:
            found.append("4: what was published first and in order is not what is stored")
        found += [
            f"3: {command_id} was taken, and never decided"
            for command_id, command in self._posted.items()
            if not self._recorded(command_id, command.worker(command_id))
        ]
        kept = {message.message_id for _, message, _ in self.broker.dead}
        found += [f"9: {name} is not in the dead letters" for name in sorted(self._rubbish - kept)]
        if not self.broker.quiet:
            found.append("9: messages are still in the queues")
        return found


def _message(command_id: str, command: WorkerCommand, reply_to: str | None = None) -> Outgoing:
    return Outgoing(
        exchange=COMMANDS,
        routing_key=command.TYPE,
        body=command.model_dump_json(exclude_none=True).encode(),
        type=command.TYPE,
        message_id=command_id,
        reply_to=reply_to,
    )


def random_script(random: Random, world: World) -> Script:
    """Some workers and what may be wished of them, for about a quarter of an hour.

    Of three kinds: a bit of everything; many launches at once; one worker that everybody wants something of.
    """
    kind = random.choice(("mixed", "launches", "one worker"))
    workers = [
        world.new_id() for _ in range({"mixed": random.randint(1, 3), "launches": 6, "one worker": 1}[kind])
    ]
    script: list[tuple[float, WorkerCommand]] = [
        (random.random() * 60, _create(random, worker_id, named=kind == "mixed")) for worker_id in workers
    ]
    if kind == "mixed" and random.random() < 0.4:
        adopted = ImportCMLWorker(aws_region=REGION, instance_id=FOUND, created_by="ann")
        script.append((random.random() * 300, adopted))
        workers.append(adopted.worker(""))
    wishes = {"mixed": random.randint(3, 14), "launches": 3, "one worker": 14}[kind]
    burst = random.choice((900.0, 300.0, 120.0))
    return script + [
        (30 + random.random() * burst, _wish(random, random.choice(workers))) for _ in range(wishes)
    ]


def _create(random: Random, worker_id: UUID, *, named: bool) -> CreateCMLWorker:
    """``named``: by an image that EC2 is asked for first, or that there is none of."""
    images = ((IMAGE, None), (None, IMAGE_NAME), (None, "none")) if named else ((IMAGE, None),)
    ami_id, ami_name = random.choice(images)
    return CreateCMLWorker(
        name="lab",
        aws_region=REGION,
        instance_type="m5.large",
        created_by="ann",
        worker_id=worker_id,
        ami_id=ami_id,
        ami_name=ami_name,
    )


def _wish(random: Random, worker_id: UUID) -> WorkerCommand:
    match random.choices(("start", "stop", "tags", "status", "terminate"), (25, 30, 20, 12, 10))[0]:
        case "start":
            return StartCMLWorker(worker_id=worker_id)
        case "stop":
            return StopCMLWorker(worker_id=worker_id)
        case "tags":
            return UpdateCMLWorkerTags(
                worker_id=worker_id, tags={random.choice("ab"): str(random.randrange(3))}
            )
        case "status":
            return UpdateCMLWorkerStatus(worker_id=worker_id)
        case _:
            return TerminateCMLWorker(worker_id=worker_id)


def random_chances(random: Random) -> Chances:
    """Runs differ in what goes wrong: where everything fails at once, rare sequences never come about."""
    return Chances(
        crash=random.choice((0.0, 0.002, 0.01, 0.03)),
        pause=random.choice((0.0, 0.0005, 0.003)),
        fault=random.choice((0.0, 0.01, 0.04, 0.1)),
    )


async def _run(fleet: Fleet, script: Script | None, meddling: int) -> None:
    world = fleet.world
    fleet.cloud.put(
        Ec2Instance(
            instance_id=FOUND,
            aws_region=REGION,
            state=InstanceState.RUNNING,
            instance_type="m5.large",
            ami_id=IMAGE,
            tags={"Name": "found"},
        )
    )
    commands = random_script(world.random, world) if script is None else script

    async def caller(number: int, at: float, command: WorkerCommand) -> None:
        await asyncio.sleep(at)
        command_id = f"command-{number}"
        kind = (
            world.random.choices(("call", "post", "call twice"), (70, 15, 15))[0]
            if script is None
            else "call"
        )
        if kind == "post":
            await fleet.post(command_id, command)
        else:
            copies = 1 if kind == "call" else 2
            await asyncio.gather(*(fleet.call(command_id, command) for _ in range(copies)))

    for _ in range(meddling):
        world.loop.call_later(100 + world.random.random() * 900, fleet.cloud.meddle)
    for number in range(0 if script is not None else world.random.choice((0, 0, 2, 5))):
        world.loop.call_later(
            world.random.random() * 900,
            lambda name: world.start(fleet.rubbish(name)),
            f"rubbish-{number}",
        )
    work = [world.start(caller(number, *each)) for number, each in enumerate(commands)]
    await asyncio.wait(work, timeout=TROUBLE)
    await asyncio.sleep(max(0.0, TROUBLE - world.loop.time()))
    world.chances = CALM
    await asyncio.sleep(500)  # who stands still goes on, what was late has come
    fleet.broker.redrive()
    _, unanswered = await asyncio.wait(work, timeout=LONGEST)
    if unanswered:
        world.broken.append(f"3: {len(unanswered)} callers have no answer after {LONGEST:g} s")
    for worker in list(fleet.log.workers.values()):
        if worker.instance is not None and not worker.terminated:
            await fleet.call(f"look-at-{worker.id}", UpdateCMLWorkerStatus(worker_id=worker.id))
    pause = 60.0
    while pause < LONGEST and fleet.broken() and not world.broken:
        await asyncio.sleep(pause)
        pause *= 2


def simulate(
    seed: int,
    *,
    chances: Chances | None = None,
    script: Callable[[World], Script] | None = None,
    meddling: int | None = None,
    crash_at: int | None = None,
) -> Outcome:
    """One run: the same seed and arguments give the same trace."""
    world = World(seed, crash_at=crash_at)
    world.chances = random_chances(world.random) if chances is None else chances
    strangers = world.random.choice((0, 0, 1, 3)) if meddling is None else meddling
    loop = VirtualLoop()
    try:
        fleet: Fleet | None = None

        async def run() -> None:
            nonlocal fleet
            fleet = Fleet(world)
            await _run(fleet, None if script is None else script(world), strangers)

        try:
            loop.run_until_complete(run())
        except RuntimeError:
            if world.steps < MOST_STEPS:
                raise
            world.broken.append(f"9: it goes on and on, {world.steps} steps after {loop.time():.0f} s")
        assert fleet is not None
        broken = fleet.broken()
        return Outcome(
            seed=seed,
            violations=broken,
            steps=world.steps,
            crashes=world.crashes,
            seconds=loop.time(),
            commands=len(fleet.confirmed),
            answered=len(fleet.replies),
            launched=len(fleet.cloud.tokens_of),
            digest=world.digest,
            seen=dict(world.seen),
            taken=world.taken,
            last=list(world.last) if broken else [],
        )
    finally:
        _end(loop)


def _end(loop: VirtualLoop) -> None:
    """Whoever waits for ever is let go."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
