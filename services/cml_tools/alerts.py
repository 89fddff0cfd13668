"""Alert rules for Prometheus, and what to do about each: the one source of ``deploy/observability/alerts.yml`` and ``docs/alerts.md``."""

from dataclasses import dataclass
from typing import Literal

import yaml

from cml_tools.expressions import metrics_of
from cml_tools.generated import write_or_check
from cml_workers.process.registry import ROLES

JOB = "cml-workers"
"""Of the scrape configuration, for whatever it scrapes of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """``shows`` has a value while all is well; the alert fires when that is ``when`` for as long as it ``lasts``.

    It fires likewise where there is nothing of a series in ``absent``.
    """

    name: str
    shows: str
    when: str
    lasts: str
    severity: Literal["critical", "warning"]
    summary: str
    remedy: str
    absent: tuple[str, ...] = ()

    @property
    def expression(self) -> str:
        """As Prometheus evaluates it."""
        return " or ".join([f"{self.shows} {self.when}", *(f"absent({each})" for each in self.absent)])


ALERTS = (
    Alert(
        name="CMLProcessDown",
        shows=f'up{{job="{JOB}"}}',
        when="== 0",
        absent=tuple(f'cml_role_ready{{role="{role}"}}' for role in ROLES),
        lasts="2m",
        severity="critical",
        summary="A process cannot be scraped, or no process of a role is: {{ $labels.instance }}{{ $labels.role }}",
        remedy="See its last log lines, and why its orchestrator does not start it again. Nothing is lost meanwhile: commands and "
        "events wait.",
    ),
    Alert(
        name="CMLRoleNotReady",
        shows="min by (instance, role) (cml_role_ready)",
        when="== 0",
        lasts="5m",
        severity="critical",
        summary="{{ $labels.role }} at {{ $labels.instance }} does not work",
        remedy="Its `/readyz` says what is wrong, under `problems`. Do not restart it for that: it waits, and goes on by itself.",
    ),
    Alert(
        name="CMLPartUnavailable",
        shows="min by (instance, part) (cml_part_works)",
        when="== 0",
        lasts="2m",
        severity="critical",
        summary="The {{ $labels.part }} does not answer {{ $labels.instance }}",
        remedy="`/readyz` says since when and why. See to the [event store](operations.md#event-store) or to "
        "[PostgreSQL](operations.md#postgresql); work goes on when it answers.",
    ),
    Alert(
        name="CMLFollowerBehind",
        shows="max by (role) (cml_follower_lag_seconds)",
        when="> 30",
        lasts="5m",
        severity="warning",
        summary="{{ $labels.role }} is more than 30 seconds behind the event store",
        remedy="After an outage or a rebuild it catches up. Otherwise its CPU, or what it writes to, is too slow: for the relay RabbitMQ "
        "and its subscribers' queues (`cml_events_under_way`), for the projector the database. One that does not move at all is not ready, "
        "which `CMLRoleNotReady` says.",
    ),
    Alert(
        name="CMLOperationsOverdue",
        shows="max(cml_operations_overdue)",
        when="> 0",
        lasts="5m",
        severity="critical",
        summary="Operations have had no outcome for longer than their deadline",
        remedy="The projector's log has a line `operation overdue` with the command id of each; `waits_for` of the worker is EC2's last "
        "answer. They stay open and are tried again; nothing has to be sent again.",
    ),
    Alert(
        name="CMLDeadLettersGrow",
        shows="max(cml_dead_letters_waiting) - min_over_time(max(cml_dead_letters_waiting)[30m:])",
        when="> 0",
        lasts="0m",
        severity="warning",
        summary="More dead letters wait for an operator than a moment in the last half hour",
        remedy="`cml-workers deadletters list` shows their causes, `deadletters show ID` the reason. Redrive, edit or discard them.",
    ),
    Alert(
        name="CMLQuarantine",
        shows="max by (role) (cml_workers_held)",
        when="> 0",
        lasts="1m",
        severity="warning",
        summary="Workers wait behind an event that {{ $labels.role }} cannot handle",
        remedy="See [an event in quarantine](operations.md#an-event-in-quarantine): update, or decide to skip the event.",
    ),
    Alert(
        name="CMLThrottled",
        shows='sum by (region) (rate(cml_ec2_problems_total{problem="EC2Throttled"}[10m])) / sum by (region) (rate(cml_ec2_calls_total[10m]))',
        when="> 0.2",
        lasts="10m",
        severity="warning",
        summary="AWS throttles more than a fifth of the calls in {{ $labels.region }}",
        remedy="Operations take longer, and none fails by it. Look for who else calls EC2 in this account, or have AWS raise the limits.",
    ),
    Alert(
        name="CMLCredentialsRefused",
        shows='sum by (region) (increase(cml_ec2_problems_total{problem="EC2Authentication"}[5m]))',
        when="> 3",
        lasts="2m",
        severity="critical",
        summary="AWS refuses our credentials or rights in {{ $labels.region }}, again and again",
        remedy="`cml-workers doctor` says which right is missing. Credentials that were replaced are read again; operations fail after "
        "`CML_AUTHENTICATION_GRACE_SECONDS`.",
    ),
    Alert(
        name="CMLQueueWithoutConsumer",
        shows="max by (queue) (cml_queue_consumers)",
        when="== 0",
        absent=tuple(
            f'cml_queue_consumers{{queue="{queue.name}"}}'
            for role in ROLES.values()
            for queue in role.uses.consumes
        ),
        lasts="2m",
        severity="critical",
        summary="Nothing consumes {{ $labels.queue }}, or nobody who would knows of it",
        remedy="Messages wait there. See whether the role runs and reaches RabbitMQ (`/readyz`), and whether the queue is there: "
        "`rabbitmqctl list_queues name consumers`.",
    ),
    Alert(
        name="CMLCheckpointUnusable",
        shows="max by (role) (cml_checkpoints_unusable)",
        when="> 0",
        lasts="1m",
        severity="critical",
        summary="The checkpoint of {{ $labels.role }} is lost or another event store's: it follows nothing",
        remedy="`/readyz` has the reason. Configure the store that it was saved with; after a restore see "
        "[backup and restore](operations.md#backup-and-restore).",
    ),
)


def rules() -> str:
    """Prometheus' rule file. Raises ValueError: an expression names what is not there."""
    for each in ALERTS:
        metrics_of(each.expression)
    group = [
        {
            "alert": each.name,
            "expr": each.expression,
            "for": each.lasts,
            "labels": {"severity": each.severity},
            "annotations": {"summary": each.summary, "runbook": f"docs/alerts.md#{each.name.lower()}"},
        }
        for each in ALERTS
    ]
    content = yaml.safe_dump({"groups": [{"name": JOB, "rules": group}]}, sort_keys=False, width=1000)
    return f"# Generated by python -m cml_tools.alerts; do not edit.\n{content}"


def main() -> None:
    """Write the rules, or (``--check``) fail if the written ones are not these."""
    write_or_check(rules, what="the alert rules", source="services/cml_tools/alerts.py")


if __name__ == "__main__":
    main()
