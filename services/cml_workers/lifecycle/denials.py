"""The record of denied commands: each is counted for good, and described as long as there are not too many.

One stream has them all, of which the store keeps the last events. Each event has the counts since the beginning, so the last one is
enough to know how many there were. Attempts that come while an event is being written go into the next one together.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import structlog

from cml_workers.eventstore.port import (
    NO_STREAM,
    EventStore,
    NewEvent,
    StoreConfigurationError,
    StoreUnavailableError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)

log = structlog.get_logger(__name__)

DENIALS_STREAM = "cml_denials"
DENIED = "cml.commands.denied.v1"
KEEP = 10_000
"""Events of the stream that are kept; ``deploy/kurrentdb/denials-stream.json`` says so to KurrentDB."""
DESCRIBED = 10
"""Attempts of one user in a minute that one process describes; of more it is recorded how many."""
DAYS, USERS = 400, 200
"""Of which counts are kept: the last days, and the users of the last day that were first; the others' is one."""
OTHERS = "*"
TRIM_EVERY = 1000
TRIES = 10
"""Appends against other processes that append, too."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Of denied commands, since the stream began. ``users``: those of ``day``; ``days``: of earlier ones, too."""

    total: int = 0
    day: str = ""
    users: Mapping[str, int] = field(default_factory=dict)
    days: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Those that an event says."""
        content = json.loads(data)
        return cls(content["total"], content["day"], content["users"], content["days"])

    def more(self, attempts: Sequence[Mapping[str, Any]], day: str) -> "Counts":
        """With these attempts, on this day; a clock that went back begins no other day."""
        day = max(day, self.day)
        users = dict(self.users) if day == self.day else {}
        for attempt in attempts:
            user = attempt["user"] or ""
            counted = user if user in users or len(users) < USERS else OTHERS
            users[counted] = users.get(counted, 0) + 1
        days = {**self.days, day: self.days.get(day, 0) + len(attempts)}
        last = sorted(days)[-DAYS:]
        return Counts(self.total + len(attempts), day, users, {each: days[each] for each in last})


@dataclass(slots=True)
class _Attempt:
    content: Mapping[str, Any]
    written: bool = False
    error: Exception | None = None


class Denials:
    """Any number of processes write the stream together."""

    def __init__(self, store: EventStore, *, now: Callable[[], datetime], new_id: Callable[[], UUID]) -> None:
        self._store = store
        self._now = now
        self._new_id = new_id
        self._waiting: list[_Attempt] = []
        self._writing = asyncio.Lock()
        self._last: tuple[int, Counts] | None = None
        self._minute: tuple[int, dict[str, int]] = (0, {})
        self._appends = 0

    async def record(self, content: Mapping[str, Any]) -> None:
        """Return when it is counted in the store; one that is recorded again, as its message came again, counts again.

        ``content``: what is known of it as JSON, its ``user`` included. Raises StoreUnavailableError, StoreConfigurationError.
        """
        attempt = _Attempt(content)
        self._waiting.append(attempt)
        async with self._writing:
            if not attempt.written and attempt.error is None:
                await self._write()
        if attempt.error is not None:
            raise attempt.error

    async def _write(self) -> None:
        """All that wait, as one event."""
        batch, self._waiting = self._waiting, []
        try:
            await self._append([each.content for each in batch])
        except BaseException as error:
            self._last = None
            failed = error if isinstance(error, Exception) else StoreUnavailableError("ended meanwhile")
            for each in batch:
                each.error = failed
            if not isinstance(error, Exception):
                raise
        else:
            for each in batch:
                each.written = True

    async def _append(self, attempts: Sequence[Mapping[str, Any]]) -> None:
        described = [each for each in attempts if self._to_describe(each["user"] or "")]
        for _ in range(TRIES):
            revision, before = self._last or await self._load()
            counts = before.more(attempts, self._now().date().isoformat())
            content = {
                "total": counts.total,
                "day": counts.day,
                "users": counts.users,
                "days": counts.days,
                "attempts": described,
                "not_described": len(attempts) - len(described),
            }
            event = NewEvent(self._new_id(), DENIED, json.dumps(content).encode(), b"{}")
            with suppress(WrongExpectedVersionError):
                try:
                    revision = await self._store.append(DENIALS_STREAM, [event], expected=revision)
                except StreamDeletedError as error:
                    raise StoreConfigurationError(f"denied commands cannot be recorded: {error}") from error
                self._last = revision, counts
                await self._trim()
                return
            self._last = None
        raise StoreUnavailableError("other processes record denied commands; try again")

    async def _load(self) -> tuple[int, Counts]:
        try:
            last = await self._store.last(DENIALS_STREAM)
        except StreamNotFoundError:
            return NO_STREAM, Counts()
        return last.revision, Counts.of(last.data)

    def _to_describe(self, user: str) -> bool:
        minute, described = int(self._now().timestamp() // 60), self._minute[1]
        if minute != self._minute[0]:
            described = {}
        self._minute = minute, described
        described[user] = described.get(user, 0) + 1
        return described[user] <= DESCRIBED

    async def _trim(self) -> None:
        """That old ones stay is no reason not to record."""
        self._appends += 1
        if self._appends % TRIM_EVERY != 1:
            return
        try:
            await self._store.trim(DENIALS_STREAM, KEEP)
        except (StoreConfigurationError, StoreUnavailableError, StreamDeletedError) as error:
            log.warning("old denied commands stay in the event store", cause=str(error))
