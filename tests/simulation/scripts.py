"""What callers send, and when: by chance, one after the other, or just when another command has come so far."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from random import Random
from typing import TYPE_CHECKING
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
from cml_contracts.instance import InstanceState
from simulation.coverage import CALLS, PHASES, REQUESTED, SETTLED

if TYPE_CHECKING:
    from simulation.world import World

REGION = "us-east-1"
IMAGE = "ami-0c31000000000001e"
IMAGE_NAME = "cml"
FOUND = "i-0f00000000000000f"
"""An instance that somebody launched without us; it may be imported."""
IMPORT = ImportCMLWorker(aws_region=REGION, instance_id=FOUND, created_by="ann")


@dataclass(frozen=True, slots=True)
class Send:
    """A command, and when it is sent.

    ``at``: seconds from the beginning, or from when the command before it, of that place in the script, has come into
    the ``phase``. ``again``: it is that command once more, from another address; ``taken``: it is another user's command, under that
    one's id.
    """

    command: WorkerCommand
    at: float = 0.0
    behind: int | None = None
    phase: str = REQUESTED
    again: bool = False
    taken: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """Commands, and what is there before.

    ``given``: the state of the instance of each worker that exists already, as it is recorded; ``outside``: into which
    states somebody has brought which of these instances since, or the one that may be imported. ``uncertain``: the
    first command's call at EC2 is not answered the first time; ``no_capacity``: EC2 has none for it the first time.
    """

    name: str
    sends: Sequence[Send]
    given: Sequence[tuple[UUID, InstanceState]] = ()
    outside: Mapping[UUID | str, InstanceState] = field(default_factory=dict)
    uncertain: bool = False
    no_capacity: bool = False


# -- by chance --------------------------------------------------------------------------------------------


def random_script(random: Random, world: "World") -> Script:
    """Some workers and what may be asked of them, for about a quarter of an hour.

    Of three kinds: a bit of everything; many launches at once; one worker that everybody wants something of.
    """
    kind = random.choice(("mixed", "launches", "one worker"))
    workers = [
        world.new_id() for _ in range({"mixed": random.randint(1, 3), "launches": 6, "one worker": 1}[kind])
    ]
    sends = [
        Send(_random_create(random, worker_id, named=kind == "mixed"), random.random() * 60)
        for worker_id in workers
    ]
    if kind == "mixed" and random.random() < 0.4:
        sends.append(Send(IMPORT, random.random() * 300))
        workers.append(IMPORT.worker(""))
    requests = {"mixed": random.randint(3, 14), "launches": 3, "one worker": 14}[kind]
    burst = random.choice((900.0, 300.0, 120.0))
    sends += [
        Send(_random_request(random, random.choice(workers)), 30 + random.random() * burst)
        for _ in range(requests)
    ]
    return Script(kind, sends)


def _random_create(random: Random, worker_id: UUID, *, named: bool) -> CreateCMLWorker:
    """``named``: by an image that EC2 is asked for first, or that there is none of."""
    images = (
        ({"ami_id": IMAGE}, {"ami_name": IMAGE_NAME}, {"ami_name": "none"}) if named else ({"ami_id": IMAGE},)
    )
    command = create(worker_id, **random.choice(images))
    if named or random.random() < 0.5:
        return command
    return command.model_copy(update={"profile": "spread", "instance_type": None})


def _random_request(random: Random, worker_id: UUID) -> WorkerCommand:
    requests = {"start": 25, "stop": 30, "tags": 20, "status": 12, "terminate": 10, "create": 10}
    match random.choices(list(requests), list(requests.values()))[0]:
        case "create":  # again, if its launch has failed
            return create(worker_id)
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


def create(worker_id: UUID, **image: str) -> CreateCMLWorker:
    """A creation, by the image that is there unless another is named."""
    return CreateCMLWorker.model_validate(
        {
            "name": "lab",
            "aws_region": REGION,
            "instance_type": "m5.large",
            "created_by": "ann",
            "worker_id": worker_id,
            **(image or {"ami_id": IMAGE}),
        }
    )


# -- one after the other ----------------------------------------------------------------------------------

SWEPT = UUID("5bee9d00-0000-4000-8000-000000000001")
OTHER = UUID("5bee9d00-0000-4000-8000-000000000002")


def every_command() -> Script:
    """Every command is accepted, some are rejected, and none overlaps another."""
    commands: list[WorkerCommand] = [
        create(SWEPT, ami_name=IMAGE_NAME),
        create(OTHER, ami_name="none"),
        IMPORT,
        UpdateCMLWorkerTags(worker_id=SWEPT, tags={"a": "1"}),
        StopCMLWorker(worker_id=SWEPT),
        UpdateCMLWorkerStatus(worker_id=SWEPT),
        StartCMLWorker(worker_id=SWEPT),
        StartCMLWorker(worker_id=OTHER),
        TerminateCMLWorker(worker_id=SWEPT),
    ]
    return Script("one after the other", [Send(each, place * 40.0) for place, each in enumerate(commands)])


# -- at the same time -------------------------------------------------------------------------------------


def _command(name: str, worker_id: UUID, value: str = "1") -> WorkerCommand:
    match name:
        case "create":
            return create(worker_id)
        case "start":
            return StartCMLWorker(worker_id=worker_id)
        case "stop":
            return StopCMLWorker(worker_id=worker_id)
        case "terminate":
            return TerminateCMLWorker(worker_id=worker_id)
        case "update_tags":
            return UpdateCMLWorkerTags(worker_id=worker_id, tags={"a": value})
        case "update_status":
            return UpdateCMLWorkerStatus(worker_id=worker_id)
        case _:
            assert name == "import"
            return IMPORT


def _given(first: str, worker_id: UUID) -> list[tuple[UUID, InstanceState]]:
    """The worker in the state in which the first command has something to do."""
    if first in ("create", "import"):
        return []
    return [(worker_id, InstanceState.STOPPED if first == "start" else InstanceState.RUNNING)]


def pairs() -> Iterator[Script]:
    """Every ordered pair of commands for one worker, the second when the first has come into each phase."""
    for first, second, phase in product(CALLS, CALLS, PHASES):
        worker_id = IMPORT.worker("") if "import" in (first, second) else SWEPT
        yield Script(
            f"{first}, {second} when it is {phase}",
            [Send(_command(first, worker_id)), Send(_command(second, worker_id, "2"), behind=0, phase=phase)],
            _given(first, worker_id),
            uncertain=phase == "uncertain",
        )


def triples() -> Iterator[Script]:
    """A command that a termination supersedes, and one that comes behind both."""
    for first, third in product(
        ("create", "start", "stop", "update_tags"),
        ("start", "stop", "terminate", "update_tags", "update_status"),
    ):
        yield Script(
            f"{first}, terminate, {third}",
            [
                Send(_command(first, SWEPT)),
                Send(_command("terminate", SWEPT), behind=0),
                Send(_command(third, SWEPT, "2"), behind=1),
            ],
            _given(first, SWEPT),
        )


def twice() -> Iterator[Script]:
    """The same command from two addresses, the second when the first has come into each phase."""
    for name, phase in product(CALLS, PHASES):
        worker_id = IMPORT.worker("") if name == "import" else SWEPT
        command = _command(name, worker_id)
        yield Script(
            f"{name}, the same when it is {phase}",
            [Send(command), Send(command, behind=0, phase=phase, again=True)],
            _given(name, worker_id),
            uncertain=phase == "uncertain",
        )


def created_again() -> Iterator[Script]:
    """A launch that failed for lack of capacity is asked for again: by one, by two at once, by one whom a termination meets."""
    failed = Send(create(SWEPT))
    again = Send(create(SWEPT), behind=0, phase=SETTLED)
    for name, more in {
        "create": [],
        "create, create": [again],
        "create, terminate": [Send(_command("terminate", SWEPT), behind=1)],
        "terminate and create": [Send(_command("terminate", SWEPT), behind=0, phase=SETTLED)],
    }.items():
        yield Script(f"create without capacity, {name}", [failed, again, *more], no_capacity=True)


def shared_ids() -> Iterator[Script]:
    """Two users' commands under one id: for one worker, or creating two; the second when the first is recorded or done."""
    calls = [each for each in CALLS if each != "update_status"]
    for first, second, phase in product(calls, calls, (REQUESTED, SETTLED)):
        if (first, phase) == ("import", REQUESTED):
            continue  # nothing is recorded of it yet
        worker_id = IMPORT.worker("") if "import" in (first, second) else SWEPT
        others = Send(_bens(_command(second, worker_id, "2")), behind=0, phase=phase, taken=True)
        yield Script(
            f"{first}, {second} of another user under its id when it is {phase}",
            [Send(_command(first, worker_id)), others],
            _given(first, worker_id),
        )
    for phase in (REQUESTED, SETTLED):
        others = Send(_bens(create(OTHER)), behind=0, phase=phase, taken=True)
        yield Script(f"two creates of two users under one id, {phase}", [Send(create(SWEPT)), others])


def _bens(command: WorkerCommand) -> WorkerCommand:
    named = isinstance(command, CreateCMLWorker | ImportCMLWorker)
    return command.model_copy(update={"created_by": "ben"}) if named else command


def changed_outside() -> Iterator[Script]:
    """Somebody changed an instance: a status update or an import finds it on its way, other operations find it ended."""
    for name, before, after in (
        ("started", InstanceState.STOPPED, InstanceState.PENDING),
        ("stopped", InstanceState.RUNNING, InstanceState.STOPPING),
        ("terminated", InstanceState.RUNNING, InstanceState.SHUTTING_DOWN),
    ):
        status = UpdateCMLWorkerStatus(worker_id=SWEPT)
        yield Script(f"{name} outside, update_status", [Send(status)], [(SWEPT, before)], {SWEPT: after})
    for name in ("start", "stop", "terminate"):
        command, given = _command(name, SWEPT), _given(name, SWEPT)
        yield Script(f"ended outside, {name}", [Send(command)], given, {SWEPT: InstanceState.TERMINATED})
    yield Script("started outside, import", [Send(IMPORT)], outside={FOUND: InstanceState.PENDING})


def one_name() -> Script:
    """Two workers of one name at the same time."""
    return Script("create, create of that name", [Send(create(SWEPT)), Send(create(OTHER))])


def overlapping() -> list[Script]:
    """All of these."""
    return [*pairs(), *triples(), *twice(), *created_again(), *shared_ids(), *changed_outside(), one_name()]


CHOSEN = (
    "start, terminate when it is requested",
    "stop, terminate when it is called",
    "create, terminate when it is called",
    "update_tags, update_tags when it is uncertain",
    "update_tags, terminate when it is requested",
    "terminate, update_status when it is called",
    "import, update_tags when it is settled",
    "stop, terminate, terminate",
    "start, the same when it is requested",
    "create without capacity, create, create",
    "stop, terminate of another user under its id when it is requested",
    "two creates of two users under one id, requested",
)
"""Those that the default run of the tests sweeps."""
