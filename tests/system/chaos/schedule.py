"""What goes wrong in chaos, and when: faults without end, the same for the same seed."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from support.servers import Harm
from support.tcp_proxy import WHAT, Trap, What
from system.chaos.messages import MESSAGES, SILENCES, SUPERSEDED_REPLY, TERMINATION_APPENDED, Part

Store = Literal["sqlite", "kurrentdb"]

PROCESSES = ("lifecycle", "lifecycle.2", "relay", "ec2-adapter", "ec2-adapter.2", "projector")
CALLERS = "callers"

AT_EC2: tuple[Mapping[str, Any], ...] = (
    {"operation": "RunInstances", "code": "InternalError", "status": 500, "effect": "after", "times": 8},
    {"operation": "RunInstances", "effect": "after", "close_connection": True, "times": 8},
    {"operation": "RunInstances", "code": "InsufficientInstanceCapacity", "status": 500, "times": 8},
    {"operation": "RunInstances", "code": "RequestLimitExceeded", "status": 503, "times": 12},
    {"operation": "RunInstances", "effect": "delay", "hide_seconds": 2.0, "times": 4},
    {"operation": "RunInstances", "effect": "delay", "delay_seconds": 3.0, "times": 2},
    {"operation": "StartInstances", "code": "Unavailable", "status": 503, "effect": "after", "times": 6},
    {"operation": "StopInstances", "code": "InternalError", "status": 500, "effect": "after", "times": 6},
    {"operation": "StopInstances", "code": "RequestLimitExceeded", "status": 503, "times": 12},
    {"operation": "TerminateInstances", "effect": "after", "close_connection": True, "times": 6},
    {"operation": "CreateTags", "code": "InternalError", "status": 500, "effect": "after", "times": 6},
    {"operation": "DescribeInstances", "code": "RequestLimitExceeded", "status": 503, "times": 12},
    {"operation": "DescribeInstances", "effect": "delay", "delay_seconds": 2.0, "times": 2},
)
"""More often than the client repeats a call by itself, but for what only takes its time."""


@dataclass(frozen=True, slots=True)
class Kill:
    """kill -9; ``again``: once more so many seconds into the victim's new start."""

    victims: tuple[str, ...]
    again: float | None = None

    @property
    def kind(self) -> str:
        if self.again is not None:
            return "kill while it starts"
        return "kill" if len(self.victims) == 1 else "kill of two at once"


@dataclass(frozen=True, slots=True)
class Freeze:
    """SIGSTOP, then SIGCONT: of a process of ours, or of a part with all its processes."""

    victim: str
    seconds: float

    @property
    def kind(self) -> str:
        return "freeze" if self.victim in PROCESSES else f"{self.victim} frozen"


@dataclass(frozen=True, slots=True)
class Broker:
    """RabbitMQ crashes, or is restarted cleanly."""

    crash: bool

    @property
    def kind(self) -> str:
        return "broker killed" if self.crash else "broker restarted"


@dataclass(frozen=True, slots=True)
class Network:
    """Between ``who`` and ``part``: reset and refused, silent, or slow."""

    who: str
    part: Part
    how: Literal["cut", "stalled", "slowed"]
    seconds: float

    @property
    def kind(self) -> str:
        return f"network {self.how}"


@dataclass(frozen=True, slots=True)
class AtMessage:
    """A trap on the connections of those who do the same work to a part: whoever meets the message first."""

    who: tuple[str, ...]
    part: Part
    trap: Trap
    seconds: float = 12.0
    """How long it waits for the message."""

    @property
    def kind(self) -> str:
        return at_message(self.part, self.trap.what)


def at_message(part: Part, what: What) -> str:
    """What traps are counted under."""
    return f"{part}: {what}"


@dataclass(frozen=True, slots=True)
class Locked:
    """Somebody else holds the store file's only write lock."""

    seconds: float

    @property
    def kind(self) -> str:
        return "store file locked"


@dataclass(frozen=True, slots=True)
class AtEc2:
    """An entry of ``AT_EC2``."""

    how: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return "fault of EC2"


@dataclass(frozen=True, slots=True)
class Down:
    """The server of a part is killed and starts again after so many seconds, or another one takes over."""

    part: Part
    how: Literal["killed", "failed over"]
    seconds: float

    @property
    def kind(self) -> str:
        return f"{self.part} {self.how}"


Fault = Kill | Freeze | Broker | Network | AtMessage | Locked | AtEc2 | Down

_OWN: Mapping[Part, frozenset[Harm]] = {
    "rabbitmq": frozenset({"frozen"}),  # its deaths are ``Broker``
    "ec2": frozenset({"frozen"}),
    "postgresql": frozenset({"frozen", "killed", "failed over"}),
    "kurrentdb": frozenset({"frozen", "killed", "failed over"}),
}
# A store that was paused for 13 s committed what its callers had given up after 10. EC2: see GRACE.
_FROZEN: Mapping[Part, tuple[float, float]] = {
    "rabbitmq": (4.0, 9.0),
    "postgresql": (2.0, 8.0),
    "ec2": (2.0, 6.0),
    "kurrentdb": (12.0, 14.0),
}
_DOWN: tuple[float, float] = (1.0, 7.0)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run is on. ``given``: the parts whose servers are others', and what may be done to them; no network of ours lies before them."""

    store: Store
    given: Mapping[Part, frozenset[Harm]] = field(default_factory=dict)

    def suffers(self, harm: Harm) -> list[Part]:
        """The parts whose servers it may happen to."""
        servers = (part for part in _OWN if part != "kurrentdb" or self.store == "kurrentdb")
        return [part for part in servers if harm in self.given.get(part, _OWN[part])]


def links(setup: Setup) -> list[tuple[str, Part]]:
    """Who reaches which part over a network of ours."""
    found: list[tuple[str, Part]] = [(who, "rabbitmq") for who in (*PROCESSES, CALLERS)]
    found += [(who, "postgresql") for who in ("relay", "projector")]
    found += [(who, "ec2") for who in PROCESSES if who.startswith("ec2-adapter")]
    if setup.store == "kurrentdb":
        found += [(who, "kurrentdb") for who in PROCESSES]
    return [(who, part) for who, part in found if part not in setup.given]


def kinds(setup: Setup) -> frozenset[str]:
    """Every kind of fault that there is: each of them comes in the first round of the schedule."""
    parts = {part for _, part in links(setup)}
    return frozenset(
        {
            *("kill", "kill of two at once", "kill while it starts", "freeze", "fault of EC2"),
            *("broker killed", "broker restarted", "network cut", "network stalled", "network slowed"),
            *(f"{part} frozen" for part in setup.suffers("frozen")),
            *(f"{part} killed" for part in setup.suffers("killed")),
            *(f"{part} failed over" for part in setup.suffers("failed over")),
            *(at_message(part, what) for part in parts for what in WHAT),
            *(["store file locked"] if setup.store == "sqlite" else []),
        }
    )


def schedule(seed: int, setup: Setup) -> Iterator[Fault]:
    """Faults without end, the same for the same seed: a deck that is shuffled and dealt again and again."""
    chance = random.Random(seed)
    adapters = [name for name in PROCESSES if name.startswith("ec2-adapter")]
    at_parts = {part for _, part in links(setup)}

    def network(how: Literal["cut", "stalled", "slowed"], shortest: float, longest: float) -> Network:
        who, part = chance.choice(links(setup))
        return Network(who, part, how, chance.uniform(shortest, longest))

    def freeze(victim: str, shortest: float, longest: float) -> Freeze:
        return Freeze(victim, chance.uniform(shortest, longest))

    def down(part: Part, how: Literal["killed", "failed over"]) -> Down:
        return Down(part, how, chance.uniform(*_DOWN))

    def trap(part: Part, what: What) -> AtMessage:
        role, (pattern, towards) = chance.choice(
            [(role, each) for (role, at), messages in MESSAGES.items() if at == part for each in messages]
        )
        who = tuple(name for name, at in links(setup) if at == part and name.partition(".")[0] == role)
        return AtMessage(who, part, Trap(pattern, towards, what, seconds=chance.uniform(*SILENCES[part])))

    def at_superseded_reply(what: What) -> AtMessage:
        seconds = chance.uniform(*SILENCES["rabbitmq"])
        trap = Trap(SUPERSEDED_REPLY, "server", what, seconds)
        return AtMessage(("lifecycle", "lifecycle.2"), "rabbitmq", trap, seconds=30.0)

    def store_silent_at_termination() -> AtMessage:
        """Committed when its caller has given up: what it settled is due all the same."""
        silence = Trap(TERMINATION_APPENDED, "server", "silence", chance.uniform(*SILENCES["kurrentdb"]))
        return AtMessage(("lifecycle", "lifecycle.2"), "kurrentdb", silence, seconds=30.0)

    deck: list[Callable[[], Fault]] = [
        *[lambda: Kill((chance.choice(PROCESSES),))] * 8,
        *[lambda: Kill(tuple(chance.sample(PROCESSES, 2)))] * 2,
        *[lambda: Kill((chance.choice(PROCESSES),), again=chance.uniform(0, 2))] * 3,
        *[lambda: network("cut", 0, 3)] * 3,
        *[lambda: network("stalled", 1, 8)] * 2,
        *[lambda: network("slowed", 2, 6)] * 2,
        *[partial(trap, part, what) for part in sorted(at_parts) for what in WHAT],
        # Of these only "cut before" loses the reply; everything else delays or repeats it.
        *[partial(at_superseded_reply, "cut before")] * 3,
        lambda: at_superseded_reply(chance.choice(WHAT)),
        *([store_silent_at_termination] * 2 if "kurrentdb" in at_parts else []),
        *[lambda: AtEc2(chance.choice(AT_EC2))] * 3,
        lambda: freeze(chance.choice(adapters), 7, 10),
        lambda: freeze(chance.choice(PROCESSES), 1, 10),
        *[partial(freeze, part, *_FROZEN[part]) for part in setup.suffers("frozen")],
        *[partial(down, part, "killed") for part in setup.suffers("killed")],
        *[partial(down, part, "failed over") for part in setup.suffers("failed over")],
        lambda: Broker(crash=True),
        lambda: Broker(crash=False),
        *([lambda: Locked(chance.uniform(1, 7))] if setup.store == "sqlite" else []),
    ]
    while True:
        chance.shuffle(deck)
        for deal in deck:
            yield deal()
