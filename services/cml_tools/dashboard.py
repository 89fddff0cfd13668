"""The Grafana dashboard, generated: a row for each subject, a panel for each thing to look at."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cml_tools.alerts import JOB
from cml_tools.expressions import metrics_of
from cml_tools.generated import write_or_check

PER_ROW, HEIGHT, WIDTH = 3, 8, 8
"""Panels beside each other; their size, of a width of 24."""
_SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """``unit`` as Grafana names it; ``queries``: expression and legend of each."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def _rates(metric: str, by: str, of: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{of}[$__rate_interval]))"


def _rate(metric: str, *labels: str, of: str = "") -> tuple[str, tuple[tuple[str, str], ...]]:
    """How often, in a second."""
    return "ops", ((_rates(metric, ", ".join(labels), of), _legend(labels)),)


def _legend(labels: Sequence[str]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def _quantile(histogram: str, *labels: str, of: str = "") -> tuple[str, tuple[tuple[str, str], ...]]:
    """How long 50 and 95 of 100 take at most."""
    rates = _rates(f"{histogram}_bucket", ", ".join(("le", *labels)), of)
    return "s", tuple(
        (f"histogram_quantile({share}, {rates})", f"{share:.0%} {_legend(labels)}") for share in (0.5, 0.95)
    )


def _gauge(
    *metrics: str, by: str, worst: str = "max", unit: str = "short"
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The worst of what each process says; ``by``: labels, separated by spaces."""
    labels = by.split()
    return unit, tuple(
        (
            f"{worst} by ({', '.join(labels)}) ({metric})",
            " ".join([metric.removeprefix("cml_")] * (len(metrics) > 1) + [_legend(labels)]),
        )
        for metric in metrics
    )


_HIT = '{result="hit"}'
ROWS: dict[str, tuple[Panel, ...]] = {
    "Health": (
        Panel(
            "Processes that are scraped",
            "short",
            ((f'sum(up{{job="{JOB}"}})', "up"), (f'count(up{{job="{JOB}"}})', "known")),
        ),
        Panel("Roles that work", *_gauge("cml_role_ready", by="role", worst="min")),
        Panel("Parts that answer", *_gauge("cml_part_works", by="part", worst="min")),
        Panel(
            "For an operator",
            *_gauge("cml_role_warnings", "cml_workers_held", "cml_checkpoints_unusable", by="role"),
        ),
        Panel(
            "CPU",
            "percentunit",
            ((f'rate(process_cpu_seconds_total{{job="{JOB}"}}[$__rate_interval])', "{{instance}}"),),
        ),
        Panel("Spans of traces, by result", *_rate("cml_spans_total", "result")),
        Panel("Memory", "bytes", ((f'process_resident_memory_bytes{{job="{JOB}"}}', "{{instance}}"),)),
    ),
    "Commands": (
        Panel("Commands, by outcome", *_rate("cml_commands_total", "command", "outcome")),
        Panel("Why commands have not succeeded", *_rate("cml_command_problems_total", "command", "code")),
        Panel(
            "How long commands took that succeeded",
            *_quantile("cml_command_seconds", "command", of='{outcome="succeeded"}'),
        ),
        Panel(
            "Open operations",
            "short",
            (("max(cml_operations_open)", "open"), ("max(cml_operations_overdue)", "overdue")),
        ),
        Panel("Age of the oldest open operation", "s", (("max(cml_operations_oldest_seconds)", "oldest"),)),
        Panel("Replies that no queue took", *_rate("cml_replies_dropped_total", "role")),
    ),
    "Workers": (
        Panel("Workers, by status", *_gauge("cml_workers", by="status")),
        Panel("Events recorded", *_rate("cml_events_recorded_total", "event")),
        Panel(
            "Workers found in memory",
            "percentunit",
            (
                (
                    f"{_rates('cml_workers_looked_up_total', 'instance', of=_HIT)} / {_rates('cml_workers_looked_up_total', 'instance')}",
                    "{{instance}}",
                ),
            ),
        ),
    ),
    "Messages": (
        Panel("Messages that wait", *_gauge("cml_queue_messages", by="queue")),
        Panel("Consumers", *_gauge("cml_queue_consumers", by="queue", worst="min")),
        Panel("Dead letters that wait", *_gauge("cml_dead_letters_waiting", by="role")),
        Panel("Deliveries, by verdict", *_rate("cml_messages_total", "queue", "verdict")),
        Panel("How long a message took", *_quantile("cml_message_seconds", "queue")),
    ),
    "Followers and read models": (
        Panel("Behind the event store", *_gauge("cml_follower_lag_seconds", by="role", unit="s")),
        Panel("Caught up", *_gauge("cml_follower_caught_up", by="role", worst="min")),
        Panel("Failures in a row", *_gauge("cml_follower_failures", by="role")),
        Panel("Read models and rebuilds", *_gauge("cml_read_model_events", by="read_model state")),
        Panel("Events under way to RabbitMQ", *_gauge("cml_events_under_way", by="role")),
        Panel(
            "Events given up, and those that are not ours",
            "ops",
            (
                (_rates("cml_events_given_up_total", "role"), "given up {{role}}"),
                (_rates("cml_events_not_ours_total", "role"), "not ours {{role}}"),
            ),
        ),
    ),
    "EC2": (
        Panel("Calls", *_rate("cml_ec2_calls_total", "api", "region")),
        Panel(
            "Calls without a result, by EC2's code",
            *_rate("cml_ec2_calls_total", "api", "region", "code", of='{code!=""}'),
        ),
        Panel("Throttled, refused, unavailable", *_rate("cml_ec2_problems_total", "region", "problem")),
        Panel("How long a call took", *_quantile("cml_ec2_call_seconds", "api", "region")),
        Panel("How long a call waited for its turn", *_quantile("cml_ec2_wait_seconds", "api")),
        Panel(
            "Calls not made, as they would have waited too long", *_rate("cml_ec2_not_called_total", "api")
        ),
    ),
}


def panels() -> Iterator[Panel]:
    """All of them."""
    for row in ROWS.values():
        yield from row


def dashboard() -> str:
    """As Grafana imports it. Raises ValueError: an expression names what is not there."""
    content = {
        "uid": "cml-workers",
        "title": "CML workers",
        "tags": ["cml-workers"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": list(_placed()),
    }
    return json.dumps(content, indent=2) + "\n"


def _placed() -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for title, row in ROWS.items():
        number += 1
        place = {"h": 1, "w": 24, "x": 0, "y": y}
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "gridPos": place,
            "collapsed": False,
            "panels": [],
        }
        y += 1
        for index, panel in enumerate(row):
            number += 1
            place = {
                "h": HEIGHT,
                "w": WIDTH,
                "x": index % PER_ROW * WIDTH,
                "y": y + index // PER_ROW * HEIGHT,
            }
            yield {"id": number, "gridPos": place, **_shown(panel)}
        y += -(-len(row) // PER_ROW) * HEIGHT


def _shown(panel: Panel) -> dict[str, Any]:
    meanings = dict.fromkeys(each.meaning for query, _ in panel.queries for each in metrics_of(query))
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": " ".join(meanings),
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def main() -> None:
    """Write the dashboard, or (``--check``) fail if the written one is not this one."""
    write_or_check(dashboard, what="the dashboard", source="services/cml_tools/dashboard.py")


if __name__ == "__main__":
    main()
