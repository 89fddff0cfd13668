"""What a run has covered: which operation, in which phase, was overlapped by which other one when which fault came."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from simulation.world import AT_ANY_STEP, Pair

SENT = "sent"
REQUESTED = "requested"
"""It is recorded, or looked up, and nothing has been asked of EC2 yet."""
CALLED = "called"
UNCERTAIN = "uncertain"
"""A call of it was not answered."""
SETTLED = "settled"
"""Its outcome is recorded."""
PHASES = (REQUESTED, CALLED, UNCERTAIN, SETTLED)
CALLS = {
    "create": ("launch", "find_image"),
    "start": ("start",),
    "stop": ("stop",),
    "terminate": ("terminate",),
    "update_tags": ("add_tags",),
    "update_status": ("describe_many",),
    "import": ("describe_many",),
}
"""The calls at EC2 by which a command is carried out, or looked up before it is decided."""
JUST = 5.0
"""Seconds for which an operation is just settled."""

PARTS = ("append", "read", "follow", "publish", "retry", "dead letter", "rows", "checkpoint", "query")
"""The operations of store, broker and database that fail; any other is one of EC2."""

Cell = tuple[str, str, str, str]
"""The first operation, the second, the phase of the first, the fault."""


@dataclass
class Command:
    """A command that the bus took."""

    name: str
    """Of ``CALLS``."""
    worker_id: UUID
    phase: str = SENT
    at: float = 0.0
    """When it came into this phase."""


@dataclass
class Coverage:
    """The phases of all commands of a run."""

    commands: dict[str, Command] = field(default_factory=dict)
    cells: Counter[Cell] = field(default_factory=Counter)
    uncertain: str | None = None
    """The command of which the first call at EC2 is to be unanswered."""
    without_capacity: str | None = None
    """The command for which EC2 is to have no capacity the first time."""
    _awaited: dict[tuple[str, str], list[Any]] = field(default_factory=dict)

    def sent(self, command_id: str, name: str, worker_id: UUID, now: float) -> None:
        """The bus has taken it."""
        self.commands.setdefault(command_id, Command(name, worker_id, at=now))

    def reached(self, command_id: str, phase: str, now: float) -> None:
        """A command has come so far; none goes back, but for a call that is made again."""
        command = self.commands.get(command_id)
        if command is None or command.phase == SETTLED:
            return
        command.phase, command.at = phase, now
        for future in self._awaited.pop((command_id, phase), []):
            if not future.done():
                future.set_result(None)

    def called(self, phase: str, command_id: str, operation: str, now: float) -> None:
        """A call at EC2 is made for the command, or was not answered."""
        command = self.commands.get(command_id)
        if command is not None and operation in CALLS[command.name]:
            self.reached(command_id, phase, now)

    def loses_answer(self, command_id: str, operation: str) -> bool:
        """Whether this call at EC2 is the one that is to be unanswered."""
        if command_id != self.uncertain or operation not in CALLS[self.commands[command_id].name]:
            return False
        self.uncertain = None
        return True

    def has_no_capacity(self, command_id: str | None) -> bool:
        """Whether EC2 is to have none for the command this time."""
        if command_id is None or command_id != self.without_capacity:
            return False
        self.without_capacity = None
        return True

    def when(self, command_id: str, phase: str, future: Any) -> None:
        """Have the future set when the command reaches the phase."""
        self._awaited.setdefault((command_id, phase), []).append(future)

    def pairs(self, now: float) -> Iterator[Pair]:
        """Every two commands for one worker that are under way, or just settled, and the phase of the first."""
        live = [each for each in self.commands.values() if each.phase != SETTLED or now - each.at < JUST]
        for place, first in enumerate(live):
            for second in live[place + 1 :]:
                if first.worker_id == second.worker_id and first.phase != SENT:
                    yield first.name, second.name, first.phase

    def fault(self, kind: str, now: float) -> None:
        """Note which commands overlapped when something went wrong."""
        for pair in self.pairs(now):
            self.cells[(*pair, kind)] += 1


def kind_of(fault: str, operation: str) -> str:
    """A fault as a column of the table: what can happen to a process at any step, or where a call of which part fails."""
    if fault in AT_ANY_STEP:
        return fault
    if operation in PARTS:
        return f"{operation}: {fault}"
    return f"queue: {fault}" if operation.startswith("cml.") else f"EC2: {fault}"
