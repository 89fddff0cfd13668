"""Gaps: events that a subscription has left out, filled in from their stream.

Servers have left out events where a subscription resumed: behind a record that was scavenged away, and from wrong checkpoints
of their own. Revisions show it, whatever the cause: those of a stream have no gaps.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import structlog

from cml_workers.eventstore.names import about_stream
from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    EventStore,
    Item,
    StoredEvent,
    StoreUnavailableError,
    StreamDeletedError,
    StreamNotFoundError,
)

log = structlog.get_logger(__name__)

MOST_STREAMS = 100_000
"""Streams whose last revision is remembered; when there are more, all are forgotten."""


class Gaps:
    """The gaps of one subscription, which begins behind position ``after``.

    A gap shows with the next event of the stream. The first one that comes of a stream is compared with the event before it.
    """

    def __init__(self, store: EventStore, after: str | None) -> None:
        self._store = store
        self._after = after
        self._position = after
        self._last: dict[str, int] = {}
        """Of the streams that had events behind ``after``."""

    async def filled(self, items: Sequence[Item]) -> list[Item]:
        """The next items; before each event those of its stream that were left out, at the position of the item before.

        Raises StoreUnavailableError.
        """
        asked = {}
        for number, item in enumerate(items):
            if isinstance(item, StoredEvent):
                last = self._last.get(item.stream)
                if item.revision > (NO_STREAM if last is None else last) + 1:
                    asked[number] = self._left_out(item, last)
                self._last[item.stream] = max(item.revision, last or 0)
        found = await asyncio.gather(*asked.values(), return_exceptions=True)
        missing = dict(zip(asked, found, strict=True))
        whole: list[Item] = []
        for number, item in enumerate(items):
            before = missing.get(number, [])
            if isinstance(before, BaseException):
                raise before
            whole += [replace(each, position=self._position or each.position) for each in before]
            whole.append(item)
            if not isinstance(item, CaughtUp):
                self._position = item.position
        if len(self._last) > MOST_STREAMS:
            self._last.clear()
            self._after = self._position
        return whole

    async def _left_out(self, event: StoredEvent, last: int | None) -> list[StoredEvent]:
        """The events before this one, behind revision ``last``; None: the stream had no event yet behind where we began."""
        try:
            if last is None and self._after is not None:
                before = await self._store.read(event.stream, after=event.revision - 2, limit=1)
                if before and not self._store.is_after(before[0].position, self._after):
                    return []
            first = NO_STREAM if last is None else last
            found = await self._store.read(event.stream, after=first, limit=event.revision - first - 1)
        except StreamNotFoundError:
            found = []
        except StreamDeletedError as error:
            log.warning(
                "events of a stream are missing",
                **about_stream(event.stream),
                before=event.revision,
                cause=str(error),
            )
            return []
        if not found or found[-1].revision != event.revision - 1:
            raise StoreUnavailableError(f"a replica lags behind: no {event.stream}@{event.revision - 1} yet")
        if self._after is not None:
            found = [each for each in found if self._store.is_after(each.position, self._after)]
        log.warning(
            "the subscription left out events",
            **about_stream(event.stream),
            revisions=[each.revision for each in found],
        )
        return found
