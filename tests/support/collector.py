"""A collector of traces: an HTTP server that takes OTLP in protobuf, and what it got."""

import gzip
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


@dataclass(frozen=True, slots=True)
class Seen:
    """A span as it was exported; times in seconds since 1970; ``parent``: empty for a root; ``links``: trace and span."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    start: float
    end: float
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    is_error: bool
    service: str


@dataclass
class Collector:
    """``answers``: called before each request is answered; its status, 200 if none is given."""

    url: str = ""
    spans: list[Seen] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    answers: Callable[[], int] = lambda: 200

    def traced(self, trace: str) -> list[Seen]:
        """The spans of one trace, as they began."""
        return sorted((each for each in self.spans if each.trace == trace), key=lambda each: each.start)

    def until(self, done: Callable[[], bool], patience: float = 30.0) -> None:
        """Wait until what was exported is enough."""
        end = time.monotonic() + patience
        while not done():
            assert time.monotonic() < end, sorted(each.name for each in self.spans)
            time.sleep(0.05)

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [
                    Seen(
                        name=span.name,
                        trace=span.trace_id.hex(),
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        kind=span.kind,
                        start=span.start_time_unix_nano / 1e9,
                        end=span.end_time_unix_nano / 1e9,
                        attributes=_values(span.attributes),
                        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                        is_error=span.status.code == 2,
                        service=service,
                    )
                    for span in scope.spans
                ]


def roots(spans: Iterable[Seen]) -> list[str]:
    """The names of those without a parent."""
    return [each.name for each in spans if not each.parent]


def orphans(spans: Iterable[Seen]) -> list[str]:
    """The names of those whose parent was not exported."""
    known = {each.id for each in spans}
    return [each.name for each in spans if each.parent and each.parent not in known]


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """Run one; ``port`` 0: a free one."""
    collector = Collector()

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = collector.answers()
            if status == 200:
                collector.take(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Taking) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        collector.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield collector
        finally:
            server.shutdown()


def _values(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")


if __name__ == "__main__":
    with collecting() as running:
        print(running.url, flush=True)
        threading.Event().wait()
