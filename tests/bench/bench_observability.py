"""What metrics and traces cost lifecycle, in CPU time for each command, beside none of them.

    PYTHONPATH=tests .venv/bin/python -m bench.bench_observability [--commands 400] [--rounds 7]

One process handles commands that it rejects (one append, one reply) on a RabbitMQ and an SQLite file, and sends them as well. Each round measures
every way, one after another in another order, so the ratios are worth more than the figures. CPU time counts the thread that exports. The
collector is a process of its own.
"""

import argparse
import asyncio
import logging
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import structlog
import uvloop
from opentelemetry.sdk.environment_variables import OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from bench.medians import say
from cml_contracts.client import WorkerClient
from cml_contracts.commands import StopCMLWorker
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.domain.policy import Access, Policy
from cml_workers.eventstore.port import EventStore
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.foundation import tracing
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.runtime.role import utc_now
from cml_workers.tracing.bus import traced
from cml_workers.tracing.exporting import exported
from cml_workers.tracing.store import TracedStore
from cml_workers.tracing.tracer import Spans
from support.children import module
from support.rabbitmq import any_rabbitmq

AT_ONCE = 20
Way = tuple[type[RabbitBus], Callable[[EventStore], EventStore]]


@contextmanager
def plain() -> Iterator[Way]:
    """Metrics, as they are, and no traces."""
    yield RabbitBus, lambda store: store


@contextmanager
def neither() -> Iterator[Way]:
    """Nothing is counted; what is left is a call that does nothing."""
    with (
        patch.object(MetricWrapperBase, "labels", lambda metric, *_: metric),
        patch.object(Counter, "inc", lambda *_: None),
        patch.object(Histogram, "observe", lambda *_: None),
        patch.object(Histogram, "time", lambda _: nullcontext()),
    ):
        yield RabbitBus, lambda store: store


def with_traces(share: float) -> Callable[[], AbstractContextManager[Way]]:
    """Metrics, and that share of the traces."""

    @contextmanager
    def way() -> Iterator[Way]:
        os.environ |= {OTEL_TRACES_SAMPLER: "parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG: str(share)}
        with exported("bench", {}) as tracer:
            spans = Spans(tracer)
            tracing.use(spans)
            try:
                yield traced(spans), lambda store: TracedStore(store, spans)
            finally:
                tracing.use(None)

    return way


WAYS: Mapping[str, Callable[[], AbstractContextManager[Way]]] = {
    "neither": neither,
    "metrics": plain,
    "metrics, a tenth of the traces": with_traces(0.1),
    "metrics, all traces": with_traces(1),
}


async def cpu(way: Way, amqp_url: str, folder: Path, commands: int) -> float:
    """Seconds of CPU for each command."""
    kind_of_bus, store_of = way
    store = store_of(SqliteEventStore(folder / "events.sqlite3"))
    bus = kind_of_bus(amqp_url, name="bench")
    handler = Lifecycle(
        store=store, publish=bus.publish, policy=Policy(), access=Access(), now=utc_now, new_id=uuid4
    )
    bus.consume(LIFECYCLE_COMMANDS, handler.on_command, prefetch=AT_ONCE)
    async with bus, WorkerClient(amqp_url) as client:
        left = iter(range(commands))

        async def send() -> None:
            for _ in left:
                result = await client.send(StopCMLWorker(worker_id=uuid4()))
                assert result.problem is not None, "it was to be rejected"

        await asyncio.gather(*(client.send(StopCMLWorker(worker_id=uuid4())) for _ in range(AT_ONCE)))
        began = time.process_time()
        await asyncio.gather(*(send() for _ in range(AT_ONCE)))
        used = time.process_time() - began
    await store.close()
    return used / commands


def run(folder: Path, commands: int, rounds: int) -> None:
    used: dict[str, list[float]] = {name: [] for name in WAYS}
    with any_rabbitmq(folder / "rabbitmq") as (amqp_url, _), module("support.collector") as collector:
        assert collector.stdout is not None
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.stdout.readline().strip()
        for number in range(rounds):
            for name in random.sample(list(WAYS), len(WAYS)):
                data = folder / f"{number}-{name.replace(' ', '-')}"
                data.mkdir()
                with WAYS[name]() as way:
                    used[name].append(uvloop.run(cpu(way, amqp_url, data, commands)))
    beside = statistics.median(used["neither"])
    for name, found in used.items():
        median = statistics.median(found)
        say(
            f"{name:31} median {1e6 * median:6.0f} us of CPU a command, {median / beside:.2f} of neither "
            f"({1e6 * min(found):.0f} to {1e6 * max(found):.0f} in {rounds} rounds of {commands})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commands", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="cml-bench-observability-") as folder:
        run(Path(folder), chosen.commands, chosen.rounds)


if __name__ == "__main__":
    main()
