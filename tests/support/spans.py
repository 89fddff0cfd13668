"""Spans as they are made in this process, for tests that need no collector."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from cml_workers.foundation import tracing
from cml_workers.tracing.tracer import Spans


class Kept:
    """The spans that have ended; ``spans`` makes them."""

    def __init__(self, sampler: Sampler) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.spans = Spans(provider.get_tracer("test"))

    def named(self, name: str) -> list[ReadableSpan]:
        return [each for each in self.all if each.name == name]

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())


@contextmanager
def kept(sampler: Sampler = ALWAYS_ON) -> Iterator[Kept]:
    """Those of the process are kept meanwhile."""
    spans = Kept(sampler)
    tracing.use(spans.spans)
    try:
        yield spans
    finally:
        tracing.use(None)


def id_of(span: ReadableSpan) -> tuple[int, int]:
    """Its trace and its own id."""
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    return (span.parent.trace_id, span.parent.span_id) if span.parent else None


def links_of(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(each.context.trace_id, each.context.span_id) for each in span.links]
