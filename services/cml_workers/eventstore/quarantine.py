"""The quarantine of a follower: events that it cannot handle, whose workers wait, and what was decided about them.

A stream for each follower, in the event store, beside what it is about: whatever happens to a database, no decision is lost. Which
events a follower has passed without handling them (``Waiting``) is saved with its checkpoint, in one step.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Self
from uuid import NAMESPACE_URL, UUID, uuid5

import structlog

from cml_workers.domain.history import described
from cml_workers.eventstore.names import about_stream
from cml_workers.eventstore.port import (
    NO_STREAM,
    EventStore,
    NewEvent,
    StoreConfigurationError,
    StoredEvent,
    StoreUnavailableError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)
from cml_workers.foundation.failures import ConfigurationError

log = structlog.get_logger(__name__)

QUARANTINE_STREAMS = "cml_quarantine-"
"""What the names of their streams begin with."""
RELAY = "relay"
"""The relay as a follower."""
HELD, TAKEN_UP, SKIPPED = (f"cml.quarantine.{what}.v1" for what in ("held", "taken_up", "skipped"))
LOOK_EVERY = 2.0
"""Seconds between two looks at what was decided, while a worker waits."""
OURSELVES = "cml-workers"
"""Who takes up what this version can handle."""
NOT_AN_EVENTS_FAULT = (ConnectionError, ConfigurationError)

_NAMESPACE = uuid5(NAMESPACE_URL, "urn:cml-workers/quarantine")


def of_read_model(name: str) -> str:
    """A read model as a follower."""
    return f"projector-{name}"


WORKERS = of_read_model("workers")
"""The read model that folds workers as lifecycle and the EC2 adapter do: what is skipped there is skipped here."""


class NotHeldError(Exception):
    """There is nothing to decide about the event now; says why."""


class What(StrEnum):
    """``TAKEN_UP``: the event and those behind it are handled. ``SKIPPED``: only those behind it."""

    TAKEN_UP = "taken up"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Decision:
    """``user``: whom the broker vouched for; ``by``: who they said they were; ``time``: when it was recorded."""

    what: What
    by: str | None
    user: str | None
    reason: str | None
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """An event that a follower cannot handle.

    ``gone``: as the events before it were truncated or deleted. Those behind it cannot be handled then, either.
    """

    stream: str
    revision: int
    position: str
    event_id: UUID
    type: str
    reason: str
    gone: bool = False

    @classmethod
    def of(cls, event: StoredEvent, error: Exception) -> Self:
        """The event, as handling it raised this."""
        return cls(
            event.stream,
            event.revision,
            event.position,
            event.event_id,
            event.type,
            str(error) if isinstance(error, StreamDeletedError) else described(error),
            isinstance(error, StreamDeletedError),
        )

    def __str__(self) -> str:
        return f"{self.stream}@{self.revision} at position {self.position}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Case:
    """A broken event, and what was decided about it; ``number``: the revision of its record."""

    broken: Broken
    number: int
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Revisions of a worker that a follower has passed and not handled: from ``first``, to ``last`` at least."""

    first: int
    last: int

    def up_to(self, revision: int) -> "Waiting":
        """This one as well."""
        return replace(self, last=max(self.last, revision))


class Quarantine:
    """The quarantine of one follower, as it was loaded last. Any process may record in it; each sees what others did.

    The ids of its events are made of what they say, so that an append which is repeated is recognised.
    """

    def __init__(self, store: EventStore, follower: str) -> None:
        self.stream = f"{QUARANTINE_STREAMS}{follower}"
        self.cases: dict[str, Case] = {}
        """The last one of each worker's stream."""
        self._store = store
        self._turn = asyncio.Lock()
        self._revision = NO_STREAM
        self._skipped: set[tuple[str, int]] = set()
        self._omitted: dict[str, int] = {}
        """Streams of which nothing is handled from this revision on."""

    @property
    def undecided(self) -> list[Case]:
        """Those that wait for a decision."""
        return [case for case in self.cases.values() if case.decision is None]

    def holds(self, stream: str) -> bool:
        """Whether the worker waits for a decision."""
        case = self.cases.get(stream)
        return case is not None and case.decision is None

    def skips(self, stream: str, revision: int) -> bool:
        """Whether it was decided that this event is not handled."""
        return (stream, revision) in self._skipped or self.omits(stream, revision)

    def omits(self, stream: str, revision: int | None = None) -> bool:
        """Whether it was decided that nothing of the stream is handled from this revision on (None: or from a later one)."""
        first = self._omitted.get(stream)
        return first is not None and (revision is None or revision >= first)

    def lost(self, stream: str, first: int, position: str | None, error: StreamDeletedError) -> Broken:
        """The worker's case, as its events from ``first`` on are gone while it waited; ``position``: up to where it has."""
        case = self.cases.get(stream)
        before = case.broken if case else Broken(stream, first, position or "", UUID(int=0), "", "")
        return replace(before, revision=first, reason=str(error), gone=True)

    async def load(self) -> None:
        """See what was recorded since. Raises StoreUnavailableError, StoreConfigurationError."""
        async with self._turn:
            await self._load()

    async def _load(self) -> None:
        try:
            records = await self._store.read(self.stream, after=self._revision)
        except StreamNotFoundError:
            return
        except StreamDeletedError as error:
            raise StoreConfigurationError(
                f"{self.stream} has lost what was decided about events that could not be handled: {error}"
            ) from error
        for record in records:
            self._add(record)

    async def hold(self, broken: Broken) -> None:
        """Record that the worker waits from this event on, unless it waits already. Raises as ``load`` does."""
        content = {
            name: getattr(broken, name)
            for name in ("stream", "revision", "position", "type", "reason", "gone")
        }
        async with self._turn:
            while not self.holds(broken.stream):
                if await self._append(HELD, {**content, "event_id": str(broken.event_id)}):
                    log.error(
                        "an event is in quarantine, and the worker's later ones wait behind it",
                        quarantine=self.stream,
                        **about_stream(broken.stream),
                        revision=broken.revision,
                        event_id=str(broken.event_id),
                        type=broken.type,
                        cause=str(broken),
                    )

    async def decide(self, stream: str, revision: int, decision: Decision) -> None:
        """Record a decision about the event. Raises NotHeldError, and as ``load`` does."""
        type_ = TAKEN_UP if decision.what is What.TAKEN_UP else SKIPPED
        content = {name: getattr(decision, name) for name in ("by", "user", "reason")}
        async with self._turn:
            await self._load()
            self._check(stream, revision, decision)
            while not await self._append(type_, {"stream": stream, "revision": revision, **content}):
                self._check(stream, revision, decision)
        log.info(
            "an event in quarantine was decided about",
            quarantine=self.stream,
            **about_stream(stream),
            revision=revision,
            decided=decision.what.value,
            by=decision.by,
            reason=decision.reason,
        )

    def _check(self, stream: str, revision: int, decision: Decision) -> None:
        """Raise NotHeldError where there is nothing to decide."""
        case = self.cases.get(stream)
        if case is None or case.broken.revision != revision:
            raise NotHeldError(f"{stream} does not wait at revision {revision} any more")
        restored = decision.what is What.TAKEN_UP and self.omits(stream)
        if case.decision is not None and not restored:
            raise NotHeldError(f"{stream}@{revision} was {case.decision.what} already")

    async def _append(self, type_: str, content: Mapping[str, Any]) -> bool:
        """Whether it was appended; if not, somebody else has recorded something, which is loaded now."""
        data = json.dumps(content, separators=(",", ":"))
        event_id = uuid5(_NAMESPACE, f"{self.stream}@{self._revision + 1}/{type_}/{data}")
        try:
            revision = await self._store.append(
                self.stream, [NewEvent(event_id, type_, data.encode(), b"{}")], expected=self._revision
            )
        except WrongExpectedVersionError as error:
            before = self._revision
            await self._load()
            if self._revision == before:
                raise StoreUnavailableError(f"a replica lags behind: {error}") from error
            return False
        except StreamDeletedError as error:
            raise StoreConfigurationError(f"{self.stream} takes no more records: {error}") from error
        self._take(revision, type_, content, None)
        return True

    def _add(self, record: StoredEvent) -> None:
        self._take(record.revision, record.type, json.loads(record.data), record.recorded_at)

    def _take(self, number: int, type_: str, content: Mapping[str, Any], time: datetime | None) -> None:
        self._revision = number
        stream, revision = content["stream"], content["revision"]
        if type_ == HELD:
            known = {name: content[name] for name in Broken.__dataclass_fields__}
            self.cases[stream] = Case(Broken(**known | {"event_id": UUID(content["event_id"])}), number)
            return
        case = self.cases.get(stream)
        what = {TAKEN_UP: What.TAKEN_UP, SKIPPED: What.SKIPPED}.get(type_)
        if case is None or what is None:  # of a later version
            return
        decision = Decision(what, content["by"], content["user"], content["reason"], time)
        self.cases[stream] = replace(case, decision=decision)
        if what is What.TAKEN_UP:
            self._omitted.pop(stream, None)
        elif case.broken.gone:
            self._omitted[stream] = revision
        else:
            self._skipped.add((stream, revision))


def warning_of(cases: Iterable[Case]) -> str | None:
    """What somebody should look at; None where nothing waits."""
    waiting = [case.broken for case in cases]
    if not waiting:
        return None
    who = "a worker waits" if len(waiting) == 1 else f"{len(waiting)} workers wait, the first"
    return (
        f"{who} behind an event that cannot be handled: {waiting[0]}. docs/operations.md says what to do; "
        "`cml-workers deadletters list --cause Quarantined` lists them"
    )
