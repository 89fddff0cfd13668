"""What a process counts and measures, for Prometheus: every metric is declared here, and counted where it happens.

No label grows with workers, commands, users or reply queues: each has a limited set of values, which the metric's meaning names.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

REGISTRY = CollectorRegistry()
"""All of this process. The library's own registry is not used: whoever imports something would add to it."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, which nobody asks for
ProcessCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

OF_OPERATIONS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1200, 1800)
"""Seconds: a rejection takes milliseconds, a launch minutes."""
OF_CALLS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Seconds of what a message or a call to EC2 takes."""

DECLARED: list["Declared"] = []
"""What ``declared`` lists, in the order below."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What the reference says of a metric; ``name`` as Prometheus has it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    DECLARED.append(Declared(f"{name}_total", "counter", labels, meaning))
    return Counter(name, meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    DECLARED.append(Declared(name, "gauge", labels, meaning))
    return Gauge(name, meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
    DECLARED.append(Declared(name, "histogram", labels, meaning))
    return Histogram(name, meaning, labels, buckets=buckets, registry=REGISTRY)


COMMANDS_SETTLED = _counter(
    "cml_commands",
    "Commands that have their outcome: succeeded, rejected (our rules said no) or failed (AWS did). What is recorded counts once; of a status "
    "update, and of a command that is refused without a record, each answer does.",
    "command",
    "outcome",
)
COMMAND_PROBLEMS = _counter(
    "cml_command_problems",
    "Of these, those that were rejected or failed, by the problem's code.",
    "command",
    "code",
)
COMMAND_SECONDS = _histogram(
    "cml_command_seconds",
    "From when a command was recorded to its outcome; 0 for what was decided at once. What is not recorded is not among it.",
    OF_OPERATIONS,
    "command",
    "outcome",
)
EVENTS_RECORDED = _counter("cml_events_recorded", "Events that lifecycle appended.", "event")
MESSAGES = _counter(
    "cml_messages",
    "Deliveries of a queue of ours: done, retried, dead_letter, or given_back to the queue as nothing took its place.",
    "queue",
    "verdict",
)
MESSAGE_SECONDS = _histogram(
    "cml_message_seconds",
    "From a delivery to its settlement, what it waited for included.",
    OF_CALLS,
    "queue",
)
QUEUE_MESSAGES = _gauge(
    "cml_queue_messages",
    "Messages that wait in a queue of ours and the senders' own beside it, as RabbitMQ says to who consumes it.",
    "queue",
)
QUEUE_CONSUMERS = _gauge(
    "cml_queue_consumers",
    "Consumers of a queue of ours, those of other processes included; of it and the senders' own beside it, that with the fewest.",
    "queue",
)
WORKERS_LOOKED_UP = _counter(
    "cml_workers_looked_up",
    "Workers that were looked for in memory: hit, or miss where the stream has to be read.",
    "result",
)
EC2_CALLS = _counter(
    "cml_ec2_calls",
    "Calls to EC2; the code is EC2's own where it refused, empty where it did not, other where we do not know it, no_answer without one.",
    "api",
    "region",
    "code",
)
EC2_PROBLEMS = _counter(
    "cml_ec2_problems",
    "Calls to EC2 without a result, by the problem's code: EC2Throttled, EC2Authentication and so on.",
    "region",
    "problem",
)
EC2_CALL_SECONDS = _histogram(
    "cml_ec2_call_seconds", "How long calls to EC2 took.", OF_CALLS, "api", "region"
)
EC2_WAIT_SECONDS = _histogram(
    "cml_ec2_wait_seconds",
    "How long calls waited so that EC2 is called no more often than it allows, nor by too many calls of a region at once.",
    OF_CALLS,
    "api",
)
EC2_NOT_CALLED = _counter(
    "cml_ec2_not_called",
    "Calls to EC2 that were not made, as they would have waited for too long; an operation tries again later.",
    "api",
)
SPANS = _counter(
    "cml_spans",
    "Spans of traces that the collector took (exported), or did not take in time (dropped).",
    "result",
)
for _result in ("exported", "dropped"):
    SPANS.labels(_result)  # there from the start, also where nothing is traced

WORKERS = _gauge("cml_workers", "Workers that are not terminated, by status; from the read model.", "status")
READ_MODEL_EVENTS = _gauge(
    "cml_read_model_events",
    "Events in the rows of a read model: those that queries see (active), and those that a rebuild has come to (building).",
    "read_model",
    "state",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric that is read from a role, or a part, when it is asked for, and labelled with that."""

    name: str
    meaning: str
    counts: bool = False
    """It only grows, from when the process started."""
    label: str = "role"

    def family(self, values: Iterable[tuple[str, float]]) -> Metric:
        """With a value for each."""
        kind = CounterMetricFamily if self.counts else GaugeMetricFamily
        family = kind(self.name, self.meaning, labels=(self.label,))
        for whose, value in values:
            family.add_metric((whose,), value)
        return family


FIGURES = (
    Figure("cml_role_ready", "1 if nothing is wrong with the role, 0 if something is: see /readyz."),
    Figure("cml_role_warnings", "What somebody should look at, though the role works: see /readyz."),
    Figure("cml_part_works", "1 if a part answers that the process uses, as far as is known.", label="part"),
    Figure("cml_follower_caught_up", "1 if the role has handled all that the event store has."),
    Figure("cml_follower_lag_seconds", "From when the last event was recorded to when it was handled."),
    Figure("cml_follower_failures", "How often the role failed in a row to follow the event store."),
    Figure(
        "cml_checkpoints_unusable", "Checkpoints that are lost or another event store's: an operator decides."
    ),
    Figure("cml_operations_open", "Operations without an outcome."),
    Figure("cml_operations_oldest_seconds", "The age of the oldest operation without an outcome."),
    Figure(
        "cml_operations_overdue",
        "Operations without an outcome for longer than CML_OPERATION_DEADLINE_SECONDS.",
    ),
    Figure("cml_dead_letters_waiting", "Dead letters that wait for an operator."),
    Figure("cml_replies_dropped", "Replies that a caller's queue did not take.", counts=True),
    Figure("cml_events_under_way", "Events that are published and not confirmed yet."),
    Figure("cml_events_given_up", "Events that a subscriber's queue did not take in time.", counts=True),
    Figure("cml_events_not_ours", "Events of streams that are not ours, passed over.", counts=True),
    Figure("cml_workers_held", "Workers whose events wait behind one that cannot be handled: in quarantine."),
)


@dataclass(slots=True)
class Figures(Collector):
    """The values of ``FIGURES``, for one answer."""

    values: dict[str, list[tuple[str, float]]] = field(
        default_factory=lambda: {each.name: [] for each in FIGURES}
    )

    def put(self, name: str, whose: str, value: float) -> None:
        """The value of ``cml_<name>`` of a role or a part. Raises KeyError for what is not declared: nobody would see it."""
        self.values[f"cml_{name}"].append((whose, value))

    def collect(self) -> Iterator[Metric]:
        """As Prometheus's library asks for them."""
        return (each.family(self.values[each.name]) for each in FIGURES if self.values[each.name])


def declared() -> Iterator[Declared]:
    """Every metric of ours."""
    yield from DECLARED
    for figure in FIGURES:
        kind = "counter" if figure.counts else "gauge"
        name = f"{figure.name}_total" if figure.counts else figure.name
        yield Declared(name, kind, (figure.label,), figure.meaning)
