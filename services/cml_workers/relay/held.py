"""Workers whose events wait in the relay's quarantine, and how they go on, in their order.

The first event that cannot be published is recorded in the quarantine before the checkpoint passes it; those behind it pass, too.
Once it was decided that the worker goes on, they are read from its stream and published, and then it is one like all others.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import structlog

from cml_workers.bus.port import Outgoing
from cml_workers.eventstore.names import about_stream, is_workers
from cml_workers.eventstore.port import (
    EventStore,
    StoredEvent,
    StoreUnavailableError,
    StreamDeletedError,
    StreamNotFoundError,
)
from cml_workers.eventstore.quarantine import (
    LOOK_EVERY,
    NOT_AN_EVENTS_FAULT,
    OURSELVES,
    RELAY,
    Broken,
    Case,
    Decision,
    NotHeldError,
    Quarantine,
    Waiting,
    What,
    warning_of,
)
from cml_workers.foundation.tasks import Tasks
from cml_workers.relay.progress import Progress

log = structlog.get_logger(__name__)

TOGETHER = 100
"""Events of a worker that goes on that are published before the next ones are read."""


class Held:
    """Those workers; ``waiting``: of which events were passed and not published, which is saved with the checkpoint.

    ``message_of``: an event as it is published, raises where it cannot be. ``put``: publish it behind what was put before, and
    pass a place of that progress when it is out. ``changed``: ``waiting`` must be saved.
    """

    def __init__(
        self,
        store: EventStore,
        waiting: dict[str, Waiting],
        *,
        message_of: Callable[[StoredEvent], Outgoing],
        put: Callable[[StoredEvent, Outgoing, Progress], None],
        changed: Callable[[], None],
        tasks: Tasks,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._store = store
        self._waiting = waiting
        self._message_of = message_of
        self._put = put
        self._changed = changed
        self._tasks = tasks
        self._sleep = sleep
        self._quarantine = Quarantine(store, RELAY)
        self._at: str | None = None
        """The position up to which all was put or passed."""
        self._out: dict[str, int] = {}
        """Of workers that went on since we began: the last revision that was published so, which the store delivers again."""
        self._going_on: set[str] = set()
        self._looking = False
        self._not_ours = 0

    def counts(self) -> Mapping[str, int]:
        """Events of streams that are not ours, since the start; and workers that wait in quarantine."""
        return {"events_not_ours": self._not_ours, "workers_held": len(self._waiting)}

    def warning(self) -> str | None:
        """Which workers wait for somebody to decide."""
        return warning_of(self._quarantine.undecided)

    async def begin(self, position: str | None) -> None:
        """Begin behind that position, as ``waiting`` was saved with it; what this version can publish goes on by itself.

        Raises as ``Quarantine.load`` does.
        """
        self._at = position
        self._out.clear()
        self._going_on.clear()
        self._looking = False
        await self._quarantine.load()
        for case in self._quarantine.undecided:
            first = case.broken.revision
            self._waiting.setdefault(case.broken.stream, Waiting(first, first))
            if await self._can_publish(case):
                decision = Decision(What.TAKEN_UP, OURSELVES, None, "this version can publish it")
                with suppress(NotHeldError):  # somebody else was quicker
                    await self._quarantine.decide(case.broken.stream, first, decision)
        self._look()

    def passes(self, event: StoredEvent) -> bool:
        """Whether the event is not to be published: it is not ours, it waits, it is skipped, or it was published before."""
        if not is_workers(event.stream):
            self._not_ours += 1
            return True
        waiting = self._waiting.get(event.stream)
        if waiting is None or event.revision < waiting.first:
            return event.revision <= self._out.get(event.stream, -1) or self._quarantine.skips(
                event.stream, event.revision
            )
        self._waiting[event.stream] = waiting.up_to(event.revision)
        return True

    async def hold(self, event: StoredEvent, error: Exception) -> None:
        """The worker waits from this event on. Raises as ``Quarantine.load`` does."""
        await self._hold(Broken.of(event, error), event.revision)
        self._look()

    def passed(self, position: str) -> None:
        """All up to there was put or has passed."""
        self._at = position

    async def _hold(self, broken: Broken, last: int) -> None:
        await self._quarantine.hold(broken)
        self._waiting[broken.stream] = Waiting(broken.revision, max(broken.revision, last))
        self._changed()

    async def _can_publish(self, case: Case) -> bool:
        broken = case.broken
        try:
            (event,) = await self._store.read(broken.stream, after=broken.revision - 1, limit=1)
            self._message_of(event)
        except NOT_AN_EVENTS_FAULT:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, it still cannot be published
            return False
        return True

    def _look(self) -> None:
        if self._waiting and not self._looking:
            self._looking = True
            self._tasks.start(self._keep_looking(), "looks for decisions about the relay's quarantine")

    async def _keep_looking(self) -> None:
        while self._waiting:
            self._go_on()
            await self._sleep(LOOK_EVERY)
            try:
                await self._quarantine.load()
            except ConnectionError as error:
                log.info("the relay's quarantine is looked at again", cause=str(error))
        self._looking = False

    def _go_on(self) -> None:
        """Let those go on about whom it was decided, once all before their broken event has been put."""
        for stream in self._waiting.keys() - self._going_on:
            case = self._quarantine.cases.get(stream)
            if self._quarantine.holds(stream) or (case is not None and not self._is_behind(case)):
                continue
            self._going_on.add(stream)
            self._tasks.start(self._catch_up(stream), f"publishes what waited of {stream}")

    def _is_behind(self, case: Case) -> bool:
        return self._at is not None and not self._store.is_after(case.broken.position, self._at)

    async def _catch_up(self, stream: str) -> None:
        try:
            while stream in self._waiting and not self._quarantine.holds(stream):
                try:
                    await self._publish_some(stream)
                except ConnectionError as error:
                    log.info("a worker goes on later", **about_stream(stream), cause=str(error))
                    await self._sleep(LOOK_EVERY)
        finally:
            self._going_on.discard(stream)

    async def _publish_some(self, stream: str) -> None:
        """Publish the next events that wait, and return when they are out; or find that there are no more."""
        first = self._waiting[stream].first
        if self._quarantine.omits(stream):
            self._goes_on(stream)
            return
        try:
            events = await self._store.read(stream, after=first - 1, limit=TOGETHER)
        except StreamNotFoundError as error:
            raise StoreUnavailableError(f"a replica lags behind: no {stream} yet") from error
        except StreamDeletedError as error:
            lost = self._quarantine.lost(stream, first, self._at, error)
            await self._hold(lost, self._waiting[stream].last)
            return
        if not events:
            waiting = self._waiting[stream]
            if waiting.first <= waiting.last:
                raise StoreUnavailableError(f"a replica lags behind: no {stream}@{waiting.first} yet")
            self._goes_on(stream)
            return
        progress, broken = Progress(), None
        for event in events:
            if not self._quarantine.skips(stream, event.revision):
                try:
                    message = self._message_of(event)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this event's
                    broken = Broken.of(event, error)
                    break
                self._put(event, message, progress)
            first = event.revision + 1
        while len(progress):
            await progress.moved.wait()
            progress.moved.clear()
        self._waiting[stream] = Waiting(first, self._waiting[stream].last)
        self._out[stream] = first - 1
        self._changed()
        if broken is not None:
            await self._hold(broken, self._waiting[stream].last)

    def _goes_on(self, stream: str) -> None:
        del self._waiting[stream]
        self._changed()
        log.info("a worker that waited in quarantine goes on", quarantine=RELAY, **about_stream(stream))
