"""Events to subscribers, none of whose queues may delay another one, or our own work.

The broker confirms an event when every queue that it goes to has taken it. A queue that is full, or whose node is down, has it
withhold the confirm; one that hangs keeps it waiting. All other queues have the event by then, so it is tried a few times and
given up, which the log, a count and ``/readyz`` say; it stays in the event store. While there is such a queue, each event is
tried once; twice where no probe was taken in the ``NEAR`` seconds before.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain, repeat

import structlog

from cml_workers.bus.port import BusUnavailableError, NotTakenError, Outgoing, Publish, Routed
from cml_workers.bus.probes import PROBE
from cml_workers.eventstore.names import worker_of
from cml_workers.eventstore.port import StoredEvent
from cml_workers.eventstore.worker_streams import about_event
from cml_workers.foundation.tasks import Tasks, ended
from cml_workers.relay.in_order import Entry, InOrder

log = structlog.get_logger(__name__)

PAUSES = (0.2, 0.5, 1.3)
"""Seconds between the tries of an event that a queue does not take. The worker's next event waits for them, so that a queue which
takes nothing for a moment keeps its order, too."""
PATIENCE = 1.0
"""Seconds after which it is asked whether the broker has routed the event, as it is not confirmed."""
ASKED_AGAIN = 0.05
"""Seconds until it is asked again."""
LATE = 5.0
"""Seconds after which an event that was routed, and is not confirmed, is given up."""
TROUBLE = timedelta(seconds=60)
"""How long an event that was given up keeps others from being tried more than once."""
NEAR = timedelta(seconds=5)
"""How far apart the two probes may be between which an event is refused that is then given up: the cluster cannot have lost and
regained its majority between them."""


@dataclass(slots=True)
class GivenUp:
    """Events of one type, since one of them was last taken."""

    since: datetime
    last: datetime
    event: StoredEvent
    cause: str
    events: int = 0


class Subscribers:
    """Publishes to ``cml.events``."""

    def __init__(
        self,
        publish: Publish,
        routed: Routed,
        *,
        tasks: Tasks,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._publish = publish
        self._routed = routed
        self._tasks = tasks
        self._now = now
        self._sleep = sleep
        self._in_order = InOrder(self._send, tasks=tasks, sleep=sleep)
        self.given_up = 0
        """Events since the process started."""
        self._given_up: dict[str, GivenUp] = {}
        self._late: dict[asyncio.Task[None], Entry] = {}
        """What was routed and is not confirmed."""
        self._probed: datetime | None = None
        """When a probe was last taken: the cluster had its majority."""

    @property
    def failing(self) -> str | None:
        """Why the last try failed by no subscriber's fault; None if it did not."""
        return self._in_order.failing

    def put(self, entry: Entry) -> None:
        """Publish it, behind what is before it in the worker's stream."""
        self._in_order.put(entry)

    async def room(self) -> None:
        """Wait until another event may be put."""
        await self._in_order.room()

    async def end(self) -> None:
        """Forget what is under way; the tasks have ended."""
        for publishing in list(self._late):  # of a task that ended before it began
            await ended(publishing)
        self._late.clear()
        self._in_order.clear()

    def warning(self) -> str | None:
        """Which events some subscriber lacks; None if the last of each type was taken."""
        if not self._given_up:
            return None
        all_types = self._given_up.values()
        last = max(all_types, key=lambda each: each.last)
        return (
            f"{sum(each.events for each in all_types)} events were given up since "
            f"{min(each.since for each in all_types).isoformat(timespec='seconds')}, as a subscriber's queue does not take "
            f"them; the last: {last.event.type} of worker {worker_of(last.event.stream)}, event {last.event.event_id} "
            f"({last.cause}). docs/deployment.md, Subscribers, says what to do"
        )

    @property
    def _troubled(self) -> bool:
        now = self._now()
        return bool(self._late) or any(now - each.last < TROUBLE for each in self._given_up.values())

    async def _send(self, entry: Entry) -> None:
        """Return when every queue that takes the event has it. Raises BusUnavailableError if that is not sure."""
        for pause in chain(PAUSES, repeat(None)):
            if pause is None:
                await self._probe()
            try:
                await self._try(entry)
            except NotTakenError as error:
                if (pause is None or self._troubled) and await self._had_majority():
                    self._give_up(entry, str(error))
                    return
                log.warning("event not taken, trying again", **about_event(entry.event), cause=str(error))
                await self._sleep(pause or PAUSES[-1])
            else:
                return

    async def _probe(self) -> None:
        """Raises BusUnavailableError unless the cluster has its majority."""
        await self._publish(PROBE)
        self._probed = self._now()

    async def _had_majority(self) -> bool:
        """Whether it had it during the last try, too: without, a healthy queue may have lost what another one refused at once."""
        before = self._probed
        await self._probe()
        return before is not None and self._now() - before <= NEAR

    async def _try(self, entry: Entry) -> None:
        """Once; if it was routed and is not confirmed, the rest goes on in the background."""
        message = self._behind_others(entry)
        publishing = asyncio.ensure_future(self._publish(message))
        late = False
        try:
            await asyncio.wait((publishing,), timeout=0 if self._troubled else PATIENCE)
            while not publishing.done() and not await self._routed(message):
                await asyncio.wait((publishing,), timeout=ASKED_AGAIN)
            if not publishing.done():
                # Where queues have lost their majority, one may keep the next event and lose this one with our connection.
                await self._probe()
            late = not publishing.done()
            if late:
                self._late[publishing] = entry
                self._tasks.start(self._await_late(entry, publishing), f"awaits {entry.message.message_id}")
            else:
                publishing.result()
                self._taken(entry)
        finally:
            if not late:
                await ended(publishing)

    def _behind_others(self, entry: Entry) -> Outgoing:
        """The event's message, behind what was routed before it, of its worker, and is not confirmed.

        Raises BusUnavailableError if that may be lost with the connection: it comes first.
        """
        before = [each for each in self._late.items() if each[1].event.stream == entry.event.stream]
        if not before:
            return entry.message
        publishing, last = max(before, key=lambda each: each[1].number)
        if not publishing.done():
            return replace(entry.message, behind=last.message.message_id)
        if not publishing.cancelled() and isinstance(publishing.exception(), BusUnavailableError):
            raise BusUnavailableError("the event before this one may be lost with its connection")
        return entry.message

    async def _await_late(self, entry: Entry, publishing: asyncio.Task[None]) -> None:
        try:
            await asyncio.wait((publishing,), timeout=LATE)
            if not publishing.done():
                await self._probe()
            if publishing.done():
                publishing.result()
                self._taken(entry)
            else:
                self._give_up(entry, f"not confirmed within {LATE:g} s")
        except NotTakenError as error:
            self._give_up(entry, str(error))
        except BusUnavailableError:
            self._in_order.put(entry)  # the connection was lost, and with it perhaps what other queues had
        finally:
            self._late.pop(publishing, None)
            await ended(publishing)

    def _taken(self, entry: Entry) -> None:
        entry.done()
        before = self._given_up.get(entry.event.type)
        if before is not None and self._now() - before.last >= TROUBLE:
            del self._given_up[entry.event.type]
            log.info("events are taken again", type=entry.event.type, given_up=before.events)

    def _give_up(self, entry: Entry, cause: str) -> None:
        event, now = entry.event, self._now()
        entry.done()
        self.given_up += 1
        of_type = self._given_up.setdefault(event.type, GivenUp(now, now, event, cause))
        of_type.last, of_type.event, of_type.cause = now, event, cause
        of_type.events += 1
        log.warning(
            "event given up for a subscriber",
            **about_event(event),
            cause=cause,
        )
