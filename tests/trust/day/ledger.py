"""What each user truly sent, and what the audit trail says of it: the judgement knows nothing of how the product decides."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID

from cml_contracts.commands import UpdateCMLWorkerStatus
from cml_contracts.deadletters import DeadLetterView
from cml_contracts.envelope import EventEnvelope
from cml_contracts.instance import WORKER_TAG
from cml_workers.domain.history import Recorded

ADOPTION = " adopt"
"""How the id of the operation ends that adopts an imported instance."""


class Expected(StrEnum):
    """What becomes of a message. ``DONE``: decided in its sender's name, whatever the decision; ``DEAD``: a dead letter, and no denied attempt; ``NOTHING``: nothing."""

    DONE = "done"
    DENIED = "denied"
    DEAD = "a dead letter"
    NOTHING = "of no effect"
    REFUSED = "refused by the broker"


@dataclass(slots=True)
class Sent:
    """One publish. ``user``: whom the broker vouches for; ``actor``: for whom it may act; ``operator``: who had it sent again, and whether edited.

    ``uncertain``: a process was killed meanwhile, so that it may have been handled twice.
    """

    user: str | None
    message_id: str
    kind: str
    what: str
    expected: Expected
    reason: str | None = None
    actor: str | None = None
    operator: tuple[str, bool] | None = None
    body: bytes = b""
    open: bool = True
    uncertain: bool = False


@dataclass
class Ledger:
    """``owners``: of each worker that was created or imported; ``teams``: who may command the workers of this owner besides."""

    sent: list[Sent] = field(default_factory=list)
    owners: dict[UUID, str] = field(default_factory=dict)
    teams: dict[str, frozenset[str]] = field(default_factory=dict)
    launched: set[UUID] = field(default_factory=set)
    """Workers that an honest create was sent for."""
    wrong: list[str] = field(default_factory=list)
    """What was seen to be wrong meanwhile."""

    def of(self, *expected: Expected) -> list[Sent]:
        return [each for each in self.sent if each.expected in expected]

    def disturb(self) -> None:
        """A process is killed: what is under way may be handled once more."""
        for each in self.sent:
            each.uncertain |= each.open


@dataclass(frozen=True)
class Trail:
    """What is to be seen at the end. ``denials``: the contents of the events that count denied attempts, in their order."""

    events: Mapping[UUID, Sequence[Recorded]]
    denials: Sequence[Mapping[str, Any]]
    letters: Sequence[DeadLetterView]
    instances: Sequence[Mapping[str, Any]]
    published: Sequence[EventEnvelope]
    foreign: Mapping[str, Mapping[str, str] | None]
    """Instances that somebody else launched; those that nobody may have with their tags."""


def judged(ledger: Ledger, trail: Trail) -> list[str]:
    """All that is not true in the trail, or not in it."""
    return [
        *ledger.wrong,
        *_events(ledger, trail.events),
        *_published(trail),
        *_denials(ledger, trail.denials),
        *_letters(ledger, trail.letters),
        *_instances(ledger, trail),
    ]


def _events(ledger: Ledger, events: Mapping[UUID, Sequence[Recorded]]) -> Iterator[str]:
    done: dict[tuple[str | None, str], list[Sent]] = {}
    for each in ledger.of(Expected.DONE):
        done.setdefault((each.user, each.message_id), []).append(each)
    seen = set()
    for worker_id, history in events.items():
        for recorded in history:
            metadata, at = recorded.metadata, f"{recorded.event.TYPE} of {worker_id}@{recorded.revision}"
            command_id = (metadata.command_id or "").removesuffix(ADOPTION)
            if metadata.user is None:
                if metadata.actor is not None or metadata.redrive is not None:
                    yield f"{at} names the actor {metadata.actor!r} of no user"
                if recorded.event.TYPE.endswith(OF_COMMANDS):
                    yield f"{at} is of a command, and names no user"
                continue
            redrive = metadata.redrive and (metadata.redrive.user, metadata.redrive.edited)
            said = (metadata.actor, metadata.reason, redrive)
            true = [
                (each.actor, each.reason, each.operator) for each in done.get((metadata.user, command_id), ())
            ]
            if said not in true:
                yield f"{at} names {metadata.user!r} for command {command_id}: {said}, who sent {true}"
            owner = ledger.owners.get(worker_id)
            if owner is None or metadata.actor not in {owner, *ledger.teams.get(owner, ())}:
                yield f"{at} is of {metadata.actor!r}, and the worker {owner!r}'s"
            seen.add((metadata.user, metadata.actor, command_id))
    for each in ledger.of(Expected.DONE):
        if each.kind != UpdateCMLWorkerStatus.TYPE and (each.user, each.actor, each.message_id) not in seen:
            yield f"no event is of {each.user!r} and its {each.what} {each.message_id}"


OF_COMMANDS = (
    *("requested.v1", "created.v1", "imported.v1"),
    *("command.rejected.v1", "command.skipped.v1"),
)
"""How the types of events end that there are only by a command."""


def _published(trail: Trail) -> Iterator[str]:
    recorded = {
        each.metadata.event_id: each.metadata for history in trail.events.values() for each in history
    }
    for envelope in trail.published:
        known = recorded.get(envelope.id)
        if known is None:
            yield f"event {envelope.id} was published, and is not recorded"
        elif (envelope.actor, envelope.command_id) != (known.actor, known.command_id):
            yield f"event {envelope.id} is published as {envelope.actor!r}'s, and recorded as {known.actor!r}'s"
    for event_id in recorded.keys() - {each.id for each in trail.published}:
        yield f"event {event_id} was not published"


def _bounds(sent: Iterable[Sent], key: Any) -> dict[Any, tuple[int, int]]:
    """How often each was handled: at least, and at most where a kill may have had it handled twice."""
    once, twice = Counter[Any](), Counter[Any]()
    for each in sent:
        once[key(each)] += 1
        twice[key(each)] += 1 + each.uncertain
    return {each: (count, twice[each]) for each, count in once.items()}


def _denials(ledger: Ledger, denials: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """By user; the counts begin again with each day."""
    counted = Counter[str]()
    day, before = "", Counter[str]()
    for content in denials:
        users = Counter(content["users"])
        counted += users - (before if content["day"] == day else Counter())
        day, before = content["day"], users
    bounds = _bounds(ledger.of(Expected.DENIED), lambda each: each.user or "")
    for user in {*counted, *bounds}:
        least, most = bounds.get(user, (0, 0))
        if not least <= counted[user] <= most:
            yield f"of {user!r} {counted[user]} attempts are counted as denied; there were {least} to {most}"
    if denials and denials[-1]["total"] != counted.total():
        yield f"{denials[-1]['total']} attempts are counted as denied, and {counted.total()} of the users"
    attempts = _bounds(ledger.of(Expected.DENIED), lambda each: (each.user, each.message_id, each.kind))
    described = Counter(
        (each["user"], each["command_id"], each["command_type"])
        for content in denials
        for each in content["attempts"]
    )
    for attempt, number in described.items():
        if number > attempts.get(attempt, (0, 0))[1]:
            yield f"the denied attempt {attempt} is described {number} times, and was made {attempts.get(attempt)}"


def _letters(ledger: Ledger, letters: Sequence[DeadLetterView]) -> Iterator[str]:
    bounds = _bounds(ledger.of(Expected.DENIED, Expected.DEAD), lambda each: (each.user, each.message_id))
    edited = {each.message_id for each in ledger.sent if each.operator and each.operator[1]}
    died = Counter[tuple[str | None, str | None]]()
    for letter in letters:
        key = (letter.user, letter.message_id)
        if key not in bounds and not (letter.user == "desk" and letter.message_id in edited):
            yield f"the dead letter {letter.id} ({letter.cause}) names {letter.user!r} for {letter.type} {letter.message_id}"
        died[key] += letter.deaths
    for key, (least, most) in bounds.items():
        if key[1] in edited:
            continue  # the letter is its first sender's, or its editor's, as it was when it died last
        if not least <= died[key] <= most:
            yield f"{key} is a dead letter {died[key]} times, and was to be {least} to {most} times"


def _instances(ledger: Ledger, trail: Trail) -> Iterator[str]:
    of_workers = Counter(
        each["tags"].get(WORKER_TAG) for each in trail.instances if each["instance_id"] not in trail.foreign
    )
    wanted = Counter(str(each) for each in ledger.launched)
    if of_workers != wanted:
        yield f"instances that nobody asked for: {of_workers - wanted}; that are not there: {wanted - of_workers}"
    now = {each["instance_id"]: each for each in trail.instances}
    for instance_id, tags in trail.foreign.items():
        if tags is not None and (now[instance_id]["tags"], now[instance_id]["state"]) != (tags, "running"):
            yield f"{instance_id} is nobody's here, and is {now[instance_id]}"
