"""A collector that is dead, slow or away delays nothing; what it does not take is counted, and a process still ends in time."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from cml_contracts.client import WorkerClient
from cml_embedded.ec2_simulator import DEMO_IMAGES
from cml_workers.foundation.metrics import REGISTRY
from cml_workers.tracing import exporting
from cml_workers.tracing.exporting import Exporting, exported
from cml_workers.tracing.tracer import Spans, ended
from support.collector import collecting
from support.given import create
from support.running import RunningSystem

SLOW = 20.0
"""Seconds for each answer of a collector that is slow."""
IN_TIME = 12.0
"""Seconds for what takes two without a collector, as a process that ends stops its roles first."""


@pytest.fixture
def silent() -> Iterator[str]:
    """A collector that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def dead() -> str:
    """Nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def counted() -> dict[str, float]:
    """Spans so far, by what became of them."""
    results = ("exported", "dropped")
    return {each: REGISTRY.get_sample_value("cml_spans_total", {"result": each}) or 0.0 for each in results}


def more_than(before: dict[str, float]) -> dict[str, float]:
    return {result: count - before[result] for result, count in counted().items()}


def test_what_a_collector_takes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = counted()
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "7")
        with exported("test", {}) as tracer:
            for number in range(50):
                tracer.start_span(f"span {number}").end()
        assert [each.name for each in collector.spans] == [f"span {number}" for number in range(50)]
        assert {each.service for each in collector.spans} == {"test"}
    assert more_than(before) == {"exported": 50, "dropped": 0}


@pytest.mark.parametrize("collector", ["silent", "dead"])
def test_a_collector_that_does_not_answer_delays_nothing_and_what_is_too_much_is_counted(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, collector: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", request.getfixturevalue(collector))
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    before, longest = counted(), 0.0
    with exported("test", {}) as tracer:
        for _ in range(1000):
            began = time.monotonic()
            tracer.start_span("span").end()
            longest = max(longest, time.monotonic() - began)
        ending = time.monotonic()
    assert time.monotonic() - ending < exporting.ENDING + 3
    assert longest < 1  # an export takes ten
    assert more_than(before)["exported"] == 0
    assert more_than(before)["dropped"] == 1000


def test_a_slow_collector_and_one_that_goes_away_delay_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before, slow = counted(), threading.Event()

    def answers() -> int:
        if slow.is_set():
            time.sleep(SLOW)
        return 200

    with collecting() as collector:
        collector.answers = answers
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        with exported("test", {}) as tracer:
            tracer.start_span("taken").end()
            while more_than(before)["exported"] < 1:
                time.sleep(0.01)
            slow.set()
            began = time.monotonic()
            for _ in range(100):
                tracer.start_span("too late").end()
                time.sleep(0.001)
            ending = time.monotonic()
            assert ending - began < SLOW / 2
        assert time.monotonic() - ending < exporting.ENDING + 3
    assert more_than(before) == {"exported": 1, "dropped": 100}


def test_why_spans_are_dropped_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector, capture_logs() as logs:
        collector.answers = lambda: 401
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
        with exported("test", {}) as tracer:
            for _ in range(3):
                tracer.start_span("refused").end()
    (line,) = (each for each in logs if each["event"].startswith("spans are dropped"))
    assert "401" in line["cause"]


def test_a_collector_that_comes_back_gets_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = threading.Event()
    refusing.set()
    with collecting() as collector:
        collector.answers = lambda: 400 if refusing.is_set() else 200
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        before = counted()
        with exported("test", {}) as tracer:
            tracer.start_span("refused").end()
            while more_than(before)["dropped"] < 1:
                time.sleep(0.01)
            refusing.clear()
            tracer.start_span("taken").end()
        assert [each.name for each in collector.spans] == ["taken"]
    assert more_than(before) == {"exported": 1, "dropped": 1}


def test_what_a_killed_process_was_in_is_exported_with_what_is_within_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        with exported("test", {}) as tracer:
            spans = Spans(tracer)
            with spans.span("ends", {}, parent=None, link=None, outside=False):
                with spans.span("within", {}, parent=None, link=None, outside=False):
                    context = spans.here()
                kept_on = spans.begin("ends later", {})
            never = spans.begin("never ends", {})
            with ended(never):
                with spans.span("within what never ends", {}, parent=None, link=None, outside=False):
                    pass
                past = datetime.now(UTC)
                spans.past("of another process", {}, past, past, context)
                collector.until(lambda: len(collector.spans) == 3)
                kept_on.end()
                collector.until(lambda: len(collector.spans) == 4)
                seen = {each.name for each in collector.spans}
    assert seen == {"ends", "within", "ends later", "of another process"}
    assert len(collector.spans) == 6  # those of a process that is not killed come at its end


def test_an_exporter_that_raises_ends_nothing() -> None:
    class Broken(InMemorySpanExporter):
        def export(self, spans: Any) -> Any:
            raise RuntimeError("planted")

    before = counted()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Exporting(Broken(), most=10, batch=1, every=0.01))
    for _ in range(2):
        provider.get_tracer("test").start_span("span").end()
    provider.shutdown()
    assert more_than(before) == {"exported": 0, "dropped": 2}


@pytest.mark.parametrize("collector", ["silent", "dead"])
async def test_a_system_works_and_ends_in_time_without_its_collector(
    request: pytest.FixtureRequest, tmp_path: Path, collector: str
) -> None:
    system = RunningSystem(
        tmp_path / "data",
        CML_HEALTH_PORT="0",
        OTEL_EXPORTER_OTLP_ENDPOINT=request.getfixturevalue(collector),
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    try:
        endpoints = await asyncio.to_thread(system.start)
        async with WorkerClient(endpoints["amqp"]) as client:
            created = await client.send(create(ami_id=DEMO_IMAGES["us-east-1"]))
        assert created.outcome == "succeeded"

        def dropped() -> float:
            with urlopen(f"{endpoints['health']}/metrics", timeout=30) as answer:
                families = text_string_to_metric_families(answer.read().decode())
            return sum(
                sample.value
                for family in families
                for sample in family.samples
                if sample.name == "cml_spans_total" and sample.labels["result"] == "dropped"
            )

        async with asyncio.timeout(60):
            while await asyncio.to_thread(dropped) == 0:
                await asyncio.sleep(0.1)
        began = time.monotonic()
        assert await asyncio.to_thread(system.stop) == 0
        assert time.monotonic() - began < IN_TIME
    finally:
        system.kill()
    assert system.log().count("spans are dropped: the collector does not take them") == 1
    assert "Traceback" not in system.log()
