"""The event store with spans: one for each append that something caused, and so none for a follower's own checkpoints."""

from collections.abc import Sequence

from opentelemetry.trace import SpanKind

from cml_workers.eventstore.port import EventStore, NewEvent
from cml_workers.foundation.tracing import Attributes
from cml_workers.tracing.tracer import Spans, ended


class TracedStore:
    """See ``EventStore``; everything but an append is the store's own."""

    def __init__(self, store: EventStore, spans: Spans) -> None:
        self._store = store
        self._spans = spans
        self.read, self.last, self.trim = store.read, store.last, store.trim
        self.follow, self.end, self.is_after = store.follow, store.end, store.is_after
        self.ping, self.close = store.ping, store.close

    async def append(self, stream: str, events: Sequence[NewEvent], *, expected: int) -> int:
        """See ``EventStore.append``."""
        if self._spans.here() is None:
            return await self._store.append(stream, events, expected=expected)
        about: Attributes = {
            "cml.stream": stream.partition("-")[0],
            "cml.events": " ".join(event.type for event in events),
            "cml.revision": expected + 1,
        }
        with ended(self._spans.begin("append", about, kind=SpanKind.CLIENT)):
            return await self._store.append(stream, events, expected=expected)
