"""The outcome of each hostile message: answered, dead-lettered, decided, or of no effect."""

import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from aiormq.abc import DeliveredMessage
from pydantic import ValidationError

from cml_contracts.commands import COMMANDS, UpdateCMLWorkerStatus
from cml_contracts.envelope import MAX_BODY, EventEnvelope
from cml_contracts.queries import QUERIES
from cml_contracts.results import OperationResult
from cml_workers.bus.codec import RESULT_TYPE
from cml_workers.domain.messages import REPORTS, InstanceObserved, LookupAnswered, LookupRequested, Report
from fuzz.hostile import NUMBER_HEADER, Hostile


@dataclass
class Books:
    """The messages that were sent, and what came back for each."""

    sent: dict[int, Hostile] = field(default_factory=dict)
    by_body: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    answered: set[int] = field(default_factory=set)
    dead: dict[int, str] = field(default_factory=dict)
    without_reason: int = 0
    unknown: list[str] = field(default_factory=list)

    def send(self, message: Hostile) -> None:
        self.sent[message.number] = message
        if not message.readable:
            self.by_body[sha256(message.body).digest()].append(message.number)

    def reply(self, message: DeliveredMessage) -> None:
        result = OperationResult.model_validate_json(message.body)
        number = number_of(message.header.properties.correlation_id) or number_of(result.command_id)
        if number:
            self.answered.add(number)
        else:
            self.unknown.append(f"reply {message.body[:200]!r}")

    def dead_letter(self, message: DeliveredMessage) -> None:
        headers: Mapping[str, Any] = message.header.properties.headers or {}
        reason = headers.get("x-cml-reason") if "x-cml-queue" in headers else None
        if not isinstance(reason, str) and isinstance(headers.get("x-death"), list):
            reason = f"by the broker: {headers.get('x-first-death-reason')}"
        if not isinstance(reason, str):
            self.without_reason += 1
            return
        number = headers.get(NUMBER_HEADER)
        kind = message.header.properties.message_type
        if kind == RESULT_TYPE and number is None:
            return  # a reply of ours, to one of our own queues, as its caller requested
        if not isinstance(number, int):
            known = self.by_body.get(sha256(message.body).digest())
            number = known.pop() if known else number_of(command_of(message.body))
            if kind == LookupAnswered.TYPE and number is None:
                return  # the answer to a lookup request that brought a command id of no message
        if number in self.sent:
            self.dead[number] = reason
        else:
            self.unknown.append(f"dead letter {reason!r}: {message.body[:200]!r}")

    def open(self) -> list[Hostile]:
        """Neither answered nor dead-lettered."""
        return [
            message
            for number, message in self.sent.items()
            if number not in self.dead and number not in self.answered
        ]

    def unanswered(self) -> list[str]:
        """Rejected commands and queries whose sender listens, and got no reply."""
        return [
            f"{number}: {reason}"
            for number, reason in self.dead.items()
            if self.sent[number].target.name in ("commands", "queries")
            and self.sent[number].awaits
            and number not in self.answered
            and not reason.startswith("by the broker")
        ]


@dataclass
class Outcome:
    books: Books
    seconds: float
    decided: int
    of_no_effect: int
    lost: list[str]
    waits: list[float]
    memory: dict[str, list[tuple[float, int]]]
    problems: list[str]

    def summary(self) -> str:
        books = self.books
        reasons = Counter(_outline(reason) for reason in books.dead.values())
        sent, waits = len(books.sent), sorted(self.waits)
        lines = [
            f"{sent} messages in {self.seconds:.0f} s, {sent / self.seconds:.0f}/s",
            f"{len(books.answered)} answered, {len(books.dead)} dead letters, {len(self.lost)} lost",
            f"{self.decided} decided without a reply, {self.of_no_effect} well-formed and of no effect",
            f"{len(waits)} valid commands among them took {statistics.median(waits):.2f} s, at most {waits[-1]:.2f} s",
        ]
        for name, samples in self.memory.items():
            early, late = early_and_late(samples)
            lines.append(
                f"memory of {name}: {early / 2**20:.1f} MiB after a fifth, {late / 2**20:.1f} MiB at the end"
            )
        lines += [f"{count:7} {reason}" for reason, count in reasons.most_common(25)]
        return "\n".join(lines)


def _outline(reason: str) -> str:
    """The reason without what differs from message to message."""
    outline = re.sub(r"'.*'|\"[^\"]*\"|[0-9a-f-]{36}|\d+", "_", reason.split(";", maxsplit=1)[0])
    return outline[:100]


def early_and_late(samples: list[tuple[float, int]]) -> tuple[float, float]:
    """Medians of the memory between a fifth and two fifths of the messages, and at the last tenth."""
    early = [size for share, size in samples if 0.2 <= share < 0.4] or [size for _, size in samples]
    late = [size for share, size in samples if share >= 0.9] or [size for _, size in samples]
    return statistics.median(early), statistics.median(late)


def number_of(identity: str | None) -> int | None:
    """The number with which an id of a hostile message begins; no other id, such as a random one, says one."""
    found = re.match(r"(\d{1,7})(?:-|$)", identity or "")
    return int(found[1]) if found else None


def command_of(body: bytes) -> str | None:
    """The command that a message within the system brings back, or whose operation it reports."""
    try:
        fields = json.loads(body)
        command_id = fields["origin"]["command_id"] if "origin" in fields else fields["operation_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return command_id if isinstance(command_id, str) else None


_INTERNAL: Mapping[str, type[Report | LookupRequested]] = {**REPORTS, LookupRequested.TYPE: LookupRequested}


def is_of_no_effect(message: Hostile) -> bool:
    """Well-formed, and nothing follows from it: a stale trigger, a repeated observation, a lookup request of nobody.

    The answer to a lookup request whose command lifecycle has not recorded is a dead letter, known by its command's id.
    """
    kind = message.properties["message_type"] or message.routing_key
    try:
        match message.target.name:
            case "triggers":
                EventEnvelope.from_cloudevent(json.loads(message.body))
                return True
            case "reports" | "lookups":
                internal = _INTERNAL[kind].model_validate_json(message.body)
                if isinstance(internal, LookupRequested):
                    return number_of(internal.origin.command_id) is None
                return isinstance(internal, InstanceObserved)
            case "commands" if not message.awaits:
                # A status update that finds nothing new leaves no event, and its reply went where nobody is.
                return isinstance(COMMANDS[kind].model_validate_json(message.body), UpdateCMLWorkerStatus)
            case "queries" if message.properties.get("expiration"):
                return True  # its sender did not want it kept
            case "queries" if not message.awaits:
                QUERIES[kind].model_validate_json(message.body)
                return len(message.body) <= MAX_BODY
            case _:
                return False
    except (ValueError, KeyError, ValidationError):
        return False
