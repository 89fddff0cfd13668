"""What is the parent of what, what is only linked, and what no header can do."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased

from cml_contracts.commands import StartCMLWorker, StopCMLWorker, TerminateCMLWorker
from cml_contracts.instance import InstanceState
from cml_contracts.results import ProblemCode
from cml_workers.bus.port import DeadLetter, Message, Retry, UnroutableError, Verdict
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.ec2_adapter.errors import EC2ThrottledException, Remedy
from cml_workers.eventstore.worker_streams import append, load
from cml_workers.foundation.tracing import TRACEPARENT, as_traceparent, here, span
from cml_workers.runtime.logs import in_its_trace
from cml_workers.tracing import exporting
from cml_workers.tracing.bus import traced
from cml_workers.tracing.store import TracedStore
from support.buses import emptied
from support.collector import collecting
from support.given import NOW, WORKER, instance, recorded
from support.given_adapter import Given, given
from support.histories import PENDING, REQUESTED
from support.recorder import Recorder, outgoing
from support.service import CREATE, opened
from support.service import WORKER as SERVED
from support.spans import Kept, id_of, kept, links_of, parent_of

__all__ = ["given"]

OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""A span of somebody else's trace."""
OF_OTHER = (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)


@pytest.fixture
def spans() -> Iterator[Kept]:
    with kept() as spans:
        yield spans


def test_a_line_of_the_log_names_its_trace(spans: Kept) -> None:
    assert in_its_trace(None, "info", {"event": "outside"}) == {"event": "outside"}
    with span("some", {}, parent=OTHER):
        line = in_its_trace(None, "info", {"event": "within"})
    assert line["trace_id"] == OTHER.split("-")[1]


@asynccontextmanager
async def consuming(url: str, spans: Kept, recorder: Recorder) -> AsyncIterator[RabbitBus]:
    await emptied(url)
    bus = traced(spans.spans)(url, name="test")
    bus.consume(LIFECYCLE_COMMANDS, recorder, prefetch=10)
    async with bus:
        yield bus


async def test_what_is_handled_is_a_child_of_what_was_sent_also_after_a_retry(
    embedded_amqp_url: str, spans: Kept
) -> None:
    recorder = Recorder()

    async def retried(message: Message) -> Verdict:
        return DeadLetter("no", ProblemCode.CONFLICT) if message.attempt else Retry(1)

    recorder.answer = retried
    async with consuming(embedded_amqp_url, spans, recorder) as bus:
        with span("caller", {}):
            await bus.publish(outgoing("m-1"))
        await recorder.until(2)
    (caller,), (sent,) = spans.named("caller"), spans.named("send cml.commands")
    first, second = spans.named(f"process {LIFECYCLE_COMMANDS.name}")
    (again,) = spans.named(f"send {LIFECYCLE_COMMANDS.retry_queue(1)}")
    assert parent_of(caller) is None
    assert parent_of(sent) == id_of(caller)
    assert parent_of(first) == parent_of(again) == id_of(sent)
    assert parent_of(second) == id_of(again)
    for each, verdict, code in ((first, "retried", None), (second, "dead_letter", "Conflict")):
        attributes = each.attributes or {}
        assert (attributes["cml.verdict"], attributes.get("cml.problem_code")) == (verdict, code)


@pytest.mark.parametrize(
    "header", ["x" * 300, "00-ab-cd-01", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", OTHER.upper(), 7]
)
async def test_a_header_that_is_no_trace_context_is_ignored(
    embedded_amqp_url: str, spans: Kept, header: object
) -> None:
    recorder = Recorder()
    async with consuming(embedded_amqp_url, spans, recorder) as bus:
        await bus.publish(outgoing("m-1", headers={TRACEPARENT: header}))
        (message,) = await recorder.until(1)
    (sent,) = spans.named("send cml.commands")
    assert parent_of(sent) is None
    assert links_of(sent) == []
    assert as_traceparent(message.headers[TRACEPARENT]) is not None  # its handler's


async def test_what_is_redriven_is_linked_to_where_it_was(embedded_amqp_url: str, spans: Kept) -> None:
    """Whoever redrives it has a span of their own, of which it is a child."""
    recorder = Recorder()
    async with consuming(embedded_amqp_url, spans, recorder) as bus:
        with span("redrives", {}):
            await bus.publish(outgoing("m-1", headers={TRACEPARENT: OTHER}))
        await bus.publish(outgoing("m-2", headers={TRACEPARENT: OTHER}))  # as the relay continues an event's
        await recorder.until(2)
    redriven, relayed = spans.named("send cml.commands")
    (by,) = spans.named("redrives")
    assert parent_of(redriven) == id_of(by)
    assert links_of(redriven) == [OF_OTHER]
    assert parent_of(relayed) == OF_OTHER
    assert links_of(relayed) == []


async def test_who_publishes_to_no_queue_gets_the_error_and_the_span_ends(
    embedded_amqp_url: str, spans: Kept
) -> None:
    async with consuming(embedded_amqp_url, spans, Recorder()) as bus:
        with pytest.raises(UnroutableError):
            await bus.publish(outgoing("m-1", exchange=None, routing_key="cml.nothing"))
    (sent,) = spans.named("send cml.nothing")
    assert (sent.attributes or {})["error.type"] == "UnroutableError"
    assert not sent.status.is_ok
    assert sent.events == ()
    assert sent.status.description is None


@pytest.mark.parametrize(
    ("sampler", "exported"),
    [
        (ParentBased(ALWAYS_OFF), []),
        (TraceIdRatioBased(0), []),
        (ParentBased(TraceIdRatioBased(1)), ["within"]),
    ],
)
def test_a_trace_is_sampled_as_a_whole(sampler: ParentBased, exported: list[str]) -> None:
    with kept(sampler) as spans, span("root", {}):
        context = here()
        with span("within", {}):
            pass
        assert [each.name for each in spans.all] == exported
    assert context is not None
    assert int(context[-2:], 16) & 1 == len(exported)  # the flag that says so


@pytest.mark.parametrize(
    ("sampler", "names"), [("always_off", []), ("parentbased_always_off", []), ("always_on", ["span"])]
)
def test_what_is_sampled_is_set_by_the_standard_variable(
    monkeypatch: pytest.MonkeyPatch, sampler: str, names: list[str]
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        with exporting.exported("test", {}) as tracer:
            tracer.start_span("span").end()
        assert [each.name for each in collector.spans] == names


async def test_what_a_termination_supersedes_is_linked_to_it(tmp_path: Path, spans: Kept) -> None:
    async with opened(tmp_path) as service:
        await service.launched(InstanceState.STOPPED)
        await service.command(StartCMLWorker(worker_id=SERVED), "start", headers={TRACEPARENT: OTHER})
        with span("terminates", {}):
            await service.command(TerminateCMLWorker(worker_id=SERVED), "terminate")
    (superseded,) = [
        each for each in spans.named("operation") if (each.attributes or {})["cml.command_id"] == "start"
    ]
    (by,) = spans.named("terminates")
    assert parent_of(superseded) == OF_OTHER
    assert links_of(superseded) == [id_of(by)]
    assert (superseded.attributes or {})["cml.outcome"] == "failed"


async def test_an_append_that_nothing_caused_has_no_span(tmp_path: Path, spans: Kept) -> None:
    async with opened(tmp_path) as service:
        store = TracedStore(service.store, spans.spans)
        service.store = store
        service.allow(service.handler._access)
        await service.command(CREATE, "create")
        assert spans.named("append") == []
        with span("caused", {}):
            await service.command(StopCMLWorker(worker_id=SERVED), "stop")
    (appended,) = spans.named("append")
    (caused,) = spans.named("caused")
    assert parent_of(appended) == id_of(caused)
    attributes = appended.attributes or {}
    assert attributes["cml.worker_id"] == str(SERVED)
    assert attributes["cml.command_id"] == "stop"
    assert (caused.attributes or {})["cml.worker_id"] == str(SERVED)  # what its handler found out


async def test_an_attempt_is_of_its_operation_and_linked_to_the_reminder(given: Given, spans: Kept) -> None:
    throttled = EC2ThrottledException("slow down", remedy=Remedy.RETRY, retryable=True)
    adapter = given().refusing("launch", throttled)
    for event in REQUESTED:
        worker = await load(adapter.store, WORKER)
        metadata = recorded(worker, event, NOW, "cause").metadata
        await append(adapter.store, worker, [(event, metadata.model_copy(update={"traceparent": OTHER}))])
    with span("reminder", {}):
        await adapter.reminded()
    await adapter.passes(10)
    (reminder,) = spans.named("reminder")
    first, second = spans.named("attempt")
    (wait,) = spans.named("wait")
    assert parent_of(first) == parent_of(second) == parent_of(wait) == OF_OTHER
    assert links_of(first) == [id_of(reminder)]
    assert links_of(second) == links_of(wait) == []
    seen = [(each.attributes or {}) for each in (first, second)]
    assert [each["cml.attempt"] for each in seen] == [1, 2]
    assert [each.get("cml.problem_code") for each in seen] == ["EC2Throttled", None]
    assert [each["cml.worker_id"] for each in seen] == [str(WORKER)] * 2


async def test_what_is_seen_later_is_a_trace_of_its_own_linked_to_what_it_was_watched_for(
    given: Given, spans: Kept
) -> None:
    adapter = given(*PENDING).observed(instance(InstanceState.PENDING))
    with span("trigger", {}):
        await adapter.triggered()
    adapter.ec2.settle()
    await adapter.passes(36)
    (observed,) = spans.named("observe")
    (trigger,) = spans.named("trigger")
    first, *later = spans.named("watch")
    for each in (first, observed):
        assert parent_of(each) is None
        assert links_of(each) == [id_of(trigger)]
    assert {link for each in later for link in links_of(each)} <= {id_of(trigger), id_of(observed)}
