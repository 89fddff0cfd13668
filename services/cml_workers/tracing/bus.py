"""The bus with spans: one for each message that is published, and one for each that is handled, in the trace of what caused it."""

import re
from asyncio import Future
from collections.abc import Awaitable
from contextvars import ContextVar
from dataclasses import replace

from opentelemetry.trace import Span, SpanKind

from cml_workers.bus.port import Ack, DeadLetter, Handler, Message, Outgoing, Retry, Verdict
from cml_workers.bus.probes import PROBE
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.topology import Queue
from cml_workers.foundation.ids import bind
from cml_workers.foundation.outages import NO_OUTAGES, Outages
from cml_workers.foundation.tracing import PROBLEM, TRACEPARENT, Attributes, as_traceparent, trace_of
from cml_workers.tracing.tracer import Spans, ended, failed, put, written

VERDICT = "cml.verdict"
_handled: ContextVar[tuple[Message, str] | None] = ContextVar("the message and its span", default=None)
"""Also when that has ended: the message may be handled once more, retried, or a dead letter, and its sender traced nothing."""
_VERDICTS = {Ack: "done", Retry: "retried", DeadLetter: "dead_letter"}
_TYPE = re.compile(r"cml\.[a-z0-9_.]{1,100}")
_ID = re.compile(r"[!-~]{1,200}")


def traced(spans: Spans) -> type[RabbitBus]:
    """The bus that makes these spans."""

    class TracedBus(RabbitBus):
        def publish(self, message: Outgoing) -> Awaitable[None]:
            """See ``RabbitBus.publish``. It is begun at once, as there: messages keep their order."""
            if message.message_id == PROBE.message_id:
                return super().publish(message)
            here = spans.here()
            before = as_traceparent(message.headers.get(TRACEPARENT))
            if before is None and here is None and (handled := _handled.get()):
                before = handled[1]
            span = spans.begin(
                f"send {_destination(message)}",
                _about("send", message),
                kind=SpanKind.PRODUCER,
                parent=None if here else before,
                link=before,
            )
            message = replace(message, headers={**message.headers, TRACEPARENT: written(span)})
            try:
                answer = super().publish(message)
            except Exception as error:
                failed(span, error)
                span.end()
                raise
            if not isinstance(answer, Future):
                return _published(span, answer)
            answer.add_done_callback(lambda done: _end(span, done))
            return answer

        def consume(
            self,
            queue: Queue,
            handler: Handler,
            *,
            prefetch: int,
            of_sender: int = 1,
            outages: Outages = NO_OUTAGES,
        ) -> None:
            """See ``RabbitBus.consume``. To the handler the message is one of its span's, and so is all that it records of it."""

            async def handle(message: Message) -> Verdict:
                handled = _handled.get()
                earlier = handled[1] if handled and handled[0] is message else None
                span = spans.begin(
                    f"process {queue.name}",
                    {
                        **_about("process", message),
                        "cml.message_attempt": message.attempt,
                        "cml.deliveries": message.deliveries,
                    },
                    kind=SpanKind.CONSUMER,
                    parent=as_traceparent(message.headers.get(TRACEPARENT)) or earlier,
                )
                traceparent = written(span)
                _handled.set((message, traceparent))
                bind(
                    trace_id=trace_of(traceparent)
                )  # for the lines about the message's end, when the span has
                with ended(span):
                    headers = {**message.headers, TRACEPARENT: traceparent}
                    verdict = await handler(replace(message, headers=headers))
                    cause = verdict.cause if isinstance(verdict, DeadLetter) else None
                    put(span, {VERDICT: _VERDICTS[type(verdict)], PROBLEM: cause})
                return verdict

            super().consume(queue, handle, prefetch=prefetch, of_sender=of_sender, outages=outages)

    return TracedBus


async def _published(span: Span, answer: Awaitable[None]) -> None:
    try:
        await answer
    except BaseException as error:
        failed(span, error)
        raise
    finally:
        span.end()


def _end(span: Span, done: "Future[None]") -> None:
    error = None if done.cancelled() else done.exception()
    if error is not None:
        failed(span, error)
    span.end()


def _destination(message: Outgoing) -> str:
    """Replies have one name: each caller has a queue of its own."""
    if message.exchange is not None:
        return message.exchange.name
    return message.routing_key if message.mandatory else "reply"


def _about(what: str, message: Message | Outgoing) -> Attributes:
    """Types and ids in their form only: a sender may have written anything."""
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.type": what,
        "messaging.message.id": _of(_ID, message.message_id),
        "cml.message_type": _of(_TYPE, message.type),
    }


def _of(form: re.Pattern[str], text: str | None) -> str | None:
    return text if text is not None and form.fullmatch(text) else None
