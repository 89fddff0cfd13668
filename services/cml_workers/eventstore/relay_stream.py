"""The relay's stream: each event says how far the relay has published; the last one counts.

It lies in the event store, beside what it is about: whatever happens to a database, what was published is not published again.
It begins before the first event of any worker. So where there are workers' events and not this stream, it is lost, or an
earlier version of the system kept the checkpoint elsewhere.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from uuid import UUID

from cml_workers.eventstore.anchor import Anchor
from cml_workers.eventstore.names import WORKER_STREAMS, is_workers
from cml_workers.eventstore.port import (
    NO_STREAM,
    CaughtUp,
    EventStore,
    NewEvent,
    StoreConfigurationError,
    StoredEvent,
    StoreForbiddenError,
    StoreUnavailableError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)
from cml_workers.eventstore.quarantine import Waiting

RELAY_STREAM = "cml_relay"
SAVED = "cml.relay.saved.v1"
KEEP = 10
"""Events of the stream that are kept; ``deploy/kurrentdb/relay-stream.json`` says so to KurrentDB."""
NOBODY: Mapping[str, Waiting] = MappingProxyType({})


class NotBegunError(ConnectionError):
    """The stream is not there, and whether that is because the system is new only the relay may find out: try again."""


@dataclass(frozen=True, slots=True)
class Saved:
    """``position``: all up to it was published, None: nothing was; ``revision``: of the event that says so.

    ``waiting``: by stream, the workers of which it was not, as they wait in quarantine; ``anchor``: the last event published.
    """

    position: str | None
    revision: int
    waiting: Mapping[str, Waiting] = field(default_factory=dict)
    anchor: Anchor | None = None


async def load_saved(store: EventStore) -> Saved | None:
    """What was saved last; None if there is no stream. Raises StoreUnavailableError."""
    try:
        last = await store.last(RELAY_STREAM)
    except (StreamNotFoundError, StreamDeletedError):
        return None
    content = json.loads(last.data)
    waiting = {
        stream: Waiting(each["first"], each["last"]) for stream, each in content.get("waiting", {}).items()
    }
    return Saved(content["position"], last.revision, waiting, Anchor.parsed(content.get("anchor")))


async def append_saved(
    store: EventStore,
    position: str | None,
    anchor: Anchor | None,
    event_id: UUID,
    *,
    expected: int,
    waiting: Mapping[str, Waiting] = NOBODY,
) -> int:
    """Save it, over what was read at revision ``expected``; return the new revision.

    Raises:
        WrongExpectedVersionError: somebody else has saved meanwhile.
        StoreUnavailableError: not known whether it was saved.
        StoreConfigurationError: we may not, or the stream has a tombstone.
    """
    content: dict[str, object] = {"position": position, **({"anchor": str(anchor)} if anchor else {})}
    if waiting:
        content["waiting"] = {stream: asdict(each) for stream, each in waiting.items()}
    event = NewEvent(event_id, SAVED, json.dumps(content).encode(), b"{}")
    try:
        return await store.append(RELAY_STREAM, [event], expected=expected)
    except StreamDeletedError as error:
        raise StoreConfigurationError(f"the relay can save nothing any more: {error}") from error


async def begin(
    store: EventStore, position: str | None, event_id: UUID, anchor: Anchor | None = None
) -> Saved | None:
    """Begin the stream, unless somebody else does; what is saved now. Raises as ``append_saved`` does, but for the conflict."""
    with suppress(WrongExpectedVersionError):  # a replica showed what was, or somebody was faster
        await append_saved(store, position, anchor, event_id, expected=NO_STREAM)
    return await load_saved(store)


async def begin_if_new(store: EventStore, new_id: Callable[[], UUID]) -> Saved | None:
    """What is saved now. The stream of a system without a worker begins here; None: it should be there, and is not.

    Raises as ``begin`` does.
    """
    saved = await load_saved(store)
    if saved is None and not await _has_workers(store):
        saved = await begin(store, None, new_id())
    return saved


async def ensure_begun(store: EventStore, new_id: Callable[[], UUID]) -> None:
    """For who appends the first event of a worker: the stream begins before it.

    Raises:
        NotBegunError: it has not, and our user may not look for workers' events. The relay's may, and begins it.
        As ``begin`` does.
    """
    if await load_saved(store) is not None:
        return
    try:
        has_workers = await _has_workers(store)
    except StoreForbiddenError as error:
        raise NotBegunError(f"the relay has not begun its stream {RELAY_STREAM} yet") from error
    if not has_workers:
        await begin(store, None, new_id())


async def _has_workers(store: EventStore) -> bool:
    async with aclosing(store.follow(after=None, prefix=WORKER_STREAMS)) as items:
        async for item in items:
            if isinstance(item, CaughtUp):
                return False
            if isinstance(item, StoredEvent) and is_workers(item.stream):
                return True
    raise StoreUnavailableError("the event store is closed")
