"""Given these events, when this command, then those events: the voice of the rule tests.

Every ``then_...`` also repeats the command on the resulting worker and expects nothing new.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

from cml_contracts.commands import CreateCMLWorker, UpdateCMLWorkerStatus, WorkerCommand
from cml_contracts.events import WorkerCreated, WorkerEvent
from cml_contracts.instance import (
    DEPLOYMENT_TAG,
    WORKER_TAG,
    Ec2Instance,
    InstanceState,
    LaunchParameters,
)
from cml_contracts.results import OperationResult
from cml_workers.domain.creation import launch_token
from cml_workers.domain.decide import decide
from cml_workers.domain.decisions import Ask, Decision, NoChange, Record, Reject
from cml_workers.domain.fold import evolve
from cml_workers.domain.history import EventMetadata, Recorded, ReplyAddress
from cml_workers.domain.ledger import Ledger
from cml_workers.domain.messages import (
    CommandMessage,
    Lookup,
    LookupResult,
    WorkerReport,
)
from cml_workers.domain.policy import Policy
from cml_workers.domain.profiles import DEFAULT, Image, default_profile
from cml_workers.domain.reports import decide_report
from cml_workers.domain.worker import Worker

WORKER = UUID("11111111-1111-4111-8111-111111111111")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
IMAGES = {"us-east-1": Image(id="ami-11111111"), "eu-west-1": Image(name="cml")}
POLICY = Policy(profiles={DEFAULT: default_profile(images=IMAGES)})
ids = count(1)


def create(**changes: Any) -> CreateCMLWorker:
    """The command that the worker comes from."""
    fields: dict[str, Any] = {
        "name": "lab",
        "aws_region": "us-east-1",
        "ami_id": "ami-11111111",
        "created_by": "ann",
        "worker_id": WORKER,
    }
    return CreateCMLWorker.model_validate(fields | changes)


def created(**changes: Any) -> WorkerCreated:
    """The first event of the worker."""
    fields: dict[str, Any] = {
        "name": "lab",
        "aws_region": "us-east-1",
        "instance_type": "m5.large",
        "ami_id": "ami-11111111",
        "created_by": "ann",
        "profile": DEFAULT,
    }
    return WorkerCreated.model_validate(fields | changes)


def instance(state: InstanceState = InstanceState.RUNNING, **changes: Any) -> Ec2Instance:
    """The worker's instance in that state."""
    fields: dict[str, Any] = {
        "instance_id": "i-0123456789abcdef0",
        "aws_region": "us-east-1",
        "state": state,
        "instance_type": "m5.large",
        "ami_id": "ami-11111111",
        "tags": {"Name": "lab", WORKER_TAG: str(WORKER), DEPLOYMENT_TAG: "default"},
    }
    return Ec2Instance.model_validate(fields | changes)


def launch(**changes: Any) -> LaunchParameters:
    """What the launch of the worker asks of EC2."""
    fields: dict[str, Any] = {
        "aws_region": "us-east-1",
        "ami_id": "ami-11111111",
        "instance_type": "m5.large",
        "tags": {"Name": "lab", WORKER_TAG: str(WORKER), DEPLOYMENT_TAG: "default"},
        "generation": 1,
        "client_token": launch_token("default", WORKER, 1),
    }
    return LaunchParameters.model_validate(fields | changes)


def recorded(worker: Worker, event: WorkerEvent, at: datetime, cause: str) -> Recorded:
    """The event as it would stand in the stream."""
    operation_id = getattr(event, "operation_id", None)
    return Recorded(
        worker.revision + 1,
        event,
        EventMetadata(
            event_id=UUID(int=next(ids)),
            time=at,
            command_id=operation_id or cause,
            causation_id=cause,
            reply=ReplyAddress(reply_to="somewhere"),
        ),
    )


def evolved(worker: Worker, events: list[WorkerEvent], at: datetime = NOW, cause: str = "given") -> Worker:
    """The worker after these events."""
    for event in events:
        before = worker._replace(operations=dict(worker.operations), tags=dict(worker.tags))
        after = evolve(worker, recorded(worker, event, at, cause))
        assert worker == before  # an event makes a new worker
        worker = after
    return worker


@dataclass
class Given:
    ledger: Ledger
    policy: Policy = POLICY
    at: datetime = NOW + timedelta(hours=1)
    looked_up: LookupResult | None = None
    command: WorkerCommand | None = None
    report: WorkerReport | None = None
    command_id: str = "the-command"
    answers: list[Any] = field(default_factory=list)

    @property
    def worker(self) -> Worker:
        """With its history so far."""
        return self.ledger.worker

    def result(self, command_id: str) -> OperationResult:
        """What became of the command."""
        result = self.ledger.entries[command_id].result
        assert result is not None
        return result

    def under(self, **policy: Any) -> "Given":
        """Under this policy."""
        self.policy = Policy(**policy)
        return self

    def found(self, ec2_instance: Ec2Instance | None = None, **looked_up: Any) -> "Given":
        """After EC2 answered so."""
        self.looked_up = LookupResult(instance=ec2_instance, **looked_up)
        return self

    def soon(self) -> "Given":
        """A minute after the events, not an hour."""
        self.at = NOW + timedelta(minutes=1)
        return self

    def when(self, command: WorkerCommand) -> "Given":
        self.command = command
        return self

    def reported(self, report: WorkerReport) -> "Given":
        self.report = report
        return self

    def _decide(self, worker: Worker) -> Decision:
        if self.report is not None:
            return decide_report(self.report, worker, known=self.ledger.entries)
        return decide(self._message(), worker, policy=self.policy, now=self.at, looked_up=self.looked_up)

    def _message(self) -> CommandMessage:
        assert self.command is not None
        return CommandMessage(
            command_id=self.command_id,
            command=self.command,
            command_type=self.command.TYPE,
            correlation_id="thread",
        )

    def then(self, *expected: WorkerEvent) -> Worker:
        """Exactly these events; and, repeated, none: by the rules, or as the command was handled before."""
        decision = self._decide(self.worker)
        if expected and isinstance(decision, NoChange):
            assert decision.news == expected
        else:
            assert decision == (Record(list(expected)) if expected else NoChange())
        for event in expected:
            self.ledger.add(recorded(self.worker, event, self.at, self.command_id))
        handled_before = self.report is None and (
            self.command_id in self.ledger.entries or isinstance(self.command, UpdateCMLWorkerStatus)
        )
        assert handled_before or isinstance(self._decide(self.worker), NoChange)
        return self.worker

    def then_nothing(self, data: Any = None, *, news: tuple[WorkerEvent, ...] = ()) -> None:
        """It is so already; the reply says so. ``news``: what EC2 showed meanwhile."""
        assert self._decide(self.worker) == NoChange(data, news)

    def then_rejected(
        self,
        code: str,
        *,
        outcome: str = "rejected",
        retryable: bool = False,
        saying: str = "",
        news: tuple[WorkerEvent, ...] = (),
    ) -> None:
        """Rejected, and rejected again; ``news``: what EC2 showed meanwhile."""
        for _ in range(2):
            decision = self._decide(self.worker)
            assert isinstance(decision, Reject)
            assert decision.problem.code == code
            assert decision.outcome == outcome
            assert saying in decision.problem.detail
            assert decision.news == news
            assert decision.problem.retryable is retryable
            assert decision.problem.detail

    def then_asks(self, lookup: Lookup) -> None:
        """EC2 has to be asked first."""
        assert self._decide(self.worker) == Ask(lookup)


def given(*events: WorkerEvent, worker_id: UUID = WORKER) -> Given:
    """A worker with this history."""
    ledger = Ledger(Worker(worker_id))
    for event in events:
        ledger.add(recorded(ledger.worker, event, NOW, "given"))
    return Given(ledger)
