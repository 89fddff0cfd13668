"""Where spans go: to an OTLP collector, in batches, by a thread that nothing waits for.

What the collector does not take in time is dropped and counted: the queue has a limit, and so has the time at the end.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Tracer

from cml_workers.foundation.metrics import SPANS
from cml_workers.foundation.secrets import redacted

log = structlog.get_logger(__name__)

MOST_OF_A_REASON = 300
"""Characters."""
ENDING = 2.0
"""Seconds in which what is left is exported when the process ends; then it is dropped."""


class _Reason(logging.Handler):
    """What the exporter says of the batch that it could not export: a line for each try, of which the last one is kept."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.said = redacted(record.getMessage())[:MOST_OF_A_REASON]


_reason = _Reason()


class Exporting(SpanProcessor):
    """Exports spans that have ended, and with them the outermost one of this process that they are within.

    So a process that is killed leaves no span whose parent nobody gets. ``most``: spans that wait at most; ``batch``: in one request;
    ``every``: seconds between two requests where they come slowly.
    """

    def __init__(self, exporter: SpanExporter, *, most: int, batch: int, every: float) -> None:
        self._exporter = exporter
        self._most, self._batch, self._every = most, batch, every
        self._outermost: dict[int, int] = {}
        """Of the spans that have not ended: the one of this process that each is within, itself if there is none."""
        self._held: dict[int, list[ReadableSpan]] = {}
        """Spans that have ended, by the outermost one that has not."""
        self._holds = 0
        self._waiting: deque[ReadableSpan] = deque()
        self._under_way = 0
        self._due = threading.Event()
        self._ends = False
        self._given_up = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="exports spans", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - by its name
        """A span begins."""
        own = span.get_span_context().span_id
        within = span.parent.span_id if span.parent is not None and not span.parent.is_remote else own
        self._outermost[own] = self._outermost.get(within, own)

    def on_end(self, span: ReadableSpan) -> None:
        """Take the span, if there is room for it."""
        if span.context is None:
            return
        own = span.context.span_id
        outermost = self._outermost.pop(own, own)
        within = self._held.pop(own, [])
        self._holds -= len(within)
        if len(self._waiting) + len(within) + self._holds >= self._most or self._ends:
            SPANS.labels("dropped").inc(len(within) + 1)
        elif outermost in self._outermost:
            self._held.setdefault(outermost, []).append(span)
            self._holds += 1
        else:
            self._waiting += [span, *within]
        if len(self._waiting) >= self._batch:
            self._due.set()

    def shutdown(self) -> None:
        """Export what is left, as far as that takes no longer than ``ENDING``."""
        self._ends = True
        self._due.set()
        self._thread.join(ENDING)
        self._given_up = True
        self._exporter.shutdown()
        left = len(self._waiting) + self._under_way + self._holds
        self._waiting.clear()
        if left:
            SPANS.labels("dropped").inc(left)
            log.warning("spans were not exported before the end", spans=left)

    def _run(self) -> None:
        while not (self._ends and not self._waiting):
            self._due.wait(self._every)
            self._due.clear()
            while self._waiting:
                self._export([self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch))])

    def _export(self, batch: list[ReadableSpan]) -> None:
        self._under_way = len(batch)
        try:
            done = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 - whatever a library raises, the next batch is tried
            done = False
            log.warning("spans cannot be exported", cause=type(error).__name__)
        if self._given_up:
            return  # counted already
        self._under_way = 0
        SPANS.labels("exported" if done else "dropped").inc(len(batch))
        if done is self._failing:
            self._failing = not done
            if done:
                log.warning("spans are exported again")
            else:
                log.warning("spans are dropped: the collector does not take them", cause=_reason.said or None)


@contextmanager
def exported(service: str, attributes: Mapping[str, str]) -> Iterator[Tracer]:
    """A tracer, configured by the standard variables of OpenTelemetry; ``service``: the name of this one, where none of them says it."""
    # A line for each try; what came of them is said and counted here.
    for library in ("opentelemetry", "urllib3"):
        logging.getLogger(library).propagate = False
    logging.getLogger("opentelemetry").addHandler(_reason)
    named = Resource.create(attributes)
    if str(named.attributes.get(SERVICE_NAME)).startswith("unknown_service"):
        named = named.merge(Resource({SERVICE_NAME: service}))
    provider = TracerProvider(resource=named, shutdown_on_exit=False)
    provider.add_span_processor(
        Exporting(
            OTLPSpanExporter(),
            most=_number("OTEL_BSP_MAX_QUEUE_SIZE", 10_000),
            batch=_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512),
            every=_number("OTEL_BSP_SCHEDULE_DELAY", 1_000) / 1_000,
        )
    )
    try:
        yield provider.get_tracer("cml-workers")
    finally:
        provider.shutdown()


def _number(variable: str, default: int) -> int:
    """A positive number of the environment. OpenTelemetry says of others: the default."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and int(text) > 0 else default
