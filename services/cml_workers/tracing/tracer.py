"""Spans as OpenTelemetry has them: their parents, links and attributes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

import structlog
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
    use_span,
)
from opentelemetry.trace import Tracer as OtelTracer

from cml_workers.foundation.tracing import (
    ATTEMPT,
    COMMAND,
    COMMAND_ID,
    INSTANCE,
    PROBLEM,
    WORKER,
    Attributes,
    as_traceparent,
)

_BOUND: Mapping[str, str] = {
    "worker_id": WORKER,
    "command_id": COMMAND_ID,
    "command": COMMAND,
    "instance_id": INSTANCE,
}
"""What handlers bind to their log lines, and its attribute."""
_INHERITED = frozenset({*_BOUND.values(), ATTEMPT})
"""What a span has of the one that it is within."""


class _Span:
    def __init__(self, span: Span) -> None:
        self._span = span

    def put(self, attributes: Attributes, /) -> None:
        put(self._span, attributes)


class Spans:
    """Makes spans, see ``foundation.tracing``; ``tracer``: OpenTelemetry's."""

    def __init__(self, tracer: OtelTracer) -> None:
        self._tracer = tracer

    @contextmanager
    def span(
        self, name: str, about: Attributes, *, parent: str | None, link: str | None, outside: bool
    ) -> Iterator[_Span]:
        """See ``foundation.tracing.span``."""
        kind = SpanKind.CLIENT if outside else SpanKind.INTERNAL
        with ended(self.begin(name, about, kind=kind, parent=parent, link=link)) as span:
            yield _Span(span)

    def past(
        self, name: str, about: Attributes, since: datetime, until: datetime, parent: str | None
    ) -> None:
        """See ``foundation.tracing.past``."""
        span = self.begin(name, about, parent=parent, since=since)
        span.end(_nanoseconds(max(since, until)))

    def here(self) -> str | None:
        """See ``foundation.tracing.here``."""
        span = get_current_span()
        return written(span) if span.get_span_context().is_valid else None

    def begin(
        self,
        name: str,
        about: Attributes,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: str | None = None,
        link: str | None = None,
        since: datetime | None = None,
    ) -> Span:
        """A span that is not the current one, and has to be ended; one of the past, ``since`` then, is its parent's alone."""
        current = get_current_span()
        inside, given = current.get_span_context(), read(parent)
        context, trace, others = None, inside.trace_id, [read(link)]
        if given.is_valid and (since is not None or given.trace_id != trace):
            context, trace = set_span_in_context(NonRecordingSpan(given), Context()), given.trace_id
            others.append(inside)
        bound = structlog.contextvars.get_contextvars()
        known = {name: str(bound[each]) for each, name in _BOUND.items() if bound.get(each) is not None}
        if known and current.is_recording():
            current.set_attributes(known)  # its handler has found them out
        inherited = getattr(current, "attributes", None) or {}
        span = self._tracer.start_span(
            name,
            context,
            kind,
            {**{name: inherited[name] for name in _INHERITED & inherited.keys()}, **known},
            [Link(each) for each in others if each.is_valid and each.trace_id != trace],
            None if since is None else _nanoseconds(since),
        )
        put(span, about)
        return span


@contextmanager
def ended(span: Span) -> Iterator[Span]:
    """Have the span be the current one, and end it, with what went wrong."""
    try:
        with use_span(span, record_exception=False, set_status_on_exception=False):
            yield span
    except BaseException as error:
        failed(span, error)
        raise
    finally:
        span.end()


def failed(span: Span, error: BaseException) -> None:
    """Say of the span what went wrong, by its type and code: an error's text quotes what it is about."""
    problem = getattr(error, "problem", error)
    code = getattr(problem, "code", None)
    put(span, {"error.type": type(error).__name__, PROBLEM: str(code) if isinstance(code, str) else None})
    if problem is not None and isinstance(error, Exception):  # not one that only says: later
        span.set_status(Status(StatusCode.ERROR))


def put(span: Span, attributes: Attributes) -> None:
    """Without those that are None."""
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})


def written(span: Span) -> str:
    """Its traceparent."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def read(traceparent: object) -> SpanContext:
    """What a traceparent says; one that is not valid if it says nothing."""
    text = as_traceparent(traceparent)
    if text is None:
        return INVALID_SPAN_CONTEXT
    _, trace, span, flags = text.split("-")
    return SpanContext(
        int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16) & 3)
    )


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1_000
