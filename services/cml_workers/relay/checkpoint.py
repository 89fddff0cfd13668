"""The relay's checkpoint, in the relay's stream; where it is lost, or another store's, an operator says where to begin."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Literal, Protocol
from uuid import UUID

import structlog

from cml_workers.eventstore.anchor import Anchor, Recognition
from cml_workers.eventstore.names import WORKER_STREAMS
from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    EventStore,
    StoreConfigurationError,
    StoredEvent,
    StoreUnavailableError,
    StreamDeletedError,
    WrongExpectedVersionError,
)
from cml_workers.eventstore.quarantine import Waiting
from cml_workers.eventstore.relay_stream import (
    KEEP,
    RELAY_STREAM,
    Saved,
    append_saved,
    begin,
    begin_if_new,
)

log = structlog.get_logger(__name__)

TRIM_EVERY = 100
"""Checkpoints between two times that the stream is trimmed."""
FIRST_LOOKS, LOOKS_AGAIN = 3, 15.0
"""How often, a second apart, it is looked for before it is taken for lost, as a replica may lag; seconds between looks after that."""
LOST = (
    f"the stream {RELAY_STREAM} is lost, so it is not known which events were published, and none is: set "
    "CML_RELAY_BEGIN=end to publish what comes from now on, or CML_RELAY_BEGIN=beginning to publish all of them again; or "
    "DATABASE_URL, once, if an earlier version kept its checkpoint there"
)
REMEDY = (
    "start the relay once with CML_RELAY_BEGIN=end to publish what comes from now on, or CML_RELAY_BEGIN=beginning to publish all "
    "events again"
)
"""Where the checkpoint is another store's, and this is the right one."""


class Earlier(Protocol):
    """Where earlier versions kept the checkpoint."""

    async def load(self) -> str | None:
        """It; None if it is not there. Raises ConnectionError: try again."""
        ...

    async def forget(self) -> None:
        """Take it away, as it is taken over. Raises ConnectionError."""
        ...


class RelayCheckpoint:
    """The position that all before is published, but for the workers in ``waiting``; written only over the one that was read.

    ``begins``: where to begin if it is lost, or another store's; None: ask, which ``problem`` does.
    """

    def __init__(
        self,
        store: EventStore,
        *,
        new_id: Callable[[], UUID],
        begins: Literal["beginning", "end"] | None = None,
        earlier: Earlier | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.waiting: dict[str, Waiting] = {}
        """By stream, of which workers events were passed that are not published: saved with the position, and loaded with it."""
        self._store = store
        self._new_id = new_id
        self._begins = begins
        self._earlier = earlier
        self._sleep = sleep
        self._recognition = Recognition("the relay", REMEDY, sleep)
        self._revision = NO_STREAM
        self._anchor: Anchor | None = None
        self._saves = 0
        self._looks = 0

    def problem(self) -> str | None:
        """What is wrong."""
        if self._looks >= FIRST_LOOKS:
            return LOST
        return "its checkpoint is looked for" if self._looks else self._recognition.problem

    async def load(self) -> str | None:
        """The position to follow from, None: the beginning.

        Does not return while it is lost, or another store's, and nobody has said where to begin.

        Raises ConnectionError (try again) and StoreConfigurationError.
        """
        saved = await self._known()
        while not await self._recognition.passes(saved.anchor, self._store, saved.position):
            saved = await self._known()
            if self._recognition.problem is not None and self._begins is not None:
                log.warning(
                    "the checkpoint is another event store's; publishing begins as CML_RELAY_BEGIN says",
                    at=self._begins,
                )
                with suppress(WrongExpectedVersionError):  # another relay was faster
                    await append_saved(
                        self._store, *await self._begin_at(), self._new_id(), expected=saved.revision
                    )
                saved = await self._known()
        self._revision, self._anchor = saved.revision, saved.anchor
        self.waiting.clear()
        self.waiting.update(saved.waiting)
        return saved.position

    async def _known(self) -> Saved:
        """What is saved, as soon as there is anything."""
        while (saved := await self._found()) is None:
            self._looks += 1
            if self._looks == FIRST_LOOKS:
                log.error("nothing is published", cause=LOST)
            await self._sleep(1.0 if self._looks < FIRST_LOOKS else LOOKS_AGAIN)
        self._looks = 0
        return saved

    async def save(self, position: str | None, anchor: Anchor | None = None) -> None:
        """Save it, over the one that was read; ``anchor``: the last event since then. Raises StoreUnavailableError (load again) and StoreConfigurationError."""
        self._anchor = anchor or self._anchor
        try:
            self._revision = await append_saved(
                self._store,
                position,
                self._anchor,
                self._new_id(),
                expected=self._revision,
                waiting=self.waiting,
            )
        except WrongExpectedVersionError as error:
            raise StoreUnavailableError(f"another relay has saved how far it is: {error}") from error
        if self._saves % TRIM_EVERY == 0:
            await self._trim()
        self._saves += 1

    async def _found(self) -> Saved | None:
        saved = await begin_if_new(self._store, self._new_id)
        if saved is None and self._earlier is not None:
            position = await self._earlier.load()
            if position is not None:
                log.info("the checkpoint of an earlier version is taken over", position=position)
                saved = await begin(self._store, position, self._new_id())
                await self._earlier.forget()
        if saved is None and self._begins is not None and self._looks >= FIRST_LOOKS - 1:
            log.warning("the checkpoint is lost; publishing begins as CML_RELAY_BEGIN says", at=self._begins)
            position, anchor = await self._begin_at()
            saved = await begin(self._store, position, self._new_id(), anchor)
        return saved

    async def _begin_at(self) -> tuple[str | None, Anchor | None]:
        """Where ``begins`` says: before the first event, or behind the last one that there is now."""
        position, anchor = None, None
        if self._begins == "beginning":
            return position, anchor
        async with aclosing(self._store.follow(after=None, prefix=WORKER_STREAMS)) as items:
            async for item in items:
                if isinstance(item, CaughtUp):
                    return position, anchor
                position = item.position
                if isinstance(item, StoredEvent):
                    anchor = Anchor.of(item)
        raise StoreUnavailableError("the event store is closed")

    async def _trim(self) -> None:
        """Old checkpoints are of no use; that they stay is no reason not to publish."""
        try:
            await self._store.trim(RELAY_STREAM, KEEP)
        except (StoreConfigurationError, StoreUnavailableError, StreamDeletedError) as error:
            log.warning("old checkpoints of the relay stay in the event store", cause=str(error))
