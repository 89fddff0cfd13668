"""Each alert fires in its fault and in no other, after its time, and none on a quiet day: as Prometheus' own test tool has it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cml_tools.alerts import ALERTS, JOB, Alert
from cml_tools.dashboard import ROWS, panels
from cml_tools.expressions import metrics_of
from cml_workers.foundation.metrics import declared
from cml_workers.process.registry import ROLES
from support.missing import missing
from support.prometheus import OBSERVABILITY, NoPrometheusError, promtool

Series = Mapping[str, str]
Firing = Mapping[tuple[str, int], list[dict[str, Any]]]
"""By the name of an alert and the minute, what fires then."""

STEPS, FAULT = 240, 120
"""Samples, two a minute; how many before the fault."""
HOURS = 60
"""Minutes from the beginning to the fault."""
ALL_THE_TIME = f"+0x{STEPS}"
QUIET: Series = {
    **{f'up{{job="{JOB}", instance="{role}"}}': f"1{ALL_THE_TIME}" for role in ROLES},
    **{
        f'cml_role_ready{{job="{JOB}", instance="{role}", role="{role}"}}': f"1{ALL_THE_TIME}"
        for role in ROLES
    },
    **{
        f'cml_queue_consumers{{job="{JOB}", instance="{role}", queue="{queue.name}"}}': f"1{ALL_THE_TIME}"
        for role in ROLES
        for queue in ROLES[role].uses.consumes
    },
    'cml_part_works{instance="projector", part="database"}': f"1{ALL_THE_TIME}",
    'cml_follower_lag_seconds{role="relay"}': f"0.5{ALL_THE_TIME}",
    'cml_follower_lag_seconds{role="projector"}': f"2{ALL_THE_TIME}",
    'cml_operations_overdue{role="projector"}': f"0{ALL_THE_TIME}",
    'cml_dead_letters_waiting{role="projector"}': f"3{ALL_THE_TIME}",
    'cml_workers_held{role="relay"}': f"0{ALL_THE_TIME}",
    'cml_checkpoints_unusable{role="projector"}': f"0{ALL_THE_TIME}",
    'cml_ec2_calls_total{api="StartInstances", region="us-east-1", code=""}': f"0+30x{STEPS}",
    'cml_ec2_problems_total{region="us-east-1", problem="EC2Throttled"}': f"0+1x{STEPS}",
    'cml_ec2_problems_total{region="us-east-1", problem="EC2Authentication"}': f"0+0x9 1+0x{STEPS}",
}
"""A few calls are throttled, one was refused, and dead letters of last week wait."""


def then(before: float, after: str) -> str:
    """Constant, and what follows the fault."""
    return f"{before}+0x{FAULT} {after}x{STEPS - FAULT}"


FAULTS: Mapping[str, tuple[Series, list[dict[str, str]]]] = {
    "CMLProcessDown": (
        {f'up{{job="{JOB}", instance="relay"}}': then(1, "0+0")},
        [{"job": JOB, "instance": "relay"}],
    ),
    "CMLRoleNotReady": (
        {f'cml_role_ready{{job="{JOB}", instance="relay", role="relay"}}': then(1, "0+0")},
        [{"instance": "relay", "role": "relay"}],
    ),
    "CMLPartUnavailable": (
        {'cml_part_works{instance="projector", part="database"}': then(1, "0+0")},
        [{"instance": "projector", "part": "database"}],
    ),
    "CMLFollowerBehind": (
        {'cml_follower_lag_seconds{role="projector"}': then(2, "31+30")},
        [{"role": "projector"}],
    ),
    "CMLOperationsOverdue": ({'cml_operations_overdue{role="projector"}': then(0, "1+0")}, [{}]),
    "CMLDeadLettersGrow": ({'cml_dead_letters_waiting{role="projector"}': then(3, "4+0")}, [{}]),
    "CMLQuarantine": ({'cml_workers_held{role="relay"}': then(0, "1+0")}, [{"role": "relay"}]),
    "CMLThrottled": (
        {'cml_ec2_problems_total{region="us-east-1", problem="EC2Throttled"}': then(1, "1+20")},
        [{"region": "us-east-1"}],
    ),
    "CMLCredentialsRefused": (
        {'cml_ec2_problems_total{region="us-east-1", problem="EC2Authentication"}': then(0, "1+1")},
        [{"region": "us-east-1"}],
    ),
    "CMLQueueWithoutConsumer": (
        {
            f'cml_queue_consumers{{job="{JOB}", instance="lifecycle", queue="cml.lifecycle.commands"}}': then(
                1, "0+0"
            )
        },
        [{"queue": "cml.lifecycle.commands"}],
    ),
    "CMLCheckpointUnusable": (
        {'cml_checkpoints_unusable{role="projector"}': then(0, "1+0")},
        [{"role": "projector"}],
    ),
}
"""By alert, the series that are otherwise than on a quiet day, and the labels of what fires."""


def minutes(alert: Alert) -> int:
    return int(alert.lasts.removesuffix("m"))


def expected(alert: Alert, labels: Mapping[str, str]) -> dict[str, Any]:
    """What the tool compares with: labels and annotations as they are then."""
    summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels.get(found[1], ""), alert.summary)
    return {
        "exp_labels": {**labels, "severity": alert.severity},
        "exp_annotations": {"summary": summary, "runbook": f"docs/alerts.md#{alert.name.lower()}"},
    }


def scenario(series: Series, firing: Firing) -> dict[str, Any]:
    return {
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"alertname": name, "eval_time": f"{minute}m", "exp_alerts": alerts}
            for (name, minute), alerts in firing.items()
        ],
    }


def judged(folder: Path, *scenarios: dict[str, Any]) -> None:
    content = {
        "rule_files": [str(OBSERVABILITY / "alerts.yml")],
        "evaluation_interval": "30s",
        "tests": list(scenarios),
    }
    (folder / "tests.yml").write_text(yaml.safe_dump(content))
    accepted("test", "rules", folder / "tests.yml")


def accepted(*arguments: str | Path) -> None:
    """By promtool."""
    try:
        done = promtool(*arguments)
    except NoPrometheusError as error:
        missing(error)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_fires_on_a_quiet_day(tmp_path: Path) -> None:
    at = range(1, STEPS // 2, 7)
    judged(tmp_path, scenario(QUIET, {(alert.name, minute): [] for alert in ALERTS for minute in at}))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_fires_in_its_fault_alone(alert: Alert, tmp_path: Path) -> None:
    changed, labels = FAULTS[alert.name]
    assert changed.keys() <= QUIET.keys()
    soon = HOURS + minutes(alert)
    due = soon + (15 if re.search("rate|increase", alert.shows) else 1)  # which need some minutes to rise
    firing: Firing = {(other.name, due): [] for other in ALERTS if other is not alert}
    before: Firing = {(alert.name, soon - 1): []}
    fires = {(alert.name, due): [expected(alert, each) for each in labels]}
    judged(tmp_path, scenario({**QUIET, **changed}, {**firing, **before, **fires}))


@pytest.mark.parametrize("alert", [alert for alert in ALERTS if alert.absent], ids=lambda alert: alert.name)
def test_an_alert_fires_where_nobody_says_anything(alert: Alert, tmp_path: Path) -> None:
    """The process is gone, and Prometheus does not know any more where it was."""
    gone = {
        name: f"{values[0]}+0x{FAULT} _x{STEPS - FAULT}"
        for name, values in QUIET.items()
        if 'instance="ec2-adapter"' in name
    }
    absent = [dict(re.findall(r'(\w+)="([^"]*)"', each)) for each in alert.absent if "ec2" in each]
    fires = {(alert.name, HOURS + 10): [expected(alert, each) for each in absent]}
    assert absent
    judged(tmp_path, scenario({**QUIET, **gone}, fires))


def test_every_alert_is_tried_and_the_files_are_valid() -> None:
    assert FAULTS.keys() == {alert.name for alert in ALERTS}
    accepted("check", "rules", OBSERVABILITY / "alerts.yml")
    accepted("check", "config", OBSERVABILITY / "prometheus.yml")
    (job,) = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["job_name"] == JOB
    assert {target.partition(":")[0] for each in job["static_configs"] for target in each["targets"]} == set(
        ROLES
    )


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {each.name for panel in panels() for query, _ in panel.queries for each in metrics_of(query)}
    assert shown == {each.name for each in declared()}
    titles = [panel.title for panel in panels()]
    assert len(set(titles)) == len(titles) >= len(ROWS)


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("rate(cml_comands_total[5m])", "cml_comands_total"),
        ("cml_command_seconds", "cml_command_seconds"),
        ('cml_role_ready{queue="x"}', "cml_role_ready{queue}"),
        ("sum by (worker) (cml_role_ready)", "worker"),
        ("sum by (le) (cml_role_ready)", "le"),
    ],
)
def test_an_expression_that_names_what_is_not_there_is_refused(expression: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"no metric has {wrong}")):
        metrics_of(expression)
